"""Accounts at vendors, and what was sent to them: rows of `accounts` and `sent_files`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, delete, select
from sqlalchemy.dialects.sqlite import insert as insert_or_ignore

from tuneway.store.schema import accounts, sent_files
from tuneway.types import Account


def insert(tx: Connection, project: str, account_id: str, account: Account, sealed_secrets: str) -> bool:
    """Stores the account; False when there is one of its name."""
    values = {
        "id": account_id,
        "project_id": project,
        "created_at": account.created_at,
        "name": account.name,
        "kind": account.kind,
        "options": dict(account.options),
        "sealed_secrets": sealed_secrets,
    }
    statement = insert_or_ignore(accounts).values(values).on_conflict_do_nothing(index_elements=["name"])
    return bool(tx.execute(statement).rowcount)


def every(tx: Connection) -> list[tuple[Account, str, str]]:
    """Each account with its row's id and its sealed secrets, oldest first."""
    return [
        (_account(row), row.id, row.sealed_secrets) for row in tx.execute(select(accounts).order_by(accounts.c.seq))
    ]


def remove(tx: Connection, name: str) -> bool:
    return bool(tx.execute(delete(accounts).where(accounts.c.name == name)).rowcount)


def sent(tx: Connection, provider: str, sha256: str, form: str) -> str | None:
    """The provider's id of these bytes; None when they were never sent."""
    return tx.scalar(
        select(sent_files.c.upstream_file_id).where(
            sent_files.c.provider == provider, sent_files.c.sha256 == sha256, sent_files.c.form == form
        )
    )


def remember_sent(
    tx: Connection, project: str, row_id: str, now: int, *, provider: str, sha256: str, form: str, upstream: str
) -> None:
    """Notes what the provider calls these bytes, in place of what it called them before."""
    values = {
        "id": row_id,
        "project_id": project,
        "created_at": now,
        "provider": provider,
        "sha256": sha256,
        "form": form,
        "upstream_file_id": upstream,
    }
    statement = insert_or_ignore(sent_files).values(values)
    tx.execute(
        statement.on_conflict_do_update(
            index_elements=["provider", "sha256", "form"],
            set_={"upstream_file_id": statement.excluded.upstream_file_id},
        )
    )


def forget_sent(tx: Connection, provider: str) -> None:
    """An account that is added under an old name knows nothing of what the old one was sent."""
    tx.execute(delete(sent_files).where(sent_files.c.provider == provider))


def _account(row: Row[Any]) -> Account:
    return Account(row.name, row.kind, row.options, origin="store", created_at=row.created_at)
