"""Webhooks and the outbox of what is sent to them: rows of `webhooks` and `deliveries`.

A delivery is written in the transaction that ends its job, so that an end is announced exactly when it happened. Who
sends watches the topic `OUTBOX`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, delete, func, select, update
from sqlalchemy.dialects.sqlite import insert as insert_or_ignore

from tuneway.store import tell
from tuneway.store.schema import deliveries, webhooks
from tuneway.types import Delivery, DeliveryState, Job, JobStatus, Page, Webhook

OUTBOX = "deliveries"

TYPES = {
    JobStatus.SUCCEEDED: "fine_tuning.job.succeeded",
    JobStatus.FAILED: "fine_tuning.job.failed",
    JobStatus.CANCELLED: "fine_tuning.job.cancelled",
}


@dataclass(frozen=True, slots=True)
class Due:
    """A delivery with what it takes to send it."""

    delivery: Delivery
    url: str
    sealed_secret: str


def insert(tx: Connection, webhook: Webhook, sealed_secret: str, *, most: int) -> Webhook | None:
    """Stores the webhook and returns it with its `seq`; None when its project has `most` of them already."""
    mine = select(func.count()).select_from(webhooks).where(webhooks.c.project_id == webhook.project_id)
    if (tx.scalar(mine) or 0) >= most:
        return None
    values = asdict(webhook) | {"events": list(webhook.events), "sealed_secret": sealed_secret}
    del values["seq"]
    (seq,) = tx.execute(webhooks.insert().values(values)).inserted_primary_key or (0,)
    return replace(webhook, seq=seq)


def repeated(tx: Connection, webhook: Webhook, since: int) -> tuple[Webhook, str] | None:
    """The newest webhook that was asked for in the same words, made at `since` or later, with its sealed secret."""
    query = (
        select(webhooks)
        .where(webhooks.c.project_id == webhook.project_id, webhooks.c.created_at >= since)
        .where(webhooks.c.url == webhook.url, webhooks.c.name == webhook.name)
        .order_by(webhooks.c.seq.desc())
    )
    same = (row for row in tx.execute(query) if tuple(row.events) == webhook.events)
    return next(((_webhook(row), row.sealed_secret) for row in same), None)


def get(tx: Connection, project: str, webhook_id: str) -> Webhook | None:
    found = with_secret(tx, project, webhook_id)
    return None if found is None else found[0]


def with_secret(tx: Connection, project: str, webhook_id: str) -> tuple[Webhook, str] | None:
    """The webhook and its sealed secret."""
    mine = (webhooks.c.project_id == project) & (webhooks.c.id == webhook_id)
    row = tx.execute(select(webhooks).where(mine)).one_or_none()
    return None if row is None else (_webhook(row), row.sealed_secret)


def every(tx: Connection, project: str) -> list[Webhook]:
    """Those of the project, newest first."""
    query = select(webhooks).where(webhooks.c.project_id == project).order_by(webhooks.c.seq.desc())
    return [_webhook(row) for row in tx.execute(query)]


def remove(tx: Connection, project: str, webhook_id: str) -> bool:
    """Deletes the webhook with its secret and its deliveries; whether there was one."""
    mine = (webhooks.c.project_id == project) & (webhooks.c.id == webhook_id)
    if tx.execute(delete(webhooks).where(mine)).rowcount == 0:
        return False
    tx.execute(delete(deliveries).where(deliveries.c.webhook_id == webhook_id))
    return True


# ---------------------------------------------------------------------------------------------------------- deliveries


def announce(tx: Connection, job: Job) -> None:
    """Puts the end of a job into the outbox, for every webhook of its project that wants it; once, however often asked.

    A job that has not ended is not announced.
    """
    kind = TYPES.get(job.status)
    if kind is None:
        return
    # Ids from natural keys, so that an end that is announced twice is one event, whose deliveries are there already.
    event_id = f"evt_{_hash(job.id, kind)}"
    now = int(time.time())  # of the transaction that ends the job: whoever ends it tells no time
    for webhook in every(tx, job.project_id):
        if kind in webhook.events:
            delivery = Delivery(
                seq=0,
                id=f"wh_{_hash(event_id, webhook.id)}",
                project_id=job.project_id,
                created_at=now,
                webhook_id=webhook.id,
                event_id=event_id,
                type=kind,
                body=event_body(event_id, kind, now, job.id),
                state=DeliveryState.PENDING,
                attempts=0,
                next_at=now,
            )
            tx.execute(insert_or_ignore(deliveries).values(_values(delivery)).on_conflict_do_nothing())
            tell(tx, OUTBOX)


def event_body(event_id: str, kind: str, created_at: int, about: str) -> str:
    """The thin body of OpenAI's webhooks: what happened to the thing of this id; who wants more asks for it."""
    event = {"object": "event", "id": event_id, "type": kind, "created_at": created_at, "data": {"id": about}}
    return json.dumps(event, separators=(",", ":"))


