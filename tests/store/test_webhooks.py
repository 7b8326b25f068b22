"""The outbox: written with the end of a job or not at all, and tried for a day."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.store.test_jobs import PROJECT, new_job
from tuneway.errors import OutboundFailed
from tuneway.outbound import Answer, Outbound
from tuneway.store import Store, Tx, jobs
from tuneway.store import webhooks as rows
from tuneway.types import Delivery, DeliveryState, Job, JobStatus, NewEvent, Webhook
from tuneway.vault import Vault
from tuneway.webhooks import DELAYS, EVENTS, GIVE_UP_SECONDS, KEPT_SECONDS, Webhooks

URL = "https://hooks.example.com/t0psecret"
CANCELLED = NewEvent("cancelled", "", 1)


class Clock:
    now = 1_800_000_000

    def __call__(self) -> float:
        return self.now


class StubOutbound(Outbound):
    """Sends nothing; answers the same every time."""

    def __init__(self, answer: Answer | None) -> None:
        super().__init__(["*"])
        self.answer = answer
        self.sent: list[Mapping[str, str]] = []

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        self.sent.append(headers)
        if self.answer is None:
            raise OutboundFailed("hooks.example.com did not answer in time.")
        return self.answer


class World:
    """A service with a clock of its own, one webhook of the project, and one job that is cancelled."""

    def __init__(self, store: Store, folder: Path, answer: Answer | None) -> None:
        self.store = store
        self.clock = Clock()
        self.outbound = StubOutbound(answer)
        vault = Vault(folder / "vault.key")
        vault.open(create=True)
        self.service = Webhooks(store, vault, self.outbound, clock=self.clock)
        self.webhook: Webhook

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.webhook, _ = await self.service.create(PROJECT, URL)
        await end_a_job(self.store)
        (delivery,) = await self.deliveries()
        self.clock.now = delivery.created_at
        task = asyncio.create_task(self.service.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def deliveries(self) -> tuple[Delivery, ...]:
        page = await self.service.deliveries(PROJECT, self.webhook.id, after=None, limit=100, state=None)
        return page.data

    async def attempt(self, number: int) -> Delivery:
        """The delivery after its attempt of this number."""
        while True:
            self.store.wake_all()
            (delivery,) = await self.deliveries()
            if delivery.attempts == number:
                return delivery
            await asyncio.sleep(0.005)


async def end_a_job(store: Store) -> Job:
    job = await store.write(jobs.insert, new_job(), [])
    ended = await store.write(jobs.cancel, PROJECT, job.id, CANCELLED)
    assert ended is not None
    return ended


def stored(store: Store, project: str = PROJECT) -> Webhook:
    made = Webhook(0, f"we_{project}", project, 1, "", URL, EVENTS)
    webhook = asyncio.run(store.write(rows.insert, made, "sealed", most=9))
    assert webhook is not None
    return webhook


def outbox(store: Store, webhook: Webhook) -> tuple[Delivery, ...]:
    page = asyncio.run(store.read(rows.delivery_page, webhook, after=None, limit=100, state=None))
    assert page is not None
    return page.data


def test_an_end_is_announced_once_and_to_its_own_project(store: Store) -> None:
    webhook, foreign = stored(store), stored(store, "another")
    job = asyncio.run(store.write(jobs.insert, new_job(), []))
    running = asyncio.run(store.write(jobs.change, job, status=JobStatus.RUNNING))
    assert outbox(store, webhook) == ()
    ended = asyncio.run(store.write(jobs.change, running, status=JobStatus.SUCCEEDED))
    asyncio.run(store.write(rows.announce, ended))
    (delivery,) = outbox(store, webhook)
    assert (delivery.type, delivery.state) == ("fine_tuning.job.succeeded", DeliveryState.PENDING)
    assert outbox(store, foreign) == ()


def test_an_end_that_is_not_stored_is_not_announced(store: Store) -> None:
    webhook = stored(store)
    job = asyncio.run(store.write(jobs.insert, new_job(), []))

    def cut_off(tx: Tx) -> None:
        jobs.change(tx, job, status=JobStatus.FAILED)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        asyncio.run(store.write(cut_off))
    assert outbox(store, webhook) == ()


def test_one_project_does_not_take_all_places(store: Store) -> None:
    for number in range(5):
        made = Webhook(0, f"we_{number}", PROJECT, 1, "", URL, EVENTS)
        assert asyncio.run(store.write(rows.insert, made, "sealed", most=9)) is not None
    asyncio.run(end_a_job(store))

    def due(busy: dict[str, str]) -> int:
        return len(asyncio.run(store.read(rows.due, 1 << 40, busy=busy, limit=9)))

    assert due({}) == rows.PER_PROJECT
    assert due({"we_0": PROJECT}) == rows.PER_PROJECT - 1
    assert due({"we_0": PROJECT, "we_1": PROJECT}) == 0
    assert due({"we_x": "another", "we_y": "another"}) == rows.PER_PROJECT


def test_a_deleted_webhook_leaves_nothing(store: Store) -> None:
    webhook = stored(store)
    asyncio.run(end_a_job(store))
    (delivery,) = outbox(store, webhook)
    assert asyncio.run(store.write(rows.remove, "another", webhook.id)) is False
    assert asyncio.run(store.write(rows.remove, PROJECT, webhook.id)) is True
    assert asyncio.run(store.read(rows.due, delivery.next_at, busy={}, limit=9)) == []
    asyncio.run(store.write(rows.attempted, delivery))
    assert outbox(store, webhook) == ()


def test_a_delivery_is_tried_for_a_day(store: Store, tmp_path: Path) -> None:
    async def main() -> None:
        world = World(store, tmp_path, None)
        async with world.running():
            number, waits = 1, []
            while (delivery := await world.attempt(number)).state is DeliveryState.PENDING:
                waits.append(delivery.next_at - world.clock.now)
                world.clock.now = delivery.next_at
                number += 1
            assert delivery.state is DeliveryState.FAILED
            assert delivery.last_error == "hooks.example.com did not answer in time."
            for place, wait in enumerate(waits):
                delay = DELAYS[min(place, len(DELAYS) - 1)]
                assert delay <= wait <= round(delay * 1.25)
            # The next attempt would have come too late.
            assert GIVE_UP_SECONDS - DELAYS[-1] * 1.25 <= sum(waits) <= GIVE_UP_SECONDS
            assert len({headers["webhook-id"] for headers in world.outbound.sent}) == 1
            assert len({headers["webhook-timestamp"] for headers in world.outbound.sent}) == number

    asyncio.run(main())


@pytest.mark.parametrize(
    ("asked", "wait"),
    [
        ("120", 120),
        ("999999", DELAYS[-1]),
        ("date", 300),
        ("0", None),
        ("soon", None),
        ("9" * 5000, DELAYS[-1]),
    ],
)
def test_retry_after(store: Store, tmp_path: Path, asked: str, wait: int | None) -> None:
    async def main() -> None:
        world = World(store, tmp_path, None)
        async with world.running():
            value = formatdate(world.clock.now + 300, usegmt=True) if asked == "date" else asked
            world.outbound.answer = Answer(429, b"", {"retry-after": value})
            delivery = await world.attempt(1)
            assert delivery.last_status == 429
            waited = delivery.next_at - world.clock.now
            assert waited == wait if wait is not None else waited <= 2

    asyncio.run(main())


def test_old_deliveries_are_forgotten(store: Store, tmp_path: Path) -> None:
    async def main() -> None:
        world = World(store, tmp_path, Answer(204, b"", {}))
        async with world.running():
            assert (await world.attempt(1)).state is DeliveryState.DELIVERED
            world.clock.now += KEPT_SECONDS - 60
            sent = await world.service.test(PROJECT, world.webhook.id)
            assert len(await world.deliveries()) == 2
            world.clock.now += 3600
            while await world.deliveries() != (sent,):
                world.store.wake_all()
                await asyncio.sleep(0.005)

    asyncio.run(main())
