"""The uploads service: a file that arrives in parts, in any order and side by side, and is put together at the end.

A part is a blob that its row keeps. What ends an upload (`complete`, `cancel`, `expire`) takes its turn with the others
of the same upload, so that no part goes while it is being copied.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakValueDictionary

from tuneway import ids
from tuneway.blobs import Blobs, Receiving
from tuneway.errors import InvalidRequest, UploadNotFound
from tuneway.files import RETRY_SECONDS, drop_unneeded, expires_at, store_blob
from tuneway.store import Store, Tx
from tuneway.store import files as file_rows
from tuneway.store import uploads as rows
from tuneway.types import FIRST_TRY, File, Origin, Upload, UploadPart, UploadStatus

LIFETIME_SECONDS = 3600
MAX_PART_BYTES = 64 * 2**20


class Uploads:
    """`max_bytes` is the largest file that may be announced."""

    def __init__(self, store: Store, blobs: Blobs, *, max_bytes: int) -> None:
        self._store = store
        self._blobs = blobs
        self._max_bytes = max_bytes
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def create(
        self,
        project: str,
        *,
        filename: str,
        purpose: str,
        bytes: int,
        mime_type: str,
        expires_after: int | None,
        origin: Origin = FIRST_TRY,
    ) -> Upload:
        """Announces a file of `bytes` bytes that will expire `expires_after` seconds after its completion.

        A retry, by `origin`, of a create that got through gives the first upload again. Raises InvalidRequest.
        """
        if bytes > self._max_bytes:
            raise InvalidRequest(
                f"Invalid 'bytes': integer above maximum value. Expected a value <= {self._max_bytes}, but got {bytes} "
                "instead. The operator of this gateway sets it by `max_upload_bytes`.",
                param="bytes",
                code="integer_above_max_value",
            )
        now = int(time.time())
        upload = Upload(
            seq=0,
            id=ids.hex32("upload_"),
            project_id=project,
            created_at=now,
            filename=filename,
            purpose=purpose,
            bytes=bytes,
            mime_type=mime_type,
            expires_after=expires_after,
            expires_at=now + LIFETIME_SECONDS,
            status=UploadStatus.PENDING,
        )

        def store_upload(tx: Tx) -> Upload:
            first = rows.repeated(tx, upload, now - RETRY_SECONDS) if origin.retry else None
            return first or rows.insert(tx, upload)

        return await self._store.write(store_upload)

    async def receive_part(self, project: str, upload_id: str) -> IncomingPart:
        """A part on its way in; end it by `commit` or `discard`. Raises UploadNotFound and InvalidRequest."""
        upload = await self._store.read(_get, project, upload_id)
        _require_pending(upload)
        return IncomingPart(self._store, self._blobs, upload)

    async def complete(
        self, project: str, upload_id: str, *, part_ids: Sequence[str], md5: str | None, origin: Origin = FIRST_TRY
    ) -> tuple[Upload, File]:
        """Puts the parts together, in the order of `part_ids`, to one file; the others are dropped.

        All or nothing, and durable when this returns. A retry, by `origin`, gives the completed upload again. Raises
        UploadNotFound, and InvalidRequest, after which the upload is as it was.
        """
        async with self._turn(upload_id):
            upload = await self._store.read(_get, project, upload_id)
            if origin.retry and upload.status is UploadStatus.COMPLETED and upload.part_ids == tuple(part_ids):
                return upload, await self._file(upload)
            _require_pending(upload)
            parts = _chosen(upload, await self._store.read(rows.parts, upload), part_ids)
            receiving = self._blobs.receive(upload.bytes, md5=md5 is not None)
            try:
                for part in parts:
                    await receiving.append(self._blobs.path(part.sha256))
                if md5 is not None and receiving.md5 != md5.lower():
                    raise InvalidRequest(
                        f"The parts in this order have the MD5 {receiving.md5}, not {md5}. Check the order of "
                        "'part_ids', or add again the parts that arrived broken.",
                        param="md5",
                    )
                await receiving.sync()
                return await self._finish(upload, part_ids, receiving)
            except BaseException:
                await receiving.discard()
                raise

    async def cancel(self, project: str, upload_id: str, origin: Origin = FIRST_TRY) -> Upload:
        """Ends the upload and frees its parts. A retry, by `origin`, gives the cancelled upload again.

        Raises UploadNotFound, and InvalidRequest for one that has ended otherwise.
        """
        async with self._turn(upload_id):
            upload = await self._store.read(_get, project, upload_id)
            if origin.retry and upload.status is UploadStatus.CANCELLED:
                return upload
            _require_pending(upload)
            cancelled = replace(upload, status=UploadStatus.CANCELLED)
            await self._free(await self._store.write(rows.end, cancelled))
            return cancelled

    async def expire(self) -> None:
        """Frees the parts of the uploads whose time is over."""
        for upload in await self._store.read(rows.overdue, int(time.time())):
            async with self._turn(upload.id):
                await self._free(await self._store.write(rows.end, replace(upload, status=UploadStatus.EXPIRED)))

    def _turn(self, upload_id: str) -> asyncio.Lock:
        return self._turns.setdefault(upload_id, asyncio.Lock())

    async def _free(self, sha256s: Sequence[str]) -> None:
        """Removes the bytes of parts that are no more; what a crash leaves is swept at the next start."""
        for sha256 in sha256s:
            # One turn of the writer each: removing a large file takes a while, and others want to write.
            await self._store.write(drop_unneeded, self._blobs, [sha256])

    async def _finish(self, upload: Upload, part_ids: Sequence[str], receiving: Receiving) -> tuple[Upload, File]:
        now = int(time.time())
        file = File(
            seq=0,
            id=ids.file_id(),
            project_id=upload.project_id,
            created_at=now,
            filename=upload.filename,
            purpose=upload.purpose,
            bytes=receiving.bytes,
            sha256=receiving.sha256,
            expires_at=expires_at(now, upload.purpose, upload.expires_after),
        )
        completed = replace(upload, status=UploadStatus.COMPLETED, file_id=file.id, part_ids=tuple(part_ids))

        def finish(tx: Tx) -> tuple[File, Sequence[str]]:
            return file_rows.insert(tx, file), rows.end(tx, completed)

        stored, freed = await store_blob(self._store, self._blobs, receiving, finish)
        await self._free(freed)
        return completed, stored

    async def _file(self, upload: Upload) -> File:
        file = await self._store.read(file_rows.get, upload.project_id, upload.file_id or "")
        if file is None:
            raise InvalidRequest(f"The file of upload {upload.id} was deleted. Upload it again.", param="upload_id")
        return file


class IncomingPart:
    """Bytes of a part of `upload`."""

    def __init__(self, store: Store, blobs: Blobs, upload: Upload) -> None:
        self._store = store
        self._blobs = blobs
        self._upload = upload
        self._receiving = blobs.receive(MAX_PART_BYTES)

    async def write(self, data: bytes) -> None:
        """Raises PayloadTooLarge, OutOfSpace, and InvalidRequest for more than the whole upload was to have."""
        if self._receiving.bytes + len(data) > self._upload.bytes:
            raise _too_many_bytes(self._upload)
        await self._receiving.write(data)

    async def commit(self, origin: Origin = FIRST_TRY) -> UploadPart:
        """Stores the part; bytes and row are on the disk when this returns.

        A retry, by `origin`, of a part that got through gives the first one again. Raises InvalidRequest when the part
        is empty, when there are more bytes now than were announced, or when the upload has ended meanwhile.
        """
        if self._receiving.bytes == 0:
            raise InvalidRequest("The part is empty. Send at least one byte as 'data'.", param="data")
        await self._receiving.sync()
        part = UploadPart(
            seq=0,
            id=ids.hex32("part_"),
            project_id=self._upload.project_id,
            created_at=int(time.time()),
            upload_id=self._upload.id,
            bytes=self._receiving.bytes,
            sha256=self._receiving.sha256,
        )

        def store_part(tx: Tx) -> UploadPart:
            upload = _get(tx, part.project_id, part.upload_id)
            _require_pending(upload)
            first = rows.same_part(tx, part) if origin.retry else None
            if first is not None:
                return first
            if rows.bytes_held(tx, upload) + part.bytes > upload.bytes:
                raise _too_many_bytes(upload)
            return rows.insert_part(tx, part)

        return await store_blob(self._store, self._blobs, self._receiving, store_part)

    async def discard(self) -> None:
        """Leaves nothing behind; may be called at any moment and more than once."""
        await self._receiving.discard()


def _get(tx: Tx, project: str, upload_id: str) -> Upload:
    """Raises UploadNotFound."""
    upload = rows.get(tx, project, upload_id)
    if upload is None:
        raise UploadNotFound(upload_id)
    if upload.status is UploadStatus.PENDING and upload.expires_at <= time.time():
        return replace(upload, status=UploadStatus.EXPIRED)
    return upload


def _require_pending(upload: Upload) -> None:
    if upload.status is not UploadStatus.PENDING:
        raise InvalidRequest(
            f"Upload {upload.id} is {upload.status.value}; only a pending one can be changed. Create another.",
            param="upload_id",
        )


def _chosen(upload: Upload, parts: Sequence[UploadPart], part_ids: Sequence[str]) -> Sequence[UploadPart]:
    """The parts of these ids, in this order. Raises InvalidRequest unless together they are the announced file."""
    by_id = {part.id: part for part in parts}
    for number, part_id in enumerate(part_ids):
        if part_id not in by_id:
            raise InvalidRequest(f"Upload {upload.id} has no part '{part_id[:100]}'.", param=f"part_ids.{number}")
    # An id may stand twice: a retried part is known by its bytes, and a file may hold the same bytes twice.
    chosen = [by_id[part_id] for part_id in part_ids]
    total = sum(part.bytes for part in chosen)
    if total != upload.bytes:
        raise InvalidRequest(
            f"The parts have {total} bytes together, but the upload was created with 'bytes' {upload.bytes}. Name "
            "every part of the file, and add those that are missing.",
            param="part_ids",
        )
    return chosen


def _too_many_bytes(upload: Upload) -> InvalidRequest:
    return InvalidRequest(
        f"With this part the upload would have more than the {upload.bytes} bytes that it was created for. Create "
        "another upload with the right number of bytes.",
        param="data",
    )
