"""The jobs service: creates, shows, pauses and cancels jobs; mints their ids, names and times.

The worker does the rest.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TypeVar

from tuneway import ids
from tuneway.errors import InvalidFile, InvalidRequest, JobAlreadyCompleted, JobNotEnded, JobNotFound, ProviderGone
from tuneway.files import require_usable
from tuneway.models import Models
from tuneway.providers.base import Capabilities, Provider
from tuneway.store import Store, Tx
from tuneway.store import files as file_rows
from tuneway.store import jobs as rows
from tuneway.store import models as model_rows
from tuneway.types import (
    FIRST_TRY,
    TERMINAL_STATUSES,
    Checkpoint,
    Desired,
    EventLevel,
    File,
    Job,
    JobEvent,
    JobHandle,
    JobRequest,
    JobSpec,
    JobStatus,
    NewEvent,
    Origin,
    Page,
)

PURPOSE = "fine-tune"
KEY_KEPT_SECONDS = 24 * 3600
RETRY_SECONDS = 15 * 60
"""How long after a create its retry is known as one; the SDKs give a request up after ten minutes."""
KEEP_ALIVE_SECONDS = 15.0
BATCH = 100
"""Events that are read at a time for one who follows a job."""

log = logging.getLogger("tuneway.jobs")

T = TypeVar("T")


class Jobs:
    """`wake` and `interrupt` tell the worker, which would find out by itself a second later.

    `interrupt` also ends what it is doing for a job.
    """

    def __init__(
        self,
        store: Store,
        models: Models,
        providers: Mapping[str, Provider],
        *,
        wake: Callable[[], None],
        interrupt: Callable[[str], None],
    ) -> None:
        self._store = store
        self._models = models
        self._providers = providers
        self._wake = wake
        self._interrupt = interrupt
        self._stopping = False

    async def create(self, project: str, request: JobRequest, origin: Origin = FIRST_TRY) -> Job:
        """Stores a new job with its first events, and what a retry is known by, in one transaction.

        The first job again is what a retry gets: the same idempotency key within a day, or, without one, the same
        request with the same key of the gateway within `RETRY_SECONDS` whose sender counts it as a retry. Raises
        ModelNotTunable, InvalidFile, and InvalidRequest for what the provider cannot do and when the idempotency key
        came with another request.
        """
        base = await self._models.tunable(project, request.model, request.provider)
        provider = self._providers[base.provider]
        digest = hashlib.sha256(json.dumps(asdict(request), sort_keys=True).encode()).hexdigest()
        without_effect = _without_effect(request, provider.capabilities)
        request = _with_options(request, provider.capabilities)
        _check_supported(request, base.provider, provider.capabilities)
        provider.check(request, base.name)
        now = int(time.time())

        def store_job(tx: Tx) -> Job:
            first = _first_job(tx, project, origin, digest, now)
            if first is not None:
                return first
            if base.provider not in self._providers:
                raise ProviderGone(base.provider)  # it was removed a moment ago
            training = _file(tx, project, "training_file", request.training_file)
            validation = None
            if request.validation_file is not None:
                validation = _file(tx, project, "validation_file", request.validation_file)
            job = Job(
                seq=0,
                id=ids.job_id(),
                project_id=project,
                created_at=now,
                spec=JobSpec(
                    model=base.name,
                    training_file=training.id,
                    provider=base.provider,
                    method=request.method,
                    hyperparameters=request.hyperparameters,
                    validation_file=None if validation is None else validation.id,
                    suffix=request.suffix,
                    seed=secrets.randbelow(2**31) if request.seed is None else request.seed,
                    metadata=request.metadata,
                    integrations=request.integrations,
                    reinforcement=request.reinforcement,
                    learning_rate=request.learning_rate,
                    options=request.options,
                ),
                status=JobStatus.VALIDATING_FILES,
                training_sha256=training.sha256,
                validation_sha256=None if validation is None else validation.sha256,
                planned_model=ids.tuned_model(base.name, project, request.suffix),
                placement=base.provider,
            )
            events = _first_events(job, without_effect)
            job = rows.insert(tx, job, events, key_id=origin.key_id, request_sha256=digest)
            if origin.idempotency_key is not None:
                rows.keep_key(tx, project, origin.idempotency_key, digest, job)
            return job

        job = await self._store.write(store_job)
        self._wake()
        return job

    def ignored(self, request: JobRequest, provider: str) -> Sequence[str]:
        """The request's fields that have no effect at that provider, which a job of it has gone to."""
        known = self._providers.get(provider)
        return _without_effect(request, Capabilities() if known is None else known.capabilities)

    async def get(self, project: str, job_id: str) -> Job:
        """Raises JobNotFound."""
        job = await self._store.read(rows.get, project, job_id)
        if job is None:
            raise JobNotFound(job_id)
        return job

    async def list(
        self, project: str, *, after: str | None, limit: int, metadata: Mapping[str, str] | None
    ) -> Page[Job]:
        """One page of the project's jobs, newest first. `metadata` {} asks for jobs without any."""
        page = await self._store.read(rows.page, project, after=after, limit=limit, metadata=metadata)
        return _continued(page)

    async def cancel(self, project: str, job_id: str, origin: Origin = FIRST_TRY) -> Job:
        """Makes the job `cancelled` at once and for good; what runs is stopped behind it.

        A job that a remote provider has, or may have, stays as it is until the provider says that it ended: until then
        it bills, and it may still succeed. Asking again changes nothing.

        Raises JobNotFound, and JobAlreadyCompleted for a job that has ended; but a retry of the cancel gets the job.
        """
        event = NewEvent("cancelled", "The job was cancelled", int(time.time()))

        def cancel(tx: Tx) -> tuple[Job, bool]:
            going = rows.get(tx, project, job_id)
            if going is not None and going.status not in TERMINAL_STATUSES and self._is_elsewhere(tx, going):
                if going.desired is Desired.CANCEL:
                    return going, False
                said = f"{going.spec.provider} is asked to cancel the job"
                wished = NewEvent(f"cancelling:{ids.base62(12)}", said, event.created_at)
                return rows.wish_cancelled(tx, going, wished), True
            job = rows.cancel(tx, project, job_id, event)
            if job is not None:
                return job, True
            ended = _existing(tx, project, job_id)
            if origin.retry and ended.status is JobStatus.CANCELLED:
                return ended, False
            raise _completed(ended)

        job, changed = await self._store.write(cancel)
        if changed:  # to interrupt what cancels it already would only begin it anew
            self._interrupt(job_id)
        return job

    def _is_elsewhere(self, tx: Tx, job: Job) -> bool:
        """Whether a remote provider has the job, or may have it."""
        provider = self._providers.get(job.spec.provider)
        if provider is not None and not provider.capabilities.remote:
            return False
        return job.provider_job_id is not None or bool(rows.intended(tx, job))

    async def adopt(self, project: str, job_id: str, provider_job_id: str | None) -> Job:
        """Says which of the provider's jobs is the one that waits for a person; None: none of them, start it.

        Raises JobNotFound, and InvalidRequest for a job that waits for nobody, or for a choice that was not offered.
        """

        def adopt(tx: Tx) -> Job:
            job = _existing(tx, project, job_id)
            if job.attention is None:
                raise InvalidRequest(f"Job {job_id} waits for nobody.", code="conflict")
            offered = [candidate.provider_job_id for candidate in job.attention.candidates]
            said = f"It is the provider's job {provider_job_id}"
            if provider_job_id is None:
                rows.take_back(tx, job)
                said = "It is none of the provider's jobs"
            elif offered and provider_job_id not in offered:
                raise InvalidRequest(
                    f"Job {job_id} can be one of {', '.join(offered)}.", param="provider_job_id", code="invalid_value"
                )
            elif provider_job_id in rows.upstream_jobs(tx, job.spec.provider, but=job.id):
                raise InvalidRequest(
                    f"{provider_job_id} is another job's already.", param="provider_job_id", code="conflict"
                )
            else:
                rows.hold(tx, job, JobHandle(job.spec.provider, provider_job_id))
            event = NewEvent(f"adopted:{ids.base62(12)}", said, _now())
            return rows.change(tx, job, [event], attention=None)

        job = await self._store.write(adopt)
        self._wake()
        return job

    async def pause(self, project: str, job_id: str) -> Job:
        """Has the job stop where it is, to go on by `resume`; a paused job holds no place and loses no work.

        One that trains shows `desired` PAUSE until its provider has stopped it. Pausing it again changes nothing.
        Raises JobNotFound, JobAlreadyCompleted, and InvalidRequest where the provider cannot pause.
        """

        def pause(tx: Tx) -> tuple[Job, bool]:
            job = _going(tx, project, job_id)
            if job.desired is Desired.PAUSE:
                return job, False
            started = job.status is JobStatus.RUNNING or job.handle is not None or rows.intended(tx, job)
            provider = self._providers.get(job.spec.provider)
            if provider is None:
                raise ProviderGone(job.spec.provider)
            if started and not provider.capabilities.pause:
                raise InvalidRequest(
                    f"The provider '{job.spec.provider}' cannot pause a job that runs. Let it go on, or cancel it.",
                    code="unsupported_operation",
                )
            return rows.pause(tx, job, paused_event(job)), True

        job, changed = await self._store.write(pause)
        if changed:
            self._interrupt(job_id)
        return job

    async def resume(self, project: str, job_id: str) -> Job:
        """Has a paused job go on from where it stopped, when there is a place; a job that is not paused stays as it is.

        Raises JobNotFound, and JobAlreadyCompleted for a job that has ended.
        """
        event = NewEvent(f"resumed:{ids.base62(12)}", "Job resumed", int(time.time()))

        def resume(tx: Tx) -> Job:
            job = _going(tx, project, job_id)
            return rows.resume(tx, job, event) if job.desired is Desired.PAUSE else job

        job = await self._store.write(resume)
        self._wake()
        return job

    async def delete(self, project: str, job_id: str) -> None:
        """Hides a job that has ended; the models that it made stay. Raises JobNotFound and JobNotEnded."""

        def delete(tx: Tx) -> None:
            job = _existing(tx, project, job_id)
            if job.status not in TERMINAL_STATUSES:
                raise JobNotEnded(
                    f"Job {job_id} has not ended: it is {job.status.value}. Cancel it first, then delete it."
                )
            rows.delete(tx, job, int(time.time()))

        await self._store.write(delete)

    async def events(self, project: str, job_id: str, *, after: str | None, limit: int) -> Page[JobEvent]:
        """One page of the job's events, newest first. Raises JobNotFound."""
        await self.get(project, job_id)
        page = await self._store.read(rows.event_page, project, job_id, after=after, limit=limit)
        return _continued(page)

    async def follow(
        self, project: str, job_id: str, *, after: str | None, quiet: float = KEEP_ALIVE_SECONDS
    ) -> AsyncIterator[Sequence[JobEvent] | None]:
        """All events of the job behind the event `after`, oldest first, as they come; None when there will be no more.

        Gives an empty batch whenever nothing came for `quiet` seconds, and ends without None when the gateway stops.
        Raises JobNotFound, and InvalidRequest where `after` is no event of the job; both before the first batch.
        """
        await self.get(project, job_id)
        seq = 0
        if after is not None:
            found = await self._store.read(rows.event_seq, project, job_id, after)
            if found is None:
                raise InvalidRequest(f"There is no event {after!r} of this job to continue after.", param="after")
            seq = found
        return self._follow(project, job_id, seq, quiet)

    async def _follow(
        self, project: str, job_id: str, seq: int, quiet: float
    ) -> AsyncIterator[Sequence[JobEvent] | None]:
        with self._store.watch(job_id) as news:
            while not self._stopping:
                news.clear()
                events, ended = await self._store.read(rows.events_since, project, job_id, seq, BATCH)
                if events:
                    seq = events[-1].seq
                    yield events
                if ended:
                    yield None
                    return
                if len(events) < BATCH:
                    try:
                        await asyncio.wait_for(news.wait(), quiet)
                    except TimeoutError:
                        yield ()

    def stop(self) -> None:
        """The gateway stops, and all that follow a job end with it."""
        self._stopping = True
        self._store.wake_all()

    async def checkpoints(self, project: str, job_id: str, *, after: str | None, limit: int) -> Page[Checkpoint]:
        """One page of the job's checkpoints, highest step first. Raises JobNotFound."""
        await self.get(project, job_id)
        page = await self._store.read(model_rows.checkpoint_page, project, job_id, after=after, limit=limit)
        return _continued(page)

    async def queue_position(self, job: Job) -> int | None:
        """1 for the job that is next; None for one that does not wait, and where it cannot be read.

        The job may have been stored a moment ago: an error here would have its client send it again.
        """
        if job.status is not JobStatus.QUEUED:
            return None
        try:
            return await self._store.read(rows.queue_position, job)
        except Exception:
            log.exception("the place of %s could not be read", job.id)
            return None

    async def count_by_status(self) -> Mapping[str, int]:
        return await self._store.read(rows.count_by_status)


