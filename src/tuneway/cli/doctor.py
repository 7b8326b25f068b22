"""`tuneway doctor`: what is here, what is missing, and the command that fixes it."""

from __future__ import annotations

import http.client
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import typer

from tuneway.cli.exits import Exit, Failure
from tuneway.cli.options import Config, Data, Json, Url
from tuneway.cli.output import document, lines

if TYPE_CHECKING:
    from tuneway.settings import Settings

GIB = 2**30
DISK_NEEDED = 1 * GIB
"""Bytes: a prepared base model and a few adapters."""
MEMORY_NEEDED = 4 * GIB
"""Bytes: what training the default base model peaks under."""
FILES_NEEDED = 1024
IMPORT_SECONDS = 120.0
PROVIDER_SECONDS = 30.0

INSTALL_LOCAL = "make install (or: pip install 'tuneway[local]')"


@dataclass(frozen=True, slots=True)
class Check:
    """`missing` is essential, `warning` is not; `fix` is a command or a sentence, None when all is well."""

    name: str
    status: Literal["ok", "warning", "missing"]
    detail: str
    fix: str | None = None


def doctor(data: Data = None, config: Config = None, url: Url = None, as_json: Json = False) -> None:
    """Say what is missing here, and what fixes it.

    Exits 1 if something essential is missing.
    """
    from tuneway import settings

    found = settings.load(config, {"data": data})
    checks = list(examine(found, url or settings.client_url()))
    healthy = all(check.status != "missing" for check in checks)
    if as_json:
        document({"healthy": healthy, "checks": [asdict(check) for check in checks]})
    else:
        lines(("CHECK", "STATUS", "DETAIL"), [(check.name, check.status, check.detail) for check in checks])
        for check in checks:
            if check.fix:
                typer.echo(f"\n{check.name}: {check.fix}")
    raise typer.Exit(Exit.OK if healthy else Exit.FAILED)


def examine(found: Settings, url: str) -> Iterator[Check]:
    """Every check, in the order of the report. Nothing is changed on this machine."""
    yield python()
    yield from (package(name) for name in ("openai", "fastapi", "sqlalchemy", "tokenizers", "gguf"))
    yield importable("xllamacpp", "import xllamacpp", "serves models", fix="pip install --force-reinstall tuneway")
    yield torch()
    yield from (package(name, fix=INSTALL_LOCAL) for name in ("transformers", "safetensors"))
    yield data_folder(found.data)
    yield disk(found.data)
    yield memory()
    yield Check("cores", "ok", str(cores()))
    yield bases(found.cache)
    yield open_files()
    if found.python_graders:
        yield sandbox()
    yield gateway(url, found)
    yield from providers(url)


def python() -> Check:
    # pip refuses to install Tuneway on a Python that is too old.
    return Check("python", "ok", f"{platform.python_version()} ({sys.executable})")


def package(name: str, fix: str = "make install (or: pip install tuneway)") -> Check:
    """Whether it is installed; it is not imported."""
    if importlib.util.find_spec(name) is None:
        return Check(name, "missing", "not installed", fix)
    return Check(name, "ok", importlib.metadata.version(name))


def importable(name: str, code: str, purpose: str, fix: str) -> Check:
    """Whether `code` runs in a child process; what it prints is the detail. Its imports stay out of this process."""
    if importlib.util.find_spec(name) is None:
        return Check(name, "missing", f"not installed ({purpose})", fix)
    try:
        command = [sys.executable, "-c", code]
        child = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_SECONDS)  # noqa: S603
    except subprocess.TimeoutExpired:
        return Check(name, "missing", f"its import took more than {IMPORT_SECONDS:.0f} s", fix)
    if child.returncode != 0:
        reason = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        return Check(name, "missing", f"cannot be imported: {reason}", fix)
    return Check(name, "ok", child.stdout.strip() or importlib.metadata.version(name))


def torch() -> Check:
    code = "import torch; print(torch.__version__, torch.version.cuda or 'cpu')"
    check = importable("torch", code, "trains models", fix=INSTALL_LOCAL)
    if check.status != "ok":
        return check
    version, build = check.detail.split()
    if build == "cpu":
        return Check("torch", "ok", f"{version}, CPU build")
    fix = "`make clean install` installs the CPU build, which is much smaller."
    return Check("torch", "warning", f"{version}, built for CUDA {build}; training here uses the CPU", fix)