def insert_delivery(tx: Connection, delivery: Delivery) -> Delivery:
    """Stores the delivery as it is and returns it with its `seq`."""
    (seq,) = tx.execute(deliveries.insert().values(_values(delivery))).inserted_primary_key or (0,)
    return replace(delivery, seq=seq)


PER_PROJECT = 2
"""Attempts of one project that are under way at a time: its slow receivers hold up no other project's."""


def due(tx: Connection, now: int, *, busy: Mapping[str, str], limit: int) -> list[Due]:
    """Of the deliveries whose time has come the oldest of every webhook that is not `busy`, at most `limit`.

    `busy` maps the webhooks with an attempt under way to their projects, none of which gets more than PER_PROJECT.
    """
    waiting = (deliveries.c.state == DeliveryState.PENDING) & (deliveries.c.next_at <= now)
    first = (
        select(func.min(deliveries.c.seq).label("seq"), deliveries.c.project_id)
        .where(waiting, deliveries.c.webhook_id.not_in(busy))
        .group_by(deliveries.c.webhook_id, deliveries.c.project_id)
        .order_by(func.min(deliveries.c.next_at))
    )
    under_way = Counter(busy.values())
    chosen: list[int] = []
    for row in tx.execute(first):
        if len(chosen) < limit and under_way[row.project_id] < PER_PROJECT:
            under_way[row.project_id] += 1
            chosen.append(row.seq)
    query = (
        select(deliveries, webhooks.c.url, webhooks.c.sealed_secret)
        .join(webhooks, webhooks.c.id == deliveries.c.webhook_id)
        .where(deliveries.c.seq.in_(chosen))
    )
    return [Due(_delivery(row), row.url, row.sealed_secret) for row in tx.execute(query)]


def attempted(tx: Connection, delivery: Delivery) -> None:
    """Stores what became of an attempt; nothing when the webhook was deleted meanwhile."""
    changed = ("state", "attempts", "next_at", "last_status", "last_error", "delivered_at")
    values = {name: getattr(delivery, name) for name in changed}
    tx.execute(update(deliveries).where(deliveries.c.seq == delivery.seq).values(values))


def delivery_page(
    tx: Connection, webhook: Webhook, *, after: str | None, limit: int, state: DeliveryState | None
) -> Page[Delivery] | None:
    """One page, newest first; None when `after` is no delivery of the webhook."""
    mine = deliveries.c.webhook_id == webhook.id
    query = select(deliveries).where(mine).order_by(deliveries.c.seq.desc()).limit(limit + 1)
    if state is not None:
        query = query.where(deliveries.c.state == state)
    if after is not None:
        seq = tx.scalar(select(deliveries.c.seq).where(mine, deliveries.c.id == after))
        if seq is None:
            return None
        query = query.where(deliveries.c.seq < seq)
    rows = tx.execute(query).all()
    return Page(tuple(_delivery(row) for row in rows[:limit]), len(rows) > limit)


def forget(tx: Connection, before: int) -> None:
    """Deletes the deliveries that were made before then and are not pending."""
    old = (deliveries.c.created_at < before) & (deliveries.c.state != DeliveryState.PENDING)
    tx.execute(delete(deliveries).where(old))


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _values(delivery: Delivery) -> dict[str, Any]:
    values = asdict(delivery)
    del values["seq"]
    return values


def _webhook(row: Row[Any]) -> Webhook:
    return Webhook(
        seq=row.seq,
        id=row.id,
        project_id=row.project_id,
        created_at=row.created_at,
        name=row.name,
        url=row.url,
        events=tuple(row.events),
    )


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(
        seq=row.seq,
        id=row.id,
        project_id=row.project_id,
        created_at=row.created_at,
        webhook_id=row.webhook_id,
        event_id=row.event_id,
        type=row.type,
        body=row.body,
        state=DeliveryState(row.state),
        attempts=row.attempts,
        next_at=row.next_at,
        last_status=row.last_status,
        last_error=row.last_error,
        delivered_at=row.delivered_at,
    )
