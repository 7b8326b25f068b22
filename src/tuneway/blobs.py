"""Bytes, content-addressed, on the local disk: `blobs/ab/abcdef…` under their SHA-256.

Knows nothing of files, projects or references: who counts those decides when `remove` is called.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tuneway.errors import OutOfSpace, PayloadTooLarge

T = TypeVar("T")


class Blobs:
    """Blobs in `root`. `open` empties the folder of half-received ones; a gateway owns its data folder alone."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "incoming"

    def open(self) -> None:
        self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self._incoming.iterdir():
            left.unlink()

    def receive(self, limit: int) -> Receiving:
        """A new blob of at most `limit` bytes, to be written piece by piece. Raises OutOfSpace."""
        return Receiving(self._incoming, limit)

    def publish(self, received: Receiving) -> None:
        """Moves received and synced bytes to their name; a blob that is there already is left alone."""
        final = self.path(received.sha256)
        if final.exists():
            received.path.unlink()
            return
        final.parent.mkdir(exist_ok=True, mode=0o700)
        received.path.replace(final)
        _sync_folder(final.parent)
        _sync_folder(self._root)

    def path(self, sha256: str) -> Path:
        return self._root / sha256[:2] / sha256

    def remove(self, sha256: str) -> None:
        self.path(sha256).unlink(missing_ok=True)

    def all(self) -> Iterator[str]:
        """The SHA-256 of every blob here."""
        for path in self._root.glob("??/*"):
            yield path.name


class Receiving:
    """One blob on its way in. Blocking work happens in threads, a piece at a time, so memory stays constant."""

    def __init__(self, folder: Path, limit: int) -> None:
        with _out_of_space():
            fd, name = tempfile.mkstemp(dir=folder)
        self._file = os.fdopen(fd, "wb", buffering=0)
        self.path = Path(name)
        self._limit = limit
        self._hash = hashlib.sha256()
        self.bytes = 0

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    async def write(self, data: bytes) -> None:
        """Raises PayloadTooLarge behind the limit and OutOfSpace when the disk is full."""
        self.bytes += len(data)
        if self.bytes > self._limit:
            raise PayloadTooLarge(
                f"The file is larger than {self._limit} bytes, the most that this gateway accepts.", param="file"
            )
        await _on_disk(self._write, data)

    def _write(self, data: bytes) -> None:
        self._hash.update(data)
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    async def sync(self) -> None:
        """Ends the writing; the bytes are on the disk when this returns."""
        await _on_disk(self._sync)

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    async def discard(self) -> None:
        """Leaves nothing behind; may be called at any moment and more than once."""
        self._file.close()
        await asyncio.to_thread(self.path.unlink, missing_ok=True)


async def _on_disk(function: Callable[..., T], *args: object) -> T:
    with _out_of_space():
        return await asyncio.to_thread(function, *args)


@contextmanager
def _out_of_space() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpace from error
        raise


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
