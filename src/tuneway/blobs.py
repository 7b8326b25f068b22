"""Bytes, content-addressed, on the local disk: `blobs/ab/abcdef…` under their SHA-256.

Knows nothing of files, projects or references: who counts those decides when `remove` is called.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tuneway.errors import OutOfSpace, PayloadTooLarge

T = TypeVar("T")

PIECE = 2**20
"""Bytes that are copied at a time."""
LARGE = 64 * 2**20
"""Bytes from which a blob is removed in a thread: a file system took 80 ms for so many, and seconds for gigabytes."""


class Blobs:
    """Blobs in `root`. `open` empties the folder of half-received ones; a gateway owns its data folder alone."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._incoming = root / "incoming"

    def open(self) -> None:
        self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self._incoming.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    def receive(self, limit: int, *, md5: bool = False) -> Receiving:
        """A new blob of at most `limit` bytes, to be written piece by piece; counts its MD5 too where asked to.

        Raises OutOfSpace.
        """
        return Receiving(self._incoming, limit, md5=md5)

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
        """The blob is gone at once; the space of a large one is free a little later."""
        path = self.path(sha256)
        try:
            if path.stat().st_size <= LARGE:
                path.unlink()
                return
            gone = Path(tempfile.mkdtemp(dir=self._incoming)) / sha256
            path.replace(gone)
        except FileNotFoundError:
            return
        threading.Thread(target=shutil.rmtree, args=[gone.parent], name="blob-remover").start()

    def all(self) -> Iterator[str]:
        """The SHA-256 of every blob here."""
        for path in self._root.glob("??/*"):
            yield path.name


class Receiving:
    """One blob on its way in. Blocking work happens in threads, a piece at a time, so memory stays constant."""

    def __init__(self, folder: Path, limit: int, *, md5: bool) -> None:
        with _out_of_space():
            fd, name = tempfile.mkstemp(dir=folder)
        self._file = os.fdopen(fd, "wb", buffering=0)
        self.path = Path(name)
        self._limit = limit
        self._hash = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None
        self.bytes = 0

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    @property
    def md5(self) -> str | None:
        """None where it was not asked for."""
        return None if self._md5 is None else self._md5.hexdigest()

    async def write(self, data: bytes) -> None:
        """Raises PayloadTooLarge behind the limit and OutOfSpace when the disk is full."""
        await _on_disk(self._write, data)

    async def append(self, path: Path) -> None:
        """Copies a file to the end, in one turn of a thread and a piece at a time. Raises as `write` does."""
        await _on_disk(self._append, path)

    def _append(self, path: Path) -> None:
        with open(path, "rb") as source:
            while piece := source.read(PIECE):
                self._write(piece)

    def _write(self, data: bytes) -> None:
        self.bytes += len(data)
        if self.bytes > self._limit:
            raise PayloadTooLarge(
                f"The file is larger than {self._limit} bytes, the most that this gateway accepts.", param="file"
            )
        self._hash.update(data)
        if self._md5 is not None:
            self._md5.update(data)
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
