"""Stored chat completions: rows of `completions`. A deleted one leaves nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, delete, func, select, update

from tuneway.store.schema import completions
from tuneway.types import Completion, Page

PAGE_BYTES = 16 * 2**20
"""Where a page ends before its limit: what it holds is in memory several times over."""

_SIZE = func.length(completions.c.request) + func.length(completions.c.response)


def insert(tx: Connection, completion: Completion) -> Completion | None:
    """Stores the completion and returns it with its `seq`; None when its id is taken."""
    if tx.scalar(select(completions.c.seq).where(completions.c.id == completion.id)) is not None:
        return None
    (seq,) = tx.execute(
        completions.insert().values(
            id=completion.id,
            project_id=completion.project_id,
            created_at=completion.created_at,
            model=completion.model,
            request=completion.request,
            response=completion.response,
            metadata=completion.metadata,
        )
    ).inserted_primary_key or (0,)
    return replace(completion, seq=seq)


def get(tx: Connection, project: str, completion_id: str) -> Completion | None:
    row = tx.execute(_mine(project).where(completions.c.id == completion_id)).one_or_none()
    return None if row is None else _completion(row)


def page(
    tx: Connection,
    project: str,
    *,
    after: str | None,
    limit: int,
    order: Literal["asc", "desc"],
    model: str | None,
    metadata: Mapping[str, str] | None,
) -> Page[Completion] | None:
    """One page in the order of creation; None when `after` is none of the project. `metadata` {} asks for none."""
    by_seq = completions.c.seq.asc() if order == "asc" else completions.c.seq.desc()
    query = _filtered(_mine(project), model, metadata).order_by(by_seq).limit(limit + 1)
    if after is not None:
        seq = seq_of(tx, project, after)
        if seq is None:
            return None
        query = query.where(completions.c.seq > seq if order == "asc" else completions.c.seq < seq)
    found: list[Completion] = []
    held = 0
    for row in tx.execute(query.add_columns(_SIZE.label("size"))):
        held += row.size
        if len(found) == limit or (found and held > PAGE_BYTES):
            return Page(tuple(found), has_more=True)
        found.append(_completion(row))
    return Page(tuple(found), has_more=False)


def seq_of(tx: Connection, project: str, completion_id: str) -> int | None:
    mine = select(completions.c.seq).where(completions.c.project_id == project, completions.c.id == completion_id)
    return tx.scalar(mine)


def each(
    tx: Connection,
    project: str,
    *,
    after: int,
    limit: int,
    model: str | None,
    metadata: Mapping[str, str] | None,
    ids: Sequence[str] | None,
) -> Iterator[Completion]:
    """Those whose `seq` lies behind `after`, oldest first, read one by one."""
    query = _filtered(_mine(project), model, metadata).where(completions.c.seq > after)
    if ids is not None:
        query = query.where(completions.c.id.in_(_values(ids)))
    for row in tx.execute(query.order_by(completions.c.seq).limit(limit)):
        yield _completion(row)


def unknown(tx: Connection, project: str, ids: Sequence[str]) -> str | None:
    """The first of these ids that no completion of the project has."""
    known = select(completions.c.id).where(completions.c.project_id == project, completions.c.id.in_(_values(ids)))
    found = set(tx.scalars(known))
    return next((completion_id for completion_id in ids if completion_id not in found), None)


def set_metadata(
    tx: Connection, project: str, completion_id: str, metadata: Mapping[str, str] | None
) -> Completion | None:
    """The completion with its new metadata; None when there is none."""
    tx.execute(
        update(completions)
        .where(completions.c.project_id == project, completions.c.id == completion_id)
        .values(metadata=None if metadata is None else dict(metadata))
    )
    return get(tx, project, completion_id)


def remove(tx: Connection, project: str, completion_id: str) -> bool:
    """Whether there was one."""
    mine = delete(completions).where(completions.c.project_id == project, completions.c.id == completion_id)
    return tx.execute(mine).rowcount == 1


def _mine(project: str) -> Select[Any]:
    return select(completions).where(completions.c.project_id == project)


def _filtered(query: Select[Any], model: str | None, metadata: Mapping[str, str] | None) -> Select[Any]:
    if model is not None:
        query = query.where(completions.c.model == model)
    if metadata is not None and not metadata:
        query = query.where(completions.c.metadata.is_(None))
    for key, value in (metadata or {}).items():
        pair = func.json_each(completions.c.metadata).table_valued("key", "value")  # a path would have to quote the key
        query = query.where(select(pair.c.key).where(pair.c.key == key, pair.c.value == value).exists())
    return query


def _values(ids: Sequence[str]) -> Select[Any]:
    """As one parameter: SQLite takes only so many."""
    return select(func.json_each(json.dumps(ids)).table_valued("value").c.value)


def _completion(row: Row[Any]) -> Completion:
    return Completion(
        seq=row.seq,
        id=row.id,
        project_id=row.project_id,
        created_at=row.created_at,
        model=row.model,
        request=row.request,
        response=row.response,
        metadata=row.metadata,
    )
