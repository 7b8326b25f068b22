"""The webhooks service: who is told of the end of a job, and the sender that empties the outbox.

Deliveries are signed as Standard Webhooks asks (https://www.standardwebhooks.com) and arrive at least once: the sender
stores what came of an attempt after it was made, so that one which a crash cut off is made again, under the same id.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging
import random
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime

from tuneway import __version__, ids
from tuneway.errors import InvalidRequest, UpstreamError, WebhookNotFound
from tuneway.outbound import Outbound
from tuneway.store import Store
from tuneway.store import webhooks as rows
from tuneway.types import FIRST_TRY, Delivery, DeliveryState, Origin, Page, Webhook
from tuneway.vault import Vault

EVENTS = tuple(rows.TYPES.values())
TEST_EVENT = "tuneway.test"
MOST = 32
"""Webhooks of one project."""
RETRY_SECONDS = 15 * 60
"""How long after a create its retry is known as one."""

DELAYS = (1, 5, 30, 120, 600, 1800, 3600, 7200, 10800)
"""Seconds before each next attempt; the last one stays. Jitter adds up to a quarter."""
GIVE_UP_SECONDS = 24 * 3600
KEPT_SECONDS = 30 * 24 * 3600
FORGET_SECONDS = 3600
POLL_SECONDS = 1.0
UNSTORED_SECONDS = 60
"""How long a webhook rests when the disk is full: what it was sent cannot be noted, so it will get it again."""
AT_ONCE = 8
"""Attempts under way; one to a webhook, so that a slow receiver holds up its own deliveries only."""
_GONE = 410

_PREFIX = "whsec_"
_SECRET_BYTES = 32

log = logging.getLogger("tuneway.webhooks")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one attempt. `retry_after` is in seconds; `error` names no URL."""

    status: int | None
    error: str | None
    retry_after: int = 0


