"""Files: rows of `files`. A deleted file keeps its row (models name their data by it) and loses its bytes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, replace
from typing import Any, Literal

from sqlalchemy import Connection, Row, select, update

from tuneway.store.schema import files, jobs
from tuneway.types import TERMINAL_STATUSES, File, Page


def insert(tx: Connection, file: File) -> File:
    """Stores the file as it is and returns it with its `seq`."""
    values = asdict(file)
    del values["seq"]
    (seq,) = tx.execute(files.insert().values(values)).inserted_primary_key or (0,)
    return replace(file, seq=seq)


def get(tx: Connection, project: str, file_id: str) -> File | None:
    row = tx.execute(_alive(project).where(files.c.id == file_id)).one_or_none()
    return None if row is None else _file(row)


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
    """Whether a file of any project, or a job that has not ended, still refers to these bytes."""
    alive = select(files.c.seq).where(files.c.sha256 == sha256, files.c.deleted_at.is_(None)).limit(1)
    if tx.execute(alive).first() is not None:
        return True
    pinned = (
        select(jobs.c.seq)
        .where(jobs.c.status.not_in(TERMINAL_STATUSES))
        .where((jobs.c.training_sha256 == sha256) | (jobs.c.validation_sha256 == sha256))
        .limit(1)
    )
    return tx.execute(pinned).first() is not None


def unneeded(tx: Connection, blobs: Collection[str]) -> list[str]:
    """Of these blobs, those that nothing refers to."""
    return [sha256 for sha256 in blobs if not needed(tx, sha256)]


def _alive(project: str) -> Any:
    return select(files).where(files.c.project_id == project, files.c.deleted_at.is_(None))


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
    )
