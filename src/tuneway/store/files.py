"""Files: rows of `files`. A deleted file keeps its row (models name their data by it) and loses its bytes."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import asdict, replace
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Row, select, update

from tuneway.store.schema import files, jobs, upload_parts
from tuneway.types import TERMINAL_STATUSES, File, FileStatus, Page


def insert(tx: Connection, file: File) -> File:
    """Stores the file as it is and returns it with its `seq`."""
    values = asdict(file)
    del values["seq"]
    (seq,) = tx.execute(files.insert().values(values)).inserted_primary_key or (0,)
    return replace(file, seq=seq)


def get(tx: Connection, project: str, file_id: str) -> File | None:
    row = tx.execute(_alive(project).where(files.c.id == file_id)).one_or_none()
    return None if row is None else _file(row)


def repeated(tx: Connection, file: File, since: int) -> File | None:
    """The newest file like this one, made at `since` or later: same project, name, purpose and bytes."""
    query = _alive(file.project_id).where(
        files.c.filename == file.filename,
        files.c.purpose == file.purpose,
        files.c.sha256 == file.sha256,
        files.c.created_at >= since,
    )
    row = tx.execute(query.order_by(files.c.seq.desc()).limit(1)).one_or_none()
    return None if row is None else _file(row)


def settle(tx: Connection, file: File) -> bool:
    """Stores what became of a pending file: status, details, size and bytes. False when it was deleted meanwhile."""
    pending = update(files).where(_is_alive(), files.c.id == file.id, files.c.status == FileStatus.PENDING)
    done = pending.values(status=file.status, status_details=file.status_details, bytes=file.bytes, sha256=file.sha256)
    return tx.execute(done).rowcount == 1


def fail_pending(tx: Connection, details: str) -> None:
    """Gives the pending files of all projects the status `error`."""
    pending = update(files).where(files.c.status == FileStatus.PENDING)
    tx.execute(pending.values(status=FileStatus.ERROR, status_details=details))


def page(
    tx: Connection, project: str, *, after: str | None, limit: int, order: Literal["asc", "desc"], purpose: str | None
) -> Page[File] | None:
    """One page in the order of creation; None when `after` is no file of the project."""
    query = _alive(project).order_by(files.c.seq.asc() if order == "asc" else files.c.seq.desc()).limit(limit + 1)
    if purpose is not None:
        query = query.where(files.c.purpose == purpose)
    if after is not None:
        # A file that was deleted between two pages still marks a place.
        seq = tx.scalar(select(files.c.seq).where(files.c.project_id == project, files.c.id == after))
        if seq is None:
            return None
        query = query.where(files.c.seq > seq if order == "asc" else files.c.seq < seq)
    rows = tx.execute(query).all()
    return Page(tuple(_file(row) for row in rows[:limit]), len(rows) > limit)


def delete(tx: Connection, project: str, file_id: str, now: int) -> File | None:
    """Marks the file deleted and returns what it was; None when there was none."""
    file = get(tx, project, file_id)
    if file is not None:
        tx.execute(update(files).where(files.c.seq == file.seq).values(deleted_at=now))
    return file


def expire(tx: Connection, now: int) -> list[str]:
    """Marks the files deleted whose time is over, of all projects; returns their SHA-256."""
    over = update(files).where(files.c.expires_at <= now, files.c.deleted_at.is_(None))
    return list(tx.scalars(over.values(deleted_at=now).returning(files.c.sha256)))


def needed(tx: Connection, sha256: str) -> bool:
    """Whether a file of any project, a part of an upload, or a job that has not ended, still refers to these bytes."""
    alive = select(files.c.seq).where(files.c.sha256 == sha256, files.c.deleted_at.is_(None)).limit(1)
    part = select(upload_parts.c.seq).where(upload_parts.c.sha256 == sha256).limit(1)
    if tx.execute(alive).first() is not None or tx.execute(part).first() is not None:
        return True
    pinned = (
        select(jobs.c.seq)
        .where(jobs.c.status.not_in(TERMINAL_STATUSES))
        .where((jobs.c.training_sha256 == sha256) | (jobs.c.validation_sha256 == sha256))
        .limit(1)
    )
    return tx.execute(pinned).first() is not None


def unneeded(tx: Connection, blobs: Collection[str]) -> list[str]:
    """Of these blobs, those that nothing refers to. The empty name, of a file that never came, is none."""
    return [sha256 for sha256 in blobs if sha256 and not needed(tx, sha256)]


def _alive(project: str) -> Any:
    return select(files).where(files.c.project_id == project, _is_alive())


def _is_alive() -> ColumnElement[bool]:
    """Not deleted, and its time is not over: `expire` marks that only now and then."""
    lasting = files.c.expires_at.is_(None) | (files.c.expires_at > int(time.time()))
    return files.c.deleted_at.is_(None) & lasting


def _file(row: Row[Any]) -> File:
    return File(
        seq=row.seq,
        id=row.id,
        project_id=row.project_id,
        created_at=row.created_at,
        filename=row.filename,
        purpose=row.purpose,
        bytes=row.bytes,
        sha256=row.sha256,
        expires_at=row.expires_at,
        status=FileStatus(row.status),
        status_details=row.status_details,
    )
