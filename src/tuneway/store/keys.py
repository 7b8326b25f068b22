"""Keys of this gateway: rows of `keys`. A revoked one keeps its row."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import Connection, Row, select, update

from tuneway.store.schema import accounts, keys, webhooks
from tuneway.types import Key, Scope


def insert(tx: Connection, key: Key, hmac: str) -> Key:
    """Stores the key by its HMAC and returns it with its `seq`."""
    values = asdict(key) | {"hmac": hmac, "scopes": sorted(key.scopes)}
    del values["seq"]
    (seq,) = tx.execute(keys.insert().values(values)).inserted_primary_key or (0,)
    return replace(key, seq=seq)


def by_hmac(tx: Connection, hmac: str) -> Key | None:
    """The key, of whichever project, revoked or expired ones too."""
    row = tx.execute(select(keys).where(keys.c.hmac == hmac)).one_or_none()
    return None if row is None else _key(row)


def every(tx: Connection, project: str | None) -> list[Key]:
    """The keys of a project, or (None) of all, newest first."""
    query = select(keys).order_by(keys.c.seq.desc())
    if project is not None:
        query = query.where(keys.c.project_id == project)
    return [_key(row) for row in tx.execute(query)]


def depend_on_vault(tx: Connection) -> bool:
    """Whether anything is stored that only the vault's secret makes usable."""
    return any(tx.execute(select(table.c.seq).limit(1)).first() for table in (keys, webhooks, accounts))


def revoke(tx: Connection, project: str | None, key_id: str, now: int) -> Key | None:
    """Ends the key, for good; None when there is none. Revoking it again changes nothing."""
    mine = keys.c.id == key_id
    if project is not None:
        mine &= keys.c.project_id == project
    tx.execute(update(keys).where(mine, keys.c.revoked_at.is_(None)).values(revoked_at=now))
    row = tx.execute(select(keys).where(mine)).one_or_none()
    return None if row is None else _key(row)


def _key(row: Row[Any]) -> Key:
    return Key(
        seq=row.seq,
        id=row.id,
        project_id=row.project_id,
        created_at=row.created_at,
        name=row.name,
        hint=row.hint,
        scopes=frozenset(Scope(scope) for scope in row.scopes),
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