def data_folder(path: Path) -> Check:
    if not path.exists():
        parent = next(folder for folder in path.parents if folder.exists())
        if parent.is_dir() and os.access(parent, os.W_OK):
            return Check("data folder", "ok", f"{path} (made at the first start)")
        return Check("data folder", "missing", f"{path} cannot be made", f"sudo install -d -o $USER -m 700 {path}")
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        fix = f"sudo chown -R $USER {path} && chmod 700 {path}"
        return Check("data folder", "missing", f"{path} is not writable: {error.strerror}", fix)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return Check("data folder", "warning", f"{path} has mode {mode:o}: others can look in", f"chmod 700 {path}")
    return Check("data folder", "ok", f"{path}, mode {mode:o}")


def disk(path: Path) -> Check:
    folder = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    detail = f"{free / GIB:.1f} GiB free"
    if free < DISK_NEEDED:
        return Check("disk", "missing", detail, f"Free {DISK_NEEDED / GIB:.0f} GiB, or use --data on another disk.")
    return Check("disk", "ok", detail)


def memory() -> Check:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    detail = f"{total / GIB:.1f} GiB"
    if total < MEMORY_NEEDED:
        return Check("memory", "warning", detail, "Training the default model peaks under 4 GiB; close other programs.")
    return Check("memory", "ok", detail)


def cores() -> int:
    """Cores that this process may use."""
    # macOS has no affinity.
    allowed: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def bases(cache: Path) -> Check:
    """Prepared base models: each has a manifest, written last."""
    names = sorted(json.loads(path.read_text())["name"] for path in cache.glob("bases/*/base.json"))
    return Check("base models", "ok", ", ".join(names) or "none yet: the first job fetches one (about 90 MB)")


def open_files() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FILES_NEEDED:
        return Check("open files", "ok", "no limit" if soft == resource.RLIM_INFINITY else f"limit {soft}")
    return Check("open files", "warning", f"limit {soft}", f"ulimit -n {4 * FILES_NEEDED}")


def sandbox() -> Check:
    """What runs graders of type `python`, which this gateway's settings turn on."""
    found = shutil.which("bwrap")
    if found is None:
        return Check("sandbox", "missing", "bubblewrap is not installed", "apt-get install bubblewrap")
    return Check("sandbox", "ok", found)


def gateway(url: str, found: Settings) -> Check:
    """Whether a gateway answers at the URL, or else whether its port is free for one."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or (443 if parts.scheme == "https" else 80)
    connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = connect(host, port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException):
        status = None
    finally:
        connection.close()
    if status == 200:
        return Check("gateway", "ok", f"answers at {url}")
    try:
        socket.create_server((found.host, found.port)).close()
    except OSError as error:
        detail = f"none at {url}, and port {found.port} cannot be used: {error.strerror}"
        return Check("gateway", "warning", detail, "tuneway serve --port 8401")
    return Check("gateway", "ok", f"none at {url}; port {found.port} is free for `tuneway serve`")


def providers(url: str) -> list[Check]:
    """Whether each provider account of the gateway at the URL answers; nothing where there is no gateway."""
    from tuneway.cli import client

    try:
        with client.gateway(url) as api:
            accounts = api.get("/tuneway/providers", cast_to=dict[str, Any])["data"]
    except Failure as failure:
        if failure.code is Exit.UNREACHABLE:
            return []
        return [Check("providers", "warning", failure.message, "A key with the scope `read` in TUNEWAY_API_KEY.")]
    return [_answers(url, account["name"]) for account in accounts]


def _answers(url: str, name: str) -> Check:
    from tuneway.cli import client

    try:
        with client.gateway(url) as api:
            asking = api.with_options(max_retries=0, timeout=PROVIDER_SECONDS)
            asking.post(f"/tuneway/providers/{name}/check", cast_to=dict[str, Any])
    except Failure as failure:
        detail = f"did not answer in {PROVIDER_SECONDS:.0f} s" if failure.code is Exit.UNREACHABLE else failure.message
        return Check(f"provider {name}", "warning", detail, f"tuneway providers show {name}")
    return Check(f"provider {name}", "ok", "answers")
