"""The guards that the worker leans on: final states, fencing tokens, claims within the slots, events once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tuneway import ids
from tuneway.store import Store, jobs
from tuneway.types import Desired, Job, JobHandle, JobSpec, JobStatus, NewEvent

PROJECT = "default"


def new_job(status: JobStatus = JobStatus.VALIDATING_FILES, **spec: Any) -> Job:
    return Job(
        seq=0,
        id=ids.job_id(),
        project_id=PROJECT,
        created_at=1_800_000_000,
        spec=JobSpec(model="base", training_file="file-a", provider="local", **spec),
        status=status,
        training_sha256="a" * 64,
        planned_model="ft:base:default::abcdefgh",
        placement="local",
    )


@pytest.fixture
def insert(store: Store) -> Callable[..., Job]:
    def insert(*args: Any, **kwargs: Any) -> Job:
        return asyncio.run(store.write(jobs.insert, new_job(*args, **kwargs), []))

    return insert


def claim(store: Store, *, now: int = 1000, owner: str = "me", slots: int = 1, **more: Any) -> list[Job]:
    options = {"placement": "local", "owner": owner, "now": now, "lease": 30, "slots": slots, "checks": 2, **more}
    return asyncio.run(store.write(lambda tx: jobs.claim(tx, **options)))


def test_a_job_comes_back_as_it_was_stored(store: Store) -> None:
    job = new_job(metadata={"team": "a"}, suffix="x", seed=7)
    stored = asyncio.run(store.write(jobs.insert, job, []))
    assert asyncio.run(store.read(jobs.get, PROJECT, job.id)) == replace(job, seq=stored.seq)
    assert asyncio.run(store.read(jobs.get, "another project", job.id)) is None


def test_terminal_states_are_final(store: Store, insert: Callable[..., Job]) -> None:
    job = insert()
    cancelled = asyncio.run(store.write(jobs.cancel, PROJECT, job.id, NewEvent("cancelled", "", 1)))
    assert cancelled is not None
    with pytest.raises(jobs.Stale):
        asyncio.run(store.write(jobs.change, job, [NewEvent("late", "", 1)], status=JobStatus.SUCCEEDED))
    assert asyncio.run(store.write(jobs.cancel, PROJECT, job.id, NewEvent("again", "", 1))) is None
    page = asyncio.run(store.read(jobs.event_page, PROJECT, job.id, after=None, limit=10))
    assert page is not None
    assert [event.key for event in page.data] == ["cancelled"]


def test_a_worker_that_lost_its_lease_stores_nothing(store: Store, insert: Callable[..., Job]) -> None:
    insert()
    (first,) = claim(store, now=1000)
    (second,) = claim(store, now=1031, owner="another")
    with pytest.raises(jobs.Stale):
        asyncio.run(store.write(jobs.change, first, status=JobStatus.QUEUED))
    assert asyncio.run(store.write(jobs.change, second, status=JobStatus.QUEUED)).status is JobStatus.QUEUED


def test_claims_stay_within_the_slots_first_come_first(store: Store, insert: Callable[..., Job]) -> None:
    first, second, third = insert(JobStatus.QUEUED), insert(JobStatus.QUEUED), insert(JobStatus.QUEUED)
    assert [job.id for job in claim(store, slots=2)] == [first.id, second.id]
    assert claim(store, slots=2) == []
    assert asyncio.run(store.read(jobs.queue_position, third)) == 3


def test_a_started_job_keeps_its_slot_until_it_holds_nothing(store: Store, insert: Callable[..., Job]) -> None:
    first, second = insert(JobStatus.QUEUED), insert(JobStatus.QUEUED)
    (claimed,) = claim(store)
    asyncio.run(store.write(jobs.hold, claimed, JobHandle("local", claimed.id)))
    asyncio.run(store.write(jobs.cancel, PROJECT, first.id, NewEvent("cancelled", "", 1)))
    asyncio.run(store.write(jobs.release, claimed))
    assert [job.id for job in claim(store)] == [first.id]  # to be stopped; its slot is not free yet
    asyncio.run(store.write(jobs.let_go, claimed))
    assert [job.id for job in claim(store)] == [second.id]


def test_a_clock_that_jumps_claims_nothing_twice(store: Store, insert: Callable[..., Job]) -> None:
    job = insert(JobStatus.RUNNING)
    assert [found.id for found in claim(store, now=1000)] == [job.id]
    assert claim(store, now=9000, carried=[job.id]) == []
    assert [found.id for found in claim(store, now=9000)] == [job.id]


def test_a_job_that_waits_for_its_next_try_holds_no_place(store: Store, insert: Callable[..., Job]) -> None:
    first, second, third = insert(), insert(), insert()
    for job in claim(store, checks=2):
        asyncio.run(store.write(jobs.release, job, until=2000))
    assert [job.id for job in claim(store, checks=2)] == [third.id]
    assert [job.id for job in claim(store, now=2000, checks=2)] == [first.id, second.id]


def test_every_ended_job_is_released_once(store: Store, insert: Callable[..., Job]) -> None:
    job = insert()
    asyncio.run(store.write(jobs.cancel, PROJECT, job.id, NewEvent("cancelled", "", 1)))
    (claimed,) = claim(store)
    asyncio.run(store.write(jobs.let_go, claimed))
    asyncio.run(store.write(jobs.release, claimed))
    assert claim(store, now=9000) == []


def test_an_intended_launch_is_seen_until_it_is_confirmed(store: Store, insert: Callable[..., Job]) -> None:
    job, other = insert(JobStatus.QUEUED), insert(JobStatus.QUEUED)
    asyncio.run(store.write(jobs.intend, job, ids.effect_id(), 1))
    assert asyncio.run(store.read(jobs.intended, job))
    assert not asyncio.run(store.read(jobs.intended, other))
    assert [found.id for found in claim(store)] == [job.id]
    asyncio.run(store.write(jobs.hold, job, JobHandle("local", job.id)))
    assert not asyncio.run(store.read(jobs.intended, job))


def test_a_cancelled_job_with_an_open_launch_is_claimed_to_be_stopped(store: Store, insert: Callable[..., Job]) -> None:
    job = insert(JobStatus.QUEUED)
    asyncio.run(store.write(jobs.intend, job, ids.effect_id(), 1))
    asyncio.run(store.write(jobs.cancel, PROJECT, job.id, NewEvent("cancelled", "", 1)))
    assert [found.id for found in claim(store)] == [job.id]


def test_events_are_stored_once_and_listed_newest_first(store: Store, insert: Callable[..., Job]) -> None:
    job = insert()
    events = [NewEvent(f"step:{n}", f"Step {n}", 1) for n in range(5)]
    asyncio.run(store.write(jobs.add_events, job, events[:3]))
    asyncio.run(store.write(jobs.add_events, job, events))
    page = asyncio.run(store.read(jobs.event_page, PROJECT, job.id, after=None, limit=3))
    assert page is not None
    assert [event.key for event in page.data] == ["step:4", "step:3", "step:2"]
    assert page.has_more
    rest = asyncio.run(store.read(jobs.event_page, PROJECT, job.id, after=page.data[-1].id, limit=3))
    assert rest is not None
    assert [event.key for event in rest.data] == ["step:1", "step:0"]
    assert not rest.has_more
    assert asyncio.run(store.read(jobs.event_page, PROJECT, job.id, after="ftevent-none", limit=3)) is None


def test_jobs_are_filtered_by_metadata(store: Store, insert: Callable[..., Job]) -> None:
    plain = insert()
    ours = insert(metadata={"team": "ours", 'k".$': 'quo"te'})

    def listed(metadata: dict[str, str] | None) -> list[str]:
        page = asyncio.run(store.read(jobs.page, PROJECT, after=None, limit=10, metadata=metadata))
        assert page is not None
        return [job.id for job in page.data]

    assert listed(None) == [ours.id, plain.id]
    assert listed({"team": "ours", 'k".$': 'quo"te'}) == [ours.id]
    assert listed({"team": "theirs"}) == []
    assert listed({}) == [plain.id]


def test_what_runs_after_the_commit_does_not_run_when_it_fails(store: Store) -> None:
    from tuneway.store import after_commit

    ran = []

    def good(tx: Any) -> None:
        after_commit(tx, lambda: ran.append("good"))

    def bad(tx: Any) -> None:
        after_commit(tx, lambda: ran.append("bad"))
        raise LookupError

    with pytest.raises(LookupError):
        asyncio.run(store.write(bad))
    asyncio.run(store.write(good))
    assert ran == ["good"]


def test_readers_cannot_write(store: Store) -> None:
    with pytest.raises(Exception, match="readonly"):
        asyncio.run(store.read(jobs.insert, new_job(), []))


# ----------------------------------------------------------------------------------------- pause, resume, retries, news


def paused(store: Store, job: Job) -> Job:
    return asyncio.run(store.write(jobs.pause, job, NewEvent(ids.base62(8), "", 1)))


def resumed(store: Store, job: Job) -> Job:
    return asyncio.run(store.write(jobs.resume, job, NewEvent(ids.base62(8), "", 1)))


def test_a_paused_job_is_out_of_its_workers_hands(store: Store, insert: Callable[..., Job]) -> None:
    insert(JobStatus.QUEUED)
    (carried,) = claim(store)
    assert paused(store, carried).status is JobStatus.PAUSED
    for late in (
        lambda tx: jobs.intend(tx, carried, ids.effect_id(), 1),
        lambda tx: jobs.change(tx, carried, status=JobStatus.RUNNING),
    ):
        with pytest.raises(jobs.Stale):
            asyncio.run(store.write(late))
    assert claim(store, now=9000) == []


def test_nothing_is_launched_of_a_job_that_shall_pause(store: Store, insert: Callable[..., Job]) -> None:
    job = insert(JobStatus.RUNNING)
    stopping = paused(store, job)
    assert (stopping.status, stopping.desired) == (JobStatus.RUNNING, Desired.PAUSE)
    with pytest.raises(jobs.Stale):
        asyncio.run(store.write(jobs.intend, stopping, ids.effect_id(), 1))
    assert [found.id for found in claim(store)] == [job.id]


@pytest.mark.parametrize("withdrawn", [False, True])
def test_a_stopped_job_gives_its_place_back(store: Store, insert: Callable[..., Job], withdrawn: bool) -> None:
    insert(JobStatus.QUEUED)
    other = insert(JobStatus.QUEUED)
    (job,) = claim(store)
    asyncio.run(store.write(jobs.intend, job, ids.effect_id(), 1))
    asyncio.run(store.write(jobs.hold, job, JobHandle("local", job.id)))
    running = asyncio.run(store.write(jobs.change, job, status=JobStatus.RUNNING, resolved={"n_epochs": 1}))
    stopping = paused(store, running)
    if withdrawn:
        resumed(store, stopping)
    events = NewEvent("paused", "", 1), NewEvent("waits", "", 1)
    parked = asyncio.run(store.write(jobs.park, stopping, *events))
    asyncio.run(store.write(jobs.release, parked))
    assert (parked.status, parked.handle) == (JobStatus.QUEUED if withdrawn else JobStatus.PAUSED, None)
    assert [found.id for found in claim(store)] == [job.id if withdrawn else other.id]
    if not withdrawn:
        assert resumed(store, parked).status is JobStatus.QUEUED


def test_a_job_that_was_not_checked_is_checked_when_it_goes_on(store: Store, insert: Callable[..., Job]) -> None:
    assert resumed(store, paused(store, insert())).status is JobStatus.VALIDATING_FILES


def test_a_retry_is_known_by_sender_request_and_time(store: Store) -> None:
    old = asyncio.run(store.write(jobs.insert, new_job(), [], key_id="key_a", request_sha256="r"))
    job = asyncio.run(store.write(jobs.insert, new_job(), [], key_id="key_a", request_sha256="r"))
    anonymous = asyncio.run(store.write(jobs.insert, new_job(), [], key_id=None, request_sha256="r"))

    def found(key_id: str | None, request: str = "r", since: int = job.created_at) -> str | None:
        first = asyncio.run(
            store.read(lambda tx: jobs.job_of_request(tx, PROJECT, key_id=key_id, request_sha256=request, since=since))
        )
        return None if first is None else first.id

    assert [found("key_a"), found(None), found("key_b"), found("key_a", "s")] == [job.id, anonymous.id, None, None]
    assert found("key_a", since=job.created_at + 1) is None
    asyncio.run(store.write(jobs.delete, job, 1))
    assert found("key_a") == old.id


def test_who_watches_a_job_wakes_with_its_commits_only(store: Store, insert: Callable[..., Job]) -> None:
    job, other = insert(), insert()

    def broken(tx: Any) -> None:
        jobs.add_events(tx, job, [NewEvent("never", "", 1)])
        raise LookupError

    async def watch() -> None:
        with store.watch(job.id) as news:
            await store.write(jobs.add_events, other, [NewEvent("a", "", 1)])
            with pytest.raises(LookupError):
                await store.write(broken)
            assert not news.is_set()
            await store.write(jobs.add_events, job, [NewEvent("a", "", 1)])
            await asyncio.wait_for(news.wait(), 10)
            news.clear()
            store.wake_all()
            assert news.is_set()

    asyncio.run(watch())