def paused_event(job: Job) -> NewEvent:
    """The event of a job that stops where it is."""
    where = "before its first step" if job.progress is None else f"at step {job.progress.step}"
    return NewEvent(f"paused:{ids.base62(12)}", f"Job paused {where}", int(time.time()))


def _without_effect(request: JobRequest, can: Capabilities) -> list[str]:
    integrations = ["integrations"] if request.integrations and not can.integrations else []
    others = [name for name, (option, _) in request.optional.items() if option not in can.options]
    return [*integrations, *request.ignored, *others]


def _with_options(request: JobRequest, can: Capabilities) -> JobRequest:
    """With those of its `optional` fields that the provider takes. Raises InvalidRequest for two answers."""
    taken = {option: (name, value) for name, (option, value) in request.optional.items() if option in can.options}
    for option, (name, value) in taken.items():
        if request.options.get(option, value) != value:
            raise InvalidRequest(
                f"'{name}' and 'tuneway.options.{option}' are one thing and differ. Give it once.",
                param=f"tuneway.options.{option}",
                code="invalid_value",
            )
    return replace(request, options={**request.options, **{option: value for option, (_, value) in taken.items()}})


def _check_supported(request: JobRequest, provider: str, can: Capabilities) -> None:
    """Raises InvalidRequest for what the provider would have to drop."""
    if request.method not in can.methods:
        methods = ", ".join(sorted(f"'{method.value}'" for method in can.methods)) or "no method"
        raise InvalidRequest(
            f"The provider '{provider}' cannot tune by '{request.method.value}'. It supports: {methods}.",
            param="method.type",
            code="unsupported_value",
        )
    refused = [
        param
        for param in ("validation_file", "seed", "suffix", "metadata")
        if getattr(request, param) is not None and not getattr(can, param)
    ]
    if request.learning_rate is not None and not can.learning_rate:
        refused.append("tuneway.learning_rate")
    refused += [f"tuneway.options.{name}" for name in request.options if name not in can.options]
    for param in refused:
        raise InvalidRequest(
            f"The provider '{provider}' does not support '{param}'. Remove it, or choose another provider.",
            param=param,
            code="unsupported_parameter",
        )


