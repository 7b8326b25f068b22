"""Who besides its owner may use a checkpoint: rows of `permissions`."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Literal

from sqlalchemy import Connection, Row, delete, select

from tuneway.store.schema import models, permissions
from tuneway.types import Page, Permission


def insert(tx: Connection, permission: Permission) -> Permission:
    """Stores the permission; one that is there already is returned as it is."""
    found = tx.execute(
        select(permissions).where(
            permissions.c.model == permission.model, permissions.c.granted_to == permission.granted_to
        )
    ).one_or_none()
    if found is not None:
        return _permission(found)
    values = asdict(permission)
    del values["seq"]
    (seq,) = tx.execute(permissions.insert().values(values)).inserted_primary_key or (0,)
    return replace(permission, seq=seq)


def page(
    tx: Connection,
    project: str,
    model: str,
    *,
    granted_to: str | None,
    after: str | None,
    limit: int,
    order: Literal["ascending", "descending"],
) -> Page[Permission] | None:
    """One page in the order of creation; None when `after` is no permission of the model."""
    mine = (permissions.c.project_id == project) & (permissions.c.model == model)
    seq = permissions.c.seq
    query = select(permissions).where(mine).order_by(seq.asc() if order == "ascending" else seq.desc()).limit(limit + 1)
    if granted_to is not None:
        query = query.where(permissions.c.granted_to == granted_to)
    if after is not None:
        last = tx.scalar(select(seq).where(mine, permissions.c.id == after))
        if last is None:
            return None
        query = query.where(seq > last if order == "ascending" else seq < last)
    rows = tx.execute(query).all()
    return Page(tuple(_permission(row) for row in rows[:limit]), len(rows) > limit)


def remove(tx: Connection, project: str, model: str, permission_id: str) -> bool:
    """Whether there was one."""
    mine = (permissions.c.project_id == project) & (permissions.c.model == model)
    return bool(tx.execute(delete(permissions).where(mine, permissions.c.id == permission_id)).rowcount)


def owner(tx: Connection, guest: str, model: str) -> str | None:
    """The project that has given `guest` leave to use its model."""
    shared = select(permissions.c.project_id).join(models, models.c.id == permissions.c.model)
    return tx.scalar(
        shared.where(permissions.c.granted_to == guest, permissions.c.model == model, models.c.deleted_at.is_(None))
    )


def _permission(row: Row[Any]) -> Permission:
    return Permission(
        seq=row.seq,
        id=row.id,
        project_id=row.project_id,
        created_at=row.created_at,
        model=row.model,
        granted_to=row.granted_to,
    )
