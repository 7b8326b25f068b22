"""The files service: receives, fetches, lists and deletes files; mints their ids and times."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar
from weakref import WeakValueDictionary

from tuneway import ids, store
from tuneway.blobs import Blobs, Receiving
from tuneway.errors import FileNotFound, InvalidFile, InvalidRequest, TunewayError
from tuneway.outbound import Outbound
from tuneway.store import Tx
from tuneway.store import files as rows
from tuneway.types import FIRST_TRY, File, FileStatus, Origin, Page

log = logging.getLogger(__name__)

RETRY_SECONDS = 15 * 60
"""How long the same create, sent again as a retry, gives the first result; the SDKs give up after 10 minutes."""
LIFETIME_SECONDS = {"batch": 30 * 24 * 3600}
"""Of files whose create does not say when they expire, by purpose; others stay."""
IMPORTS = 8
PER_PROJECT = 2
"""Files that are fetched at the same time; the others wait."""
STOPPED = "The gateway stopped while it fetched this file. Import it again."

T = TypeVar("T")


class Files:
    """`max_bytes` holds for one file, sent or fetched."""

    def __init__(self, database: store.Store, blobs: Blobs, outbound: Outbound, *, max_bytes: int) -> None:
        self._store = database
        self._blobs = blobs
        self._outbound = outbound
        self._max_bytes = max_bytes
        self._slots = asyncio.Semaphore(IMPORTS)
        self._turns: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._imports: dict[str, asyncio.Task[None]] = {}
        self._imported: dict[str, File] = {}

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
        """One page of the project's files, an empty one when `after` is none of them."""
        page = await self._store.read(rows.page, project, after=after, limit=limit, order=order, purpose=purpose)
        return Page((), has_more=False) if page is None else page

    async def delete(self, project: str, file_id: str) -> None:
        """Deletes the file; a job that has not ended keeps the bytes until then. Raises FileNotFound."""

        def delete(tx: Tx) -> File | None:
            file = rows.delete(tx, project, file_id, int(time.time()))
            if file is not None:
                drop_unneeded(tx, self._blobs, [file.sha256])
            return file

        if await self._store.write(delete) is None:
            raise FileNotFound(file_id)
        if file_id in self._imports:
            self._imports[file_id].cancel()

    async def expire(self) -> None:
        """Deletes the files whose time is over."""
        await self._store.write(lambda tx: drop_unneeded(tx, self._blobs, rows.expire(tx, int(time.time()))))

    async def sweep(self) -> None:
        """At start: gives up the imports of the last run, and deletes bytes that nothing refers to, left by a crash."""
        await self._store.write(rows.fail_pending, STOPPED)
        await self._store.write(lambda tx: drop_unneeded(tx, self._blobs, list(self._blobs.all())))

    async def close(self) -> None:
        """Ends the imports under way; the next start gives them up."""
        for task in self._imports.values():
            task.cancel()
        await asyncio.gather(*self._imports.values(), return_exceptions=True)

    def path(self, file: File) -> Path:
        """Where the bytes of the file are. Raises InvalidFile for one that has none."""
        require_usable(file)
        return self._blobs.path(file.sha256)

    async def fetch(self, project: str, *, filename: str, purpose: str, url: str, origin: Origin = FIRST_TRY) -> File:
        """Stores a pending file and fetches its bytes from `url` in the background; it ends processed or with an error.

        The URL, which may be a signed one, is neither stored nor logged. Raises InvalidRequest for one that the
        gateway may not call.
        """
        try:
            self._outbound.check(url)
        except InvalidRequest as error:
            raise InvalidRequest(error.message, param="content_url") from None
        now = int(time.time())
        self._imported = {key: file for key, file in self._imported.items() if file.created_at > now - RETRY_SECONDS}
        key = hashlib.sha256("\0".join((project, filename, purpose, url)).encode()).hexdigest()
        if origin.retry and key in self._imported:
            first = await self._store.read(rows.get, project, self._imported[key].id)
            if first is not None:
                return first
        file = File(
            seq=0,
            id=ids.file_id(),
            project_id=project,
            created_at=now,
            filename=filename,
            purpose=purpose,
            bytes=0,
            sha256="",
            expires_at=expires_at(now, purpose, None),
            status=FileStatus.PENDING,
        )
        self._imported[key] = file = await self._store.write(rows.insert, file)
        task = self._imports[file.id] = asyncio.create_task(self._fetch(file, url))
        task.add_done_callback(lambda _, file_id=file.id: self._imports.pop(file_id))  # type: ignore[misc]  # bound here
        return file

    async def _fetch(self, file: File, url: str) -> None:
        try:
            turn = self._turns.setdefault(file.project_id, asyncio.Semaphore(PER_PROJECT))
            async with turn, self._slots:
                await self._fetch_bytes(file, url)
        except TunewayError as error:
            await self._fail(file, error.message)
        except Exception as error:
            # Without its words, which might hold the URL.
            log.error("%s could not be fetched: %s", file.id, type(error).__name__)
            await self._fail(file, "The gateway could not fetch this file. Import it again.")

    async def _fetch_bytes(self, file: File, url: str) -> None:
        receiving = self._blobs.receive(self._max_bytes)
        try:
            pieces = self._outbound.download(url, limit=self._max_bytes)
            async with aclosing(pieces):
                async for piece in pieces:
                    await receiving.write(piece)
            await receiving.sync()
            here = replace(
                file, status=FileStatus.PROCESSED, bytes=receiving.bytes, sha256=receiving.sha256, status_details=None
            )

            def settle(tx: Tx) -> None:
                if not rows.settle(tx, here):
                    drop_unneeded(tx, self._blobs, [here.sha256])

            await store_blob(self._store, self._blobs, receiving, settle)
        except BaseException:
            await receiving.discard()
            raise

    async def _fail(self, file: File, details: str) -> None:
        await self._store.write(rows.settle, replace(file, status=FileStatus.ERROR, status_details=details))