def _now() -> int:
    return int(time.time())


def _first_events(job: Job, without_effect: Sequence[str]) -> list[NewEvent]:
    now, spec = job.created_at, job.spec
    also = "" if spec.validation_file is None else f" and validation file: {spec.validation_file}"
    events = [
        NewEvent("created", f"Created fine-tuning job: {job.id}", now),
        NewEvent("validating", f"Validating training file: {spec.training_file}{also}", now),
    ]
    warnings = []
    if without_effect:
        warnings.append(f"{', '.join(without_effect)} {'have' if len(without_effect) > 1 else 'has'} no effect here.")
    if "integrations" in without_effect:
        warnings.append(
            "This gateway sends nothing to integrations: the metrics are in the job's events and, when it has "
            "succeeded, in its result file."
        )
    if warnings:
        events.insert(1, NewEvent("ignored", " ".join(warnings), now, EventLevel.WARN))
    return events


def _first_job(tx: Tx, project: str, origin: Origin, digest: str, now: int) -> Job | None:
    """The job that an earlier try of the same create made. Raises InvalidRequest for a key of another request."""
    if origin.idempotency_key is None:
        if not origin.retry:
            return None
        since = now - RETRY_SECONDS
        return rows.job_of_request(tx, project, key_id=origin.key_id, request_sha256=digest, since=since)
    found = rows.job_of_key(tx, project, origin.idempotency_key, since=now - KEY_KEPT_SECONDS)
    if found is None:
        return None
    first_digest, job_id = found
    job = rows.get(tx, project, job_id)
    if first_digest != digest or job is None:
        what = "came with another request before" if first_digest != digest else "made a job that was deleted"
        raise InvalidRequest(f"This Idempotency-Key {what}. Use a new key for a new job.", param="Idempotency-Key")
    return job


def _existing(tx: Tx, project: str, job_id: str) -> Job:
    """Raises JobNotFound."""
    job = rows.get(tx, project, job_id)
    if job is None:
        raise JobNotFound(job_id)
    return job


def _going(tx: Tx, project: str, job_id: str) -> Job:
    """Raises JobNotFound and JobAlreadyCompleted."""
    job = _existing(tx, project, job_id)
    if job.status in TERMINAL_STATUSES:
        raise _completed(job)
    return job


def _completed(job: Job) -> JobAlreadyCompleted:
    return JobAlreadyCompleted(f"Job has already completed: {job.id} is {job.status.value}.")


def _file(tx: Tx, project: str, param: str, file_id: str) -> File:
    file = file_rows.get(tx, project, file_id)
    if file is None or file.purpose != PURPOSE:
        raise InvalidFile(f"invalid {param}: {file_id}", param=param)
    require_usable(file, param)
    return file


def _continued(page: Page[T] | None) -> Page[T]:
    """Behind what is not there comes nothing: OpenAI's description takes any string for a place in a list."""
    return Page((), has_more=False) if page is None else page
