"""The files service: receives, lists and deletes files; mints their ids and times."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from tuneway import ids, store
from tuneway.blobs import Blobs, Receiving
from tuneway.errors import FileNotFound, InvalidRequest, TunewayError
from tuneway.store import Tx
from tuneway.store import files as rows
from tuneway.types import File, Page


class Files:
    def __init__(self, database: store.Store, blobs: Blobs, *, max_bytes: int) -> None:
        self._store = database
        self._blobs = blobs
        self._max_bytes = max_bytes

    def receive(self) -> Incoming:
        """A file on its way in; end it by `commit` or `discard`."""
        return Incoming(self._store, self._blobs, self._blobs.receive(self._max_bytes))

    async def get(self, project: str, file_id: str) -> File:
        """Raises FileNotFound."""
        file = await self._store.read(rows.get, project, file_id)
        if file is None:
            raise FileNotFound(file_id)
        return file

    async def list(
        self, project: str, *, after: str | None, limit: int, order: Literal["asc", "desc"], purpose: str | None
    ) -> Page[File]:
        """One page of the project's files. Raises InvalidRequest when `after` is none of them."""
        page = await self._store.read(rows.page, project, after=after, limit=limit, order=order, purpose=purpose)
        if page is None:
            raise InvalidRequest(f"There is no file {after!r} to continue after.", param="after")
        return page

    async def delete(self, project: str, file_id: str) -> None:
        """Deletes the file; a job that has not ended keeps the bytes until then. Raises FileNotFound."""

        def delete(tx: Tx) -> File | None:
            file = rows.delete(tx, project, file_id, int(time.time()))
            if file is not None:
                drop_unneeded(tx, self._blobs, [file.sha256])
            return file

        if await self._store.write(delete) is None:
            raise FileNotFound(file_id)

    async def expire(self) -> None:
        """Deletes the files whose time is over."""
        await self._store.write(lambda tx: drop_unneeded(tx, self._blobs, rows.expire(tx, int(time.time()))))

    async def sweep(self) -> None:
        """At start: deletes bytes that no file refers to, left by a crash between publishing and storing."""
        await self._store.write(lambda tx: drop_unneeded(tx, self._blobs, list(self._blobs.all())))

    def path(self, file: File) -> Path:
        """Where the bytes of the file are."""
        return self._blobs.path(file.sha256)


class Incoming:
    """Bytes of a file that is being uploaded."""

    def __init__(self, database: store.Store, blobs: Blobs, receiving: Receiving) -> None:
        self._store = database
        self._blobs = blobs
        self._receiving = receiving

    async def write(self, data: bytes) -> None:
        """Raises PayloadTooLarge and OutOfSpace."""
        await self._receiving.write(data)

    async def commit(self, project: str, *, filename: str, purpose: str, expires_after: int | None = None) -> File:
        """Stores the file; bytes and row are on the disk when this returns. `expires_after` is in seconds."""
        await self._receiving.sync()
        now = int(time.time())
        file = File(
            seq=0,
            id=ids.file_id(),
            project_id=project,
            created_at=now,
            filename=filename,
            purpose=purpose,
            bytes=self._receiving.bytes,
            sha256=self._receiving.sha256,
            expires_at=None if expires_after is None else now + expires_after,
        )

        def store_file(tx: Tx) -> File:
            # On the writer thread, as is every removal: a blob cannot go between its publishing and its row.
            self._blobs.publish(self._receiving)
            return rows.insert(tx, file)

        try:
            return await self._store.write(store_file)
        except TunewayError:
            # The row is not there, the bytes may be, and others may share them.
            await self._store.write(drop_unneeded, self._blobs, [file.sha256])
            raise

    async def discard(self) -> None:
        """Leaves nothing behind; may be called at any moment and more than once."""
        await self._receiving.discard()


def drop_unneeded(tx: Tx, blobs: Blobs, sha256s: Iterable[str]) -> None:
    """Removes, once `tx` is in, those of the blobs that nothing refers to any more."""
    for sha256 in rows.unneeded(tx, set(sha256s)):
        store.after_commit(tx, lambda sha256=sha256: blobs.remove(sha256))  # type: ignore[misc]  # bound per turn