class Webhooks:
    """`clock` tells unix seconds."""

    def __init__(
        self,
        store: Store,
        vault: Vault,
        outbound: Outbound,
        *,
        delays: Sequence[int] = DELAYS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._vault = vault
        self._outbound = outbound
        self._delays = delays
        self._clock = clock
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._busy: dict[str, str] = {}
        """Webhooks with an attempt under way, and their projects."""
        """By webhook."""

    async def create(
        self, project: str, url: str, events: Sequence[str] = EVENTS, name: str = "", origin: Origin = FIRST_TRY
    ) -> tuple[Webhook, str]:
        """A new webhook and its secret, which is shown this once only; a retry gets the first one's again.

        Raises InvalidRequest: a URL that the gateway may not connect to, or MOST webhooks there already.
        """
        self._outbound.check(url)
        now = self._now()
        wanted = tuple(kind for kind in EVENTS if kind in events)
        webhook = Webhook(0, ids.hex32("we_"), project, now, name, url, wanted)
        if origin.retry > 0:
            first = await self._store.read(rows.repeated, webhook, now - RETRY_SECONDS)
            if first is not None:
                # One that cannot be read any more (vault.key was exchanged) is of no use: the retry makes another.
                with suppress(ValueError):
                    return first[0], self._vault.unseal(first[1], owner=first[0].id)
        secret = _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
        sealed = self._vault.seal(secret, owner=webhook.id)
        stored = await self._store.write(rows.insert, webhook, sealed, most=MOST)
        if stored is None:
            raise InvalidRequest(f"The project has {MOST} webhooks already. Delete one that is not needed.")
        return stored, secret

    async def list(self, project: str) -> Sequence[Webhook]:
        """Newest first."""
        return await self._store.read(rows.every, project)

    async def get(self, project: str, webhook_id: str) -> Webhook:
        """Raises WebhookNotFound."""
        webhook = await self._store.read(rows.get, project, webhook_id)
        if webhook is None:
            raise WebhookNotFound(webhook_id)
        return webhook

    async def delete(self, project: str, webhook_id: str) -> None:
        """Also ends its deliveries. Raises WebhookNotFound."""
        if not await self._store.write(rows.remove, project, webhook_id):
            raise WebhookNotFound(webhook_id)

    async def deliveries(
        self, project: str, webhook_id: str, *, after: str | None, limit: int, state: DeliveryState | None
    ) -> Page[Delivery]:
        """Newest first. Raises WebhookNotFound, and InvalidRequest when `after` is no delivery of the webhook."""
        webhook = await self.get(project, webhook_id)
        page = await self._store.read(rows.delivery_page, webhook, after=after, limit=limit, state=state)
        if page is None:
            raise InvalidRequest(f"There is no delivery {after!r} to continue after.", param="after")
        return page

    async def test(self, project: str, webhook_id: str) -> Delivery:
        """Sends a test event now, whatever events the webhook wants, and once only: returns what came of it.

        Raises WebhookNotFound.
        """
        found = await self._store.read(rows.with_secret, project, webhook_id)
        if found is None:
            raise WebhookNotFound(webhook_id)
        webhook, sealed = found
        now = self._now()
        event_id = ids.hex32("evt_")
        delivery = Delivery(
            seq=0,
            id=ids.hex32("wh_"),
            project_id=project,
            created_at=now,
            webhook_id=webhook.id,
            event_id=event_id,
            type=TEST_EVENT,
            body=rows.event_body(event_id, TEST_EVENT, now, webhook.id),
            state=DeliveryState.PENDING,
            attempts=0,
            next_at=now,
        )
        outcome = await self._send(rows.Due(delivery, webhook.url, sealed))
        done = self._after(delivery, outcome)
        if done.state is DeliveryState.PENDING:
            done = replace(done, state=DeliveryState.FAILED)
        return await self._store.write(rows.insert_delivery, done)

    # ------------------------------------------------------------------------------------------------------ the sender

    async def run(self) -> None:
        """Sends what is due until it is cancelled; what is under way then is sent again at the next start."""
        forgotten = float("-inf")
        try:
            with self._store.watch(rows.OUTBOX) as news:
                while True:
                    news.clear()
                    try:
                        await self._start_due(news)
                        now = self._clock()
                        if now - forgotten >= FORGET_SECONDS:
                            await self._store.write(rows.forget, int(now) - KEPT_SECONDS)
                            forgotten = now
                    except Exception:
                        log.exception("the outbox could not be read; trying again")
                    with suppress(TimeoutError):
                        await asyncio.wait_for(news.wait(), POLL_SECONDS)
        finally:
            tasks = list(self._sending.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _start_due(self, news: asyncio.Event) -> None:
        free = AT_ONCE - len(self._sending)
        if free <= 0:
            return
        for due in await self._store.read(rows.due, self._now(), busy=dict(self._busy), limit=free):
            webhook = due.delivery.webhook_id
            self._busy[webhook] = due.delivery.project_id

            def done(_: asyncio.Task[None], webhook: str = webhook) -> None:
                del self._sending[webhook], self._busy[webhook]
                news.set()

            task = asyncio.create_task(self._deliver(due))
            self._sending[webhook] = task
            task.add_done_callback(done)

    async def _deliver(self, due: rows.Due) -> None:
        try:
            outcome = await self._send(due)
        except Exception:
            log.exception("delivery %s failed", due.delivery.id)
            outcome = Outcome(None, "The gateway made a mistake; its log has the details.")
        done = self._after(due.delivery, outcome)
        level = logging.INFO if done.state is DeliveryState.DELIVERED else logging.WARNING
        where = (done.id, done.type, done.webhook_id)
        log.log(level, "delivery %s of %s to %s: %s", *where, outcome.error or done.state)
        try:
            await self._store.write(rows.attempted, done)
        except Exception:
            log.exception("what came of delivery %s could not be stored; it is sent again", done.id)
            await asyncio.sleep(UNSTORED_SECONDS)

    async def _send(self, due: rows.Due) -> Outcome:
        delivery = due.delivery
        try:
            secret = self._vault.unseal(due.sealed_secret, owner=delivery.webhook_id)
        except ValueError:
            return Outcome(
                None, "The secret cannot be read: the gateway's vault.key was lost. Create the webhook anew."
            )
        headers = signed(secret, delivery.id, self._now(), delivery.body)
        try:
            answer = await self._outbound.post(due.url, delivery.body.encode(), headers)
        except UpstreamError as error:
            return Outcome(None, error.message)
        if 200 <= answer.status < 300:
            return Outcome(answer.status, None)
        followed = ", which is not followed" if 300 <= answer.status < 400 else ""
        wait = _seconds(answer.headers.get("retry-after", ""), self._now())
        return Outcome(answer.status, f"The receiver answered with status {answer.status}{followed}.", wait)

    def _after(self, delivery: Delivery, outcome: Outcome) -> Delivery:
        """The delivery behind an attempt: delivered, failed for good, or with the time of the next attempt."""
        now = self._now()
        tried = replace(delivery, attempts=delivery.attempts + 1, last_status=outcome.status, last_error=outcome.error)
        if outcome.error is None:
            return replace(tried, state=DeliveryState.DELIVERED, delivered_at=now)
        delay = self._delays[min(delivery.attempts, len(self._delays) - 1)]
        # Receivers that went down together would else be asked together.
        delay = round(delay * random.uniform(1, 1.25))  # noqa: S311 (nothing secret)
        # A receiver may ask for more time, but not for so much that it is as good as forgotten.
        next_at = now + max(delay, min(outcome.retry_after, self._delays[-1]))
        if outcome.status == _GONE or next_at > delivery.created_at + GIVE_UP_SECONDS:
            return replace(tried, state=DeliveryState.FAILED)
        return replace(tried, next_at=next_at)

    def _now(self) -> int:
        return int(self._clock())


def signed(secret: str, delivery_id: str, now: int, body: str) -> dict[str, str]:
    """The headers of one attempt. `secret` is `whsec_` and base64; `now` is in unix seconds."""
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    signature = hmac.digest(key, f"{delivery_id}.{now}.{body}".encode(), "sha256")
    return {
        "content-type": "application/json",
        "user-agent": f"Tuneway/{__version__}",
        "webhook-id": delivery_id,
        "webhook-timestamp": str(now),
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
    }


def _seconds(retry_after: str, now: int) -> int:
    """What a Retry-After asks for, in either of its forms; 0 for none that can be read."""
    if retry_after.isascii() and retry_after.isdecimal():
        return int(retry_after[:9])
    try:
        return max(0, int(parsedate_to_datetime(retry_after).timestamp()) - now)
    except (ValueError, TypeError, OverflowError):
        return 0
