"""Jobs, their events, effects and idempotency keys.

Two guards stand in every change that the worker makes: terminal states are final, and a claim's fencing token must
still be the newest one (a worker that lost its lease writes nothing). One file, as a change of a job, its events and
its effects is one transaction.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, exists, func, select, update
from sqlalchemy.dialects.sqlite import insert as insert_or_ignore

from tuneway.store import tell, webhooks
from tuneway.store.schema import effects, idempotency_keys, job_events, jobs
from tuneway.types import (
    TERMINAL_STATUSES,
    Attention,
    Candidate,
    Desired,
    EventLevel,
    Hyperparameters,
    Job,
    JobError,
    JobEvent,
    JobHandle,
    JobSpec,
    JobStatus,
    Method,
    NewEvent,
    Page,
    Progress,
)

LAUNCH = "launch"
"""The kind of effect that starts a job at its provider."""


def insert(
    tx: Connection,
    job: Job,
    events: Iterable[NewEvent],
    *,
    key_id: str | None = None,
    request_sha256: str | None = None,
) -> Job:
    """Stores a new job with its first events and returns it with its `seq`.

    `key_id` and `request_sha256` say who asked for it and what exactly, see `job_of_request`.
    """
    spec = asdict(job.spec) | {"options": dict(job.spec.options)}
    (seq,) = tx.execute(
        jobs.insert().values(
            id=job.id,
            project_id=job.project_id,
            created_at=job.created_at,
            training_sha256=job.training_sha256,
            validation_sha256=job.validation_sha256,
            planned_model=job.planned_model,
            placement=job.placement,
            status=job.status,
            desired=job.desired,
            result_files=[],
            key_id=key_id,
            request_sha256=request_sha256,
            **spec,
        )
    ).inserted_primary_key or (0,)
    add_events(tx, job, events)
    return replace(job, seq=seq)


def get(tx: Connection, project: str, job_id: str) -> Job | None:
    """The job; None when there is none, or no more: what was deleted is not shown again."""
    row = tx.execute(_shown(project).where(jobs.c.id == job_id)).one_or_none()
    return None if row is None else _job(row)


def page(
    tx: Connection, project: str, *, after: str | None, limit: int, metadata: Mapping[str, str] | None
) -> Page[Job] | None:
    """One page, newest first; None when `after` is no job of the project. `metadata` {} asks for jobs without any."""
    query = _shown(project).order_by(jobs.c.seq.desc()).limit(limit + 1)
    if after is not None:
        # A job that was deleted between two pages still marks a place.
        seq = tx.scalar(select(jobs.c.seq).where(jobs.c.project_id == project, jobs.c.id == after))
        if seq is None:
            return None
        query = query.where(jobs.c.seq < seq)
    if metadata is not None and not metadata:
        query = query.where(jobs.c.metadata.is_(None))
    for key, value in (metadata or {}).items():
        pair = func.json_each(jobs.c.metadata).table_valued("key", "value")  # a path would have to quote the key
        query = query.where(select(pair.c.key).where(pair.c.key == key, pair.c.value == value).exists())
    rows = tx.execute(query).all()
    return Page(tuple(_job(row) for row in rows[:limit]), len(rows) > limit)


def queue_position(tx: Connection, job: Job) -> int:
    """1 for the queued job that is next in its place."""
    ahead = select(func.count()).where(
        jobs.c.placement == job.placement, jobs.c.status == JobStatus.QUEUED, jobs.c.seq < job.seq
    )
    return (tx.scalar(ahead) or 0) + 1


def queued(tx: Connection, placement: str, now: int) -> list[Job]:
    """Those that wait for a place, first come first; not those that wait for their next try, or for a person."""
    query = select(jobs).where(jobs.c.placement == placement, jobs.c.status == JobStatus.QUEUED)
    query = query.where(jobs.c.lease_until <= now, jobs.c.attention.is_(None)).order_by(jobs.c.seq)
    return [_job(row) for row in tx.execute(query)]


def count_by_status(tx: Connection) -> dict[str, int]:
    number = func.count().label("number")
    rows = tx.execute(select(jobs.c.status, number).where(jobs.c.deleted_at.is_(None)).group_by(jobs.c.status))
    return {row.status: row.number for row in rows}


def _shown(project: str) -> Select[Any]:
    return select(jobs).where(jobs.c.project_id == project, jobs.c.deleted_at.is_(None))


# ------------------------------------------------------------------------------------------------------------ changes


class Stale(Exception):
    """The job ended, or another worker claimed it, since it was read: the transaction is rolled back."""


def change(tx: Connection, job: Job, events: Iterable[NewEvent] = (), /, **values: Any) -> Job:
    """Changes columns of a job that has not ended, and adds events. Raises Stale."""
    row = tx.execute(
        update(jobs)
        .where(jobs.c.id == job.id, jobs.c.fence == job.fence, jobs.c.status.not_in(TERMINAL_STATUSES))
        .values(**values or {"status": jobs.c.status})
        .returning(jobs)
    ).one_or_none()
    if row is None:
        raise Stale(job.id)
    add_events(tx, job, events)
    changed = _job(row)
    webhooks.announce(tx, changed)
    return changed


def cancel(tx: Connection, project: str, job_id: str, event: NewEvent) -> Job | None:
    """Makes the job `cancelled`, for good; None when it is terminal already or not there."""
    row = tx.execute(
        update(jobs)
        .where(jobs.c.project_id == project, jobs.c.id == job_id, jobs.c.status.not_in(TERMINAL_STATUSES))
        .values(
            status=JobStatus.CANCELLED, desired=Desired.CANCEL, estimated_finish=None, attention=None, lease_until=0
        )
        .returning(jobs)
    ).one_or_none()
    if row is None:
        return None
    job = _job(row)
    add_events(tx, job, [event])
    webhooks.announce(tx, job)
    return job


def wish_cancelled(tx: Connection, job: Job, event: NewEvent) -> Job:
    """Has the owner want `job`, as it is in this transaction, cancelled; it ends when its provider says so.

    A job that waits, for a person or for its next try, waits no longer.
    """
    values: dict[str, Any] = {"desired": Desired.CANCEL, "attention": None}
    if job.status is JobStatus.PAUSED:
        values["status"] = JobStatus.RUNNING
    tx.execute(update(jobs).where(jobs.c.seq == job.seq).values(lease_until=0))
    return change(tx, job, [event], **values)


def pause(tx: Connection, job: Job, event: NewEvent) -> Job:
    """Has the owner want `job`, as it is in this transaction, paused.

    One that holds nothing at its provider is `paused` at once, and whoever works on it stores nothing more; a started
    one is for the worker to `park`.
    """
    started = tx.scalar(select(_started()).where(jobs.c.seq == job.seq))
    values: dict[str, Any] = {"desired": Desired.PAUSE}
    if started:
        tx.execute(update(jobs).where(jobs.c.seq == job.seq).values(lease_until=0))  # it may wait for its next try
    else:
        values |= {"status": JobStatus.PAUSED, "fence": job.fence + 1, "lease_owner": None, "lease_until": 0}
    return change(tx, job, () if started else [event], **values)


def park(tx: Connection, job: Job, paused: NewEvent, resumed: NewEvent) -> Job:
    """The provider has stopped the job: it is `paused`, or waits for a place where it was resumed meanwhile."""
    wanted = tx.scalar(select(jobs.c.desired).where(jobs.c.seq == job.seq))
    tx.execute(update(effects).where(effects.c.job_id == job.id, effects.c.kind == LAUNCH).values(state="released"))
    status, events = JobStatus.PAUSED, [paused]
    if wanted != Desired.PAUSE:
        status, events = JobStatus.QUEUED, [paused, resumed]
    return change(tx, job, events, status=status, provider_job_id=None, estimated_finish=None)


def resume(tx: Connection, job: Job, event: NewEvent) -> Job:
    """Has the owner want `job`, as it is in this transaction, to go on.

    A paused one waits for a place, or for the check of its files where there was none. The pause of one that is still
    stopping is withdrawn: it goes on if nobody has told its provider yet, else `park` has it wait for a place.
    """
    values: dict[str, Any] = {"desired": Desired.RUN}
    if job.status is JobStatus.PAUSED:
        values["status"] = JobStatus.VALIDATING_FILES if job.resolved is None else JobStatus.QUEUED
    return change(tx, job, [event], **values)


def delete(tx: Connection, job: Job, now: int) -> None:
    """Hides the job, its events and its checkpoints for good; the worker still frees what it holds."""
    tx.execute(update(jobs).where(jobs.c.seq == job.seq).values(deleted_at=now))


# ------------------------------------------------------------------------------------------------------------- claims


def recover(tx: Connection, placement: str) -> None:
    """At start: drops the leases of a gateway that is gone, and its count of stalls (that was not the jobs' fault)."""
    at_work = (jobs.c.released == 0) & (jobs.c.placement == placement)
    tx.execute(update(jobs).where(at_work).values(lease_until=0, stalls=0, stalled_at_step=None))


def claim(
    tx: Connection,
    *,
    placement: str,
    owner: str,
    now: int,
    lease: int,
    slots: int,
    checks: int,
    carried: Collection[str] = (),
) -> list[Job]:
    """Leases to `owner` everything that can be worked on now, but for those that it is `carried` already.

    That is: at most `checks` jobs whose files are being checked, queued ones while fewer than `slots` are started,
    started ones, and ended ones that were not released yet. A job that waits for its next try holds no place.
    """
    here = (jobs.c.placement == placement) & (jobs.c.released == 0) & jobs.c.attention.is_(None)
    leased = (jobs.c.lease_until > now) & jobs.c.lease_owner.is_not(None)
    free = (jobs.c.lease_until <= now) & jobs.c.id.not_in(carried)
    started = _started()
    checking = here & (jobs.c.status == JobStatus.VALIDATING_FILES)
    waiting = here & (jobs.c.status == JobStatus.QUEUED)

    def number(where: ColumnElement[bool]) -> int:
        return tx.scalar(select(func.count()).select_from(jobs).where(where)) or 0

    wanted = [
        (checking & free, checks - number(checking & leased)),
        # A queued job that is started was being launched when a gateway died: it has its slot already.
        (waiting & free & started, slots),
        (waiting & free & ~started, slots - number(here & started) - number(waiting & leased & ~started)),
        (here & free & (jobs.c.status == JobStatus.RUNNING), None),
        (here & free & jobs.c.status.in_(TERMINAL_STATUSES), None),
    ]
    ids: list[str] = []
    for where, limit in wanted:
        if limit is None or limit > 0:
            ids += tx.scalars(select(jobs.c.id).where(where).order_by(jobs.c.seq).limit(limit))
    claimed = (
        update(jobs)
        .where(jobs.c.id.in_(ids))
        .values(lease_owner=owner, lease_until=now + lease, fence=jobs.c.fence + 1)
        .returning(jobs)
    )
    return sorted((_job(row) for row in tx.execute(claimed)), key=lambda job: job.seq) if ids else []


def renew(tx: Connection, owner: str, ids: Sequence[str], until: int) -> None:
    tx.execute(update(jobs).where(jobs.c.lease_owner == owner, jobs.c.id.in_(ids)).values(lease_until=until))


def release(tx: Connection, job: Job, *, until: int = 0) -> None:
    """Gives the lease back; nobody claims the job before `until`."""
    tx.execute(
        update(jobs).where(jobs.c.id == job.id, jobs.c.fence == job.fence).values(lease_owner=None, lease_until=until)
    )


# ------------------------------------------------------------------------------------------------------------ effects


def intend(tx: Connection, job: Job, effect_id: str, now: int) -> None:
    """Records, before the call, that the job is about to be launched under its own id as the key.

    Raises Stale for a job that its owner wants paused or cancelled: from then on nothing of it is started.
    """
    wanted = (jobs.c.id == job.id) & (jobs.c.fence == job.fence) & (jobs.c.desired == Desired.RUN)
    if tx.execute(select(jobs.c.seq).where(wanted, jobs.c.status.not_in(TERMINAL_STATUSES))).first() is None:
        raise Stale(job.id)
    statement = insert_or_ignore(effects).values(
        id=effect_id,
        project_id=job.project_id,
        job_id=job.id,
        kind=LAUNCH,
        key=job.id,
        state="intent",
        created_at=now,
    )
    again = {"state": "intent", "created_at": now, "unclear_at": None}
    tx.execute(statement.on_conflict_do_update(index_elements=["job_id", "kind", "key"], set_=again))


def intended(tx: Connection, job: Job) -> int | None:
    """When a launch was begun that was never confirmed, in unix seconds: the provider must be asked before anything is
    sent again. None where there is none.
    """
    return tx.scalar(select(effects.c.created_at).where(_open_launch(job)))


def leave_unclear(tx: Connection, job: Job, now: int) -> None:
    """The call that was intended ended without an answer that tells whether it had its effect."""
    tx.execute(update(effects).where(_open_launch(job)).values(unclear_at=now))


def unclear_since(tx: Connection, job: Job) -> int | None:
    """When the last call that may have had its effect began, or ended where that is known; in unix seconds."""
    row = tx.execute(select(effects.c.created_at, effects.c.unclear_at).where(_open_launch(job))).one_or_none()
    return None if row is None else max(row.created_at, row.unclear_at or 0)


def take_back(tx: Connection, job: Job) -> None:
    """The launch that was intended has surely had no effect."""
    tx.execute(update(effects).where(_open_launch(job)).values(state="released"))


def upstream_jobs(tx: Connection, provider: str, *, but: str) -> frozenset[str]:
    """What the provider calls the jobs that are ours, except the job `but`."""
    query = select(jobs.c.upstream_job_id).where(jobs.c.provider == provider, jobs.c.id != but)
    return frozenset(tx.scalars(query.where(jobs.c.upstream_job_id.is_not(None))))


def unended(tx: Connection, provider: str) -> int:
    """How many jobs of the provider have not ended, or were not tidied up behind their end."""
    query = select(func.count()).select_from(jobs)
    return tx.scalar(query.where(jobs.c.provider == provider, jobs.c.released == 0)) or 0


def unplaced(tx: Connection, placements: Collection[str]) -> list[Job]:
    """Those that have not ended and have a place that is none of these."""
    query = select(jobs).where(jobs.c.status.not_in(TERMINAL_STATUSES), jobs.c.placement.not_in(placements))
    return [_job(row) for row in tx.execute(query)]


def hold(tx: Connection, job: Job, handle: JobHandle) -> None:
    """Confirms the launch. Stored whatever became of the job meanwhile: a cancelled one must still be stopped."""
    known = {"provider_job_id": handle.provider_job_id, "upstream_job_id": handle.provider_job_id}
    tx.execute(update(jobs).where(jobs.c.id == job.id).values(known))
    tx.execute(update(effects).where(effects.c.job_id == job.id, effects.c.kind == LAUNCH).values(state="confirmed"))


def let_go(tx: Connection, job: Job) -> None:
    """The job has ended and holds nothing at its provider any more: no worker needs to look at it again."""
    tx.execute(update(jobs).where(jobs.c.id == job.id).values(provider_job_id=None, released=1))
    tx.execute(update(effects).where(effects.c.job_id == job.id, effects.c.kind == LAUNCH).values(state="released"))


def _started() -> ColumnElement[bool]:
    """Of a job that holds a place at its provider, or may do so."""
    return (jobs.c.status == JobStatus.RUNNING) | jobs.c.provider_job_id.is_not(None) | _has_open_launch()


def _open_launch(job: Job) -> ColumnElement[bool]:
    return (effects.c.job_id == job.id) & (effects.c.kind == LAUNCH) & (effects.c.state == "intent")


def _has_open_launch() -> ColumnElement[bool]:
    return exists().where(effects.c.job_id == jobs.c.id, effects.c.kind == LAUNCH, effects.c.state == "intent")


# ------------------------------------------------------------------------------------------------------------- events


def add_events(tx: Connection, job: Job, events: Iterable[NewEvent]) -> None:
    """Stores events in their order; one whose key the job has already is left out. Those wake who follow the job."""
    tell(tx, job.id)
    for event in events:
        values = asdict(event) | {
            "id": _event_id(job.id, event.key),
            "project_id": job.project_id,
            "job_id": job.id,
            "data": dict(event.data),
        }
        tx.execute(insert_or_ignore(job_events).values(values).on_conflict_do_nothing(index_elements=["job_id", "key"]))


def event_page(tx: Connection, project: str, job_id: str, *, after: str | None, limit: int) -> Page[JobEvent] | None:
    """One page, newest first; None when `after` is no event of the job."""
    query = (
        select(job_events)
        .where(job_events.c.project_id == project, job_events.c.job_id == job_id)
        .order_by(job_events.c.seq.desc())
        .limit(limit + 1)
    )
    if after is not None:
        seq = tx.scalar(select(job_events.c.seq).where(job_events.c.job_id == job_id, job_events.c.id == after))
        if seq is None:
            return None
        query = query.where(job_events.c.seq < seq)
    rows = tx.execute(query).all()
    return Page(tuple(_event(row) for row in rows[:limit]), len(rows) > limit)


def event_seq(tx: Connection, project: str, job_id: str, event_id: str) -> int | None:
    """The place of an event of the job; None when it has none of this id."""
    return tx.scalar(
        select(job_events.c.seq).where(
            job_events.c.project_id == project, job_events.c.job_id == job_id, job_events.c.id == event_id
        )
    )


def events_since(tx: Connection, project: str, job_id: str, seq: int, limit: int) -> tuple[list[JobEvent], bool]:
    """Up to `limit` events behind the place `seq`, oldest first, and whether there will be no more behind them."""
    query = (
        select(job_events)
        .where(job_events.c.project_id == project, job_events.c.job_id == job_id, job_events.c.seq > seq)
        .order_by(job_events.c.seq)
        .limit(limit)
    )
    events = [_event(row) for row in tx.execute(query)]
    job = get(tx, project, job_id)
    return events, len(events) < limit and (job is None or job.status in TERMINAL_STATUSES)


_BASE62 = string.digits + string.ascii_letters


def _event_id(job_id: str, key: str) -> str:
    """From the natural key, so that an event that is written twice has one id."""
    number = int.from_bytes(hashlib.sha256(f"{job_id}\n{key}".encode()).digest())
    digits = []
    for _ in range(24):
        number, digit = divmod(number, 62)
        digits.append(_BASE62[digit])
    return "ftevent-" + "".join(digits)


# ------------------------------------------------------------------------------------------- retries of one request


def job_of_request(tx: Connection, project: str, *, key_id: str | None, request_sha256: str, since: int) -> Job | None:
    """The newest job that the same request, sent with the same key of the gateway, made since then.

    Not one that was cancelled: who knows its id has had the answer, and sends no retry for want of it.
    """
    row = tx.execute(
        _shown(project)
        .where(jobs.c.request_sha256 == request_sha256, jobs.c.key_id.is_not_distinct_from(key_id))
        .where(jobs.c.created_at >= since, jobs.c.status != JobStatus.CANCELLED)
        .order_by(jobs.c.seq.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else _job(row)


def job_of_key(tx: Connection, project: str, key: str, *, since: int) -> tuple[str, str] | None:
    """The hash of the request that came with this idempotency key since then, and the job that it made."""
    row = tx.execute(
        select(idempotency_keys.c.request_sha256, idempotency_keys.c.job_id).where(
            idempotency_keys.c.project_id == project,
            idempotency_keys.c.id == key,
            idempotency_keys.c.created_at >= since,
        )
    ).one_or_none()
    return None if row is None else (row.request_sha256, row.job_id)


def keep_key(tx: Connection, project: str, key: str, request_sha256: str, job: Job) -> None:
    """Remembers the key; an older, expired use of it is forgotten."""
    tx.execute(idempotency_keys.delete().where(idempotency_keys.c.project_id == project, idempotency_keys.c.id == key))
    tx.execute(
        idempotency_keys.insert().values(
            id=key, project_id=project, created_at=job.created_at, request_sha256=request_sha256, job_id=job.id
        )
    )


# --------------------------------------------------------------------------------------------------------------- rows


def _job(row: Row[Any]) -> Job:
    return Job(
        seq=row.seq,
        id=row.id,
        project_id=row.project_id,
        created_at=row.created_at,
        spec=JobSpec(
            model=row.model,
            training_file=row.training_file,
            provider=row.provider,
            method=Method(row.method),
            hyperparameters=Hyperparameters(**row.hyperparameters),
            validation_file=row.validation_file,
            suffix=row.suffix,
            seed=row.seed,
            metadata=row.metadata,
            integrations=tuple(row.integrations or ()),
            reinforcement=row.reinforcement,
            learning_rate=row.learning_rate,
            options=row.options,
        ),
        status=JobStatus(row.status),
        training_sha256=row.training_sha256,
        validation_sha256=row.validation_sha256,
        planned_model=row.planned_model,
        placement=row.placement,
        desired=Desired(row.desired),
        resolved=Hyperparameters(**row.resolved) if row.resolved else None,
        error=JobError(**row.error) if row.error else None,
        fine_tuned_model=row.fine_tuned_model,
        finished_at=row.finished_at,
        estimated_finish=row.estimated_finish,
        trained_tokens=row.trained_tokens,
        result_files=tuple(row.result_files),
        progress=Progress(**row.progress) if row.progress else None,
        provider_status=row.provider_status,
        provider_job_id=row.upstream_job_id,
        attention=_attention(row.attention),
        handle=JobHandle(row.provider, row.provider_job_id) if row.provider_job_id else None,
        cursor=row.cursor,
        attempt=row.attempt,
        stalls=row.stalls,
        stalled_at_step=row.stalled_at_step,
        fence=row.fence,
    )


def _attention(found: Mapping[str, Any] | None) -> Attention | None:
    if found is None:
        return None
    return Attention(found["reason"], tuple(Candidate(**candidate) for candidate in found["candidates"]))


def _event(row: Row[Any]) -> JobEvent:
    return JobEvent(
        seq=row.seq,
        id=row.id,
        job_id=row.job_id,
        key=row.key,
        created_at=row.created_at,
        level=EventLevel(row.level),
        type=row.type,
        message=row.message,
        data=row.data,
    )