class Incoming:
    """Bytes of a file that is being uploaded."""

    def __init__(self, database: store.Store, blobs: Blobs, receiving: Receiving) -> None:
        self._store = database
        self._blobs = blobs
        self._receiving = receiving

    async def write(self, data: bytes) -> None:
        """Raises PayloadTooLarge and OutOfSpace."""
        await self._receiving.write(data)

    async def commit(
        self,
        project: str,
        *,
        filename: str,
        purpose: str,
        expires_after: int | None = None,
        origin: Origin = FIRST_TRY,
    ) -> File:
        """Stores the file; bytes and row are on the disk when this returns. `expires_after` is in seconds.

        A retry, by `origin`, of a create that got through gives the first file again.
        """
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
            expires_at=expires_at(now, purpose, expires_after),
        )

        def store_file(tx: Tx) -> File:
            first = rows.repeated(tx, file, now - RETRY_SECONDS) if origin.retry else None
            return first or rows.insert(tx, file)

        return await store_blob(self._store, self._blobs, self._receiving, store_file)

    async def discard(self) -> None:
        """Leaves nothing behind; may be called at any moment and more than once."""
        await self._receiving.discard()


async def store_blob(database: store.Store, blobs: Blobs, receiving: Receiving, store_row: Callable[[Tx], T]) -> T:
    """Publishes synced bytes and runs `store_row`, which stores what refers to them, in one transaction."""

    def publish(tx: Tx) -> T:
        # On the writer thread, as is every removal: a blob cannot go between its publishing and its row.
        blobs.publish(receiving)
        return store_row(tx)

    try:
        return await database.write(publish)
    except TunewayError:
        # The row is not there, the bytes may be, and others may share them.
        await database.write(drop_unneeded, blobs, [receiving.sha256])
        raise


def require_usable(file: File, param: str | None = None) -> None:
    """Raises InvalidFile, naming the request's field `param`, for a file whose bytes are not here (yet)."""
    if file.status is FileStatus.PENDING:
        raise InvalidFile(
            f"File '{file.id}' is still being processed and is not ready to be used for fine-tuning. "
            "Please try again later.",
            param=param,
        )
    if file.status is FileStatus.ERROR:
        raise InvalidFile(f"File '{file.id}' cannot be used: {file.status_details}", param=param)


def expires_at(now: int, purpose: str, expires_after: int | None) -> int | None:
    """When a file that is made `now` expires: as its create says, else as its purpose does. None for never."""
    seconds = LIFETIME_SECONDS.get(purpose) if expires_after is None else expires_after
    return None if seconds is None else now + seconds


def drop_unneeded(tx: Tx, blobs: Blobs, sha256s: Iterable[str]) -> None:
    """Removes, once `tx` is in, those of the blobs that nothing refers to any more."""
    for sha256 in rows.unneeded(tx, set(sha256s)):
        store.after_commit(tx, lambda sha256=sha256: blobs.remove(sha256))  # type: ignore[misc]  # bound per turn
