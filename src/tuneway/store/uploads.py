"""Uploads and their parts. An upload keeps its row for good; its parts go when it ends, and with them their bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, Row, delete, func, select, update

from tuneway.store.schema import upload_parts, uploads
from tuneway.types import Upload, UploadPart, UploadStatus


def insert(tx: Connection, upload: Upload) -> Upload:
    """Stores the upload as it is and returns it with its `seq`."""
    values = asdict(upload)
    del values["seq"]
    (seq,) = tx.execute(uploads.insert().values(values)).inserted_primary_key or (0,)
    return replace(upload, seq=seq)


def get(tx: Connection, project: str, upload_id: str) -> Upload | None:
    """The upload as it was left: one whose time is over is still pending until it is ended."""
    row = tx.execute(select(uploads).where(uploads.c.project_id == project, uploads.c.id == upload_id)).one_or_none()
    return None if row is None else _upload(row)


def repeated(tx: Connection, upload: Upload, since: int) -> Upload | None:
    """The newest pending upload that asks for the same as this one, made at `since` or later."""
    asked = ("project_id", "filename", "purpose", "bytes", "mime_type", "expires_after")
    query = select(uploads).where(uploads.c.status == UploadStatus.PENDING, uploads.c.created_at >= since)
    for name in asked:
        query = query.where(uploads.c[name].is_not_distinct_from(getattr(upload, name)))
    row = tx.execute(query.order_by(uploads.c.seq.desc()).limit(1)).one_or_none()
    return None if row is None else _upload(row)


def overdue(tx: Connection, now: int) -> list[Upload]:
    """The pending uploads, of all projects, whose time is over."""
    query = select(uploads).where(uploads.c.status == UploadStatus.PENDING, uploads.c.expires_at <= now)
    return [_upload(row) for row in tx.execute(query)]


def end(tx: Connection, upload: Upload) -> list[str]:
    """Stores how the upload ended and deletes its parts; returns their SHA-256. Changes nothing that has ended."""
    pending = update(uploads).where(uploads.c.seq == upload.seq, uploads.c.status == UploadStatus.PENDING)
    part_ids = None if upload.part_ids is None else list(upload.part_ids)
    done = tx.execute(pending.values(status=upload.status, file_id=upload.file_id, part_ids=part_ids))
    if done.rowcount == 0:
        return []
    gone = delete(upload_parts).where(upload_parts.c.upload_id == upload.id)
    return list(tx.scalars(gone.returning(upload_parts.c.sha256)))


def insert_part(tx: Connection, part: UploadPart) -> UploadPart:
    """Stores the part as it is and returns it with its `seq`."""
    values = asdict(part)
    del values["seq"]
    (seq,) = tx.execute(upload_parts.insert().values(values)).inserted_primary_key or (0,)
    return replace(part, seq=seq)


def parts(tx: Connection, upload: Upload) -> Sequence[UploadPart]:
    """In the order in which they came."""
    query = select(upload_parts).where(upload_parts.c.upload_id == upload.id).order_by(upload_parts.c.seq)
    return [_part(row) for row in tx.execute(query)]


def same_part(tx: Connection, part: UploadPart) -> UploadPart | None:
    """The first part of the same upload with the same bytes."""
    mine = select(upload_parts).where(upload_parts.c.upload_id == part.upload_id, upload_parts.c.sha256 == part.sha256)
    row = tx.execute(mine.order_by(upload_parts.c.seq).limit(1)).one_or_none()
    return None if row is None else _part(row)


def bytes_held(tx: Connection, upload: Upload) -> int:
    """The size of the upload's parts together."""
    query = select(func.coalesce(func.sum(upload_parts.c.bytes), 0)).where(upload_parts.c.upload_id == upload.id)
    return int(tx.execute(query).scalar_one())


def _upload(row: Row[Any]) -> Upload:
    return Upload(
        seq=row.seq,
        id=row.id,
        project_id=row.project_id,
        created_at=row.created_at,
        filename=row.filename,
        purpose=row.purpose,
        bytes=row.bytes,
        mime_type=row.mime_type,
        expires_after=row.expires_after,
        expires_at=row.expires_at,
        status=UploadStatus(row.status),
        file_id=row.file_id,
        part_ids=None if row.part_ids is None else tuple(row.part_ids),
    )


def _part(row: Row[Any]) -> UploadPart:
    return UploadPart(
        seq=row.seq,
        id=row.id,
        project_id=row.project_id,
        created_at=row.created_at,
        upload_id=row.upload_id,
        bytes=row.bytes,
        sha256=row.sha256,
    )
