"""The worker: claim → check → launch → poll → settle, one asyncio task per claimed job.

Every step can be cut off at any point, by a crash or a cancelled task alike, and be taken up again from the store:

* what is intended is stored before it is done (`rows.intend`), and looked up before it is done again;
* a step's events, its new state and its cursor are one transaction;
* a claim bumps the job's fence, so that a step that lost its lease stores nothing.

Knows providers by their seam only, and nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace

from tuneway import checks, ids, results
from tuneway.blobs import Blobs
from tuneway.errors import JobFailure, ProviderError, ProviderResting, TunewayError, UpstreamError
from tuneway.files import drop_unneeded
from tuneway.jobs import paused_event
from tuneway.launches import Launches, NotYet
from tuneway.providers.base import LaunchUnclear, NotServed, Provider
from tuneway.providers.line import retry_after_seconds
from tuneway.providers.vendor import is_unknown
from tuneway.rundir import CHECKPOINTS_KEPT
from tuneway.store import Store, Tx
from tuneway.store import files as file_rows
from tuneway.store import jobs as rows
from tuneway.store import models as model_rows
from tuneway.types import (
    TERMINAL_STATUSES,
    Attention,
    Desired,
    EventLevel,
    Job,
    JobError,
    JobResult,
    JobStatus,
    JobUpdate,
    Model,
    NewEvent,
)

log = logging.getLogger("tuneway.worker")

LEASE_SECONDS = 30
POLL_SECONDS = 0.25
IDLE_SECONDS = 1.0
"""How often the store is asked for work when nobody woke the worker."""
CHECKS = 2
"""Jobs whose files are checked at the same time; each is a child process that fills one core."""
TRIES = 6
"""Of a step that fails for a reason that may pass, 5 s, 10 s, 20 s … apart, before the job fails."""
LONGEST_WAIT_SECONDS = 60.0
STALLS = 3
"""Launches in a row that end without a new step before the job fails."""
LONGEST_RETRY_AFTER_SECONDS = 3600.0
UNKNOWN_TRIES = 3
"""How often a provider must say that it does not know a job that is to be cancelled before that is believed."""


class Worker:
    def __init__(self, store: Store, blobs: Blobs, providers: Mapping[str, Provider], slots: Mapping[str, int]) -> None:
        """`slots` maps each placement (for now a provider's name) to the jobs that it runs at a time.

        Both may change while it works: an account that is added is worked for from then on.
        """
        self._store = store
        self._blobs = blobs
        self._providers = providers
        self._slots = slots
        self._owner = ids.base62(12)
        self._wake = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._told: defaultdict[str, set[str]] = defaultdict(set)
        self._failures: dict[str, int] = {}
        self._launches = Launches(store, blobs, providers)

    # ----------------------------------------------------------------------------------------------- the scheduler

    async def run(self) -> None:
        """Works until it is cancelled; jobs at their providers go on without it."""
        renewal = asyncio.create_task(self._renew_leases())
        recovered: set[str] = set()
        try:
            while True:
                self._wake.clear()
                try:
                    if not recovered:
                        await self._tell_unplaced()
                    for placement, slots in list(self._slots.items()):
                        if placement not in recovered:
                            await self._store.write(rows.recover, placement)
                            recovered.add(placement)
                        await self._claim(placement, slots)
                except Exception:
                    log.exception("work could not be claimed (a full disk?); trying again")
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), IDLE_SECONDS)
        finally:
            renewal.cancel()
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def interrupt(self, job_id: str) -> None:
        """The job was cancelled or is to pause: what is being done for it ends, to be taken up as after a crash."""
        task = self._tasks.get(job_id)
        if task is not None:
            # Not at once: a task that is cancelled before its first step never gives its lease back.
            asyncio.get_running_loop().call_soon(task.cancel)
        self._wake.set()

    async def _claim(self, placement: str, slots: int) -> None:
        claimed = await self._store.write(
            rows.claim,
            placement=placement,
            owner=self._owner,
            now=int(time.time()),
            lease=LEASE_SECONDS,
            slots=slots,
            checks=CHECKS,
            carried=list(self._tasks),
        )
        for job in claimed:
            task = self._tasks[job.id] = asyncio.create_task(self._carry(job), name=job.id)
            task.add_done_callback(self._carried)
        await self._tell_places(placement)

    def _carried(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task.get_name()]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: its lease will run out", task.get_name(), exc_info=error)
        self._wake.set()

    async def _tell_places(self, placement: str) -> None:
        """An event, once, for each job that has to wait; its place as it changes is the API's to show."""
        waiting = await self._store.read(rows.queued, placement, _now())
        told = self._told[placement] & {job.id for job in waiting}
        for place, job in enumerate((job for job in waiting if job.id not in self._tasks), start=1):
            if job.id not in told:
                message = f"Waiting for a free place: number {place} in the queue"
                await self._store.write(rows.add_events, job, [NewEvent("waiting", message, _now())])
                told.add(job.id)
        self._told[placement] = told

    async def _tell_unplaced(self) -> None:
        """At start: an event for each job of an account that is not configured any more."""
        for job in await self._store.read(rows.unplaced, list(self._slots)):
            message = (
                f"The provider account '{job.spec.provider}' is not configured here any more, and nobody follows this "
                "job. It goes on when the account is back."
            )
            event = NewEvent(f"unplaced:{_now()}", message, _now(), EventLevel.WARN)
            await self._store.write(rows.add_events, job, [event])

    async def _renew_leases(self) -> None:
        while True:
            await asyncio.sleep(LEASE_SECONDS / 3)
            try:
                await self._store.write(rows.renew, self._owner, list(self._tasks), _now() + LEASE_SECONDS)
            except Exception:
                log.exception("leases could not be renewed; trying again")

    async def _carry(self, job: Job) -> None:
        """Takes a claimed job one step further, then gives its lease back."""
        step = {
            JobStatus.VALIDATING_FILES: self._validate,
            JobStatus.QUEUED: self._launch,
            JobStatus.RUNNING: self._follow,
        }.get(job.status, self._let_go)
        if job.desired is not Desired.RUN and job.status not in TERMINAL_STATUSES:
            step = self._pause if job.desired is Desired.PAUSE else self._stop
        wait = 0.0
        try:
            try:
                await step(job)
                self._failures.pop(job.id, None)
            except JobFailure as failure:
                await self._fail(job, JobError(failure.code or "server_error", failure.message, failure.param))
            except rows.Stale:
                log.debug("%s ended while it was worked on", job.id)
            except LaunchUnclear as unclear:
                await self._ask_a_person(job, unclear)
            except Exception as error:
                wait = await self._put_off(job, error)
        finally:
            await self._store.write(rows.release, job, until=_now() + round(wait) if wait else 0)

    async def _put_off(self, job: Job, error: Exception) -> float:
        """Says what went wrong and gives the seconds until the next try; fails a job that was tried often enough."""
        if isinstance(error, NotYet):
            return error.seconds
        failures = self._failures[job.id] = self._failures.get(job.id, 0) + 1
        mistake = "The gateway made a mistake; its log has the details."
        message = error.message if isinstance(error, TunewayError) else mistake
        ours = not isinstance(error, TunewayError)
        log.error("%s: try %d failed: %s", job.id, failures, message, exc_info=error if ours else None)
        if failures >= TRIES and job.status not in TERMINAL_STATUSES and not await self._is_patient(job, error):
            del self._failures[job.id]
            kept = " The checkpoints of its epochs stay usable." if job.progress else ""
            await self._fail(job, JobError("server_error", f"Given up after {TRIES} tries: {message}{kept}"))
            return 0.0
        wait = min(5.0 * 2.0 ** min(failures - 1, 8), LONGEST_WAIT_SECONDS)
        if isinstance(error, ProviderError | ProviderResting):
            asked = retry_after_seconds(error.headers().get("retry-after"))
            wait = min(max(wait, asked or 0.0), LONGEST_RETRY_AFTER_SECONDS)
        # One event for each kind of trouble: some vendors write another request's id into every message.
        kind = f"{type(error).__name__}:{getattr(error, 'status', '')}:{getattr(error, 'code', '')}"
        key = f"put-off:{kind}" if isinstance(error, UpstreamError) else f"put-off:{message}"
        event = NewEvent(key, f"{message} Trying again.", _now(), EventLevel.WARN)
        await self._store.write(rows.add_events, job, [event])
        return wait

    async def _is_patient(self, job: Job, error: Exception) -> bool:
        """Whether the job goes on waiting, however often it was tried.

        For a vendor that refuses for now, or does not answer; and for anything as long as a vendor has the job, or may
        have it: it does not end because nobody can be asked about it.
        """
        if not self._providers[job.spec.provider].capabilities.remote:
            return False
        if isinstance(error, UpstreamError):
            return True
        current = await self._store.read(rows.get, job.project_id, job.id) or job
        return current.handle is not None or bool(await self._store.read(rows.intended, job))

    async def _ask_a_person(self, job: Job, unclear: LaunchUnclear) -> None:
        """Has the job wait until somebody says which of the provider's jobs it is, or that it is none of them."""
        message = unclear.message
        if job.desired is Desired.CANCEL:
            message += " It is to be cancelled: the one that is chosen will be, and if it is none, nothing is started."
        attention = Attention(message, unclear.candidates)
        data = {"candidates": [asdict(candidate) for candidate in unclear.candidates]}
        event = NewEvent(f"attention:{job.fence}", message, _now(), EventLevel.WARN, data=data)
        await self._store.write(rows.change, job, [event], attention=asdict(attention))

    # --------------------------------------------------------------------------------------------------- the steps

    async def _validate(self, job: Job) -> None:
        provider = self._providers[job.spec.provider]

        async def report(message: str) -> None:
            await self._store.write(rows.add_events, job, [NewEvent(f"prepare:{message}", message, _now())])

        preparation = await provider.prepare(job.spec.model, report)
        workplace = provider.workplace(job.id)
        reports = await checks.check(
            checks.files_of(job, self._blobs, workplace),
            preparation,
            method=job.spec.method,
            refused=sorted(provider.capabilities.refused_features),
        )
        for found in reports:
            if found.error is not None:
                await self._fail(job, found.error, {"errors": [*map(asdict, found.errors)], "total": found.n_errors})
                return
        resolved = provider.resolve(job.spec, reports[0].n_examples)
        now = _now()
        chosen = {name: value for name, value in asdict(resolved.hyperparameters).items() if value is not None}
        events = [
            *checks.cut_events(job, reports, now),
            NewEvent("counts", checks.counts(job, reports), now),
            NewEvent(
                "hyperparameters",
                "Hyperparameters: " + "; ".join(f"{n}={v} ({resolved.reasons[n]})" for n, v in chosen.items()),
                now,
                data={n: {"value": v, "reason": resolved.reasons[n]} for n, v in chosen.items()},
            ),
            NewEvent("validated", "Files validated, moving job to queued state", now),
        ]
        await self._store.write(rows.change, job, events, status=JobStatus.QUEUED, resolved=chosen)

    async def _launch(self, job: Job) -> None:
        attempt = job.attempt + 1
        if job.handle is None:
            await self._launches.start(job, attempt=attempt)
        said = "Fine-tuning job started" if attempt == 1 else f"Fine-tuning job goes on (attempt {attempt})"
        started = NewEvent(f"started:{attempt}", said, _now())
        await self._store.write(rows.change, job, [started], status=JobStatus.RUNNING, attempt=attempt)

    async def _follow(self, job: Job) -> None:
        """Polls a running job until it has ended, one way or the other."""
        provider = self._providers[job.spec.provider]
        handle = job.handle or await self._launches.start(job, attempt=job.attempt)
        quiet = 0
        while True:
            update = await provider.poll(handle, job.cursor)
            quiet = 0 if update.provider_status != job.provider_status else quiet + 1
            going = await self._take(job, update)
            if going is None:
                return
            job = going
            self._failures.pop(job.id, None)
            if update.lost:
                job = await self._count_stall(job, update.error)
                handle = await self._launches.start(job, attempt=job.attempt)
            await asyncio.sleep(_until_next_look(provider, quiet))
            current = await self._store.read(rows.get, job.project_id, job.id)
            if current is None or current.desired is not Desired.RUN or current.status in TERMINAL_STATUSES:
                return

    async def _stop(self, job: Job) -> None:
        """Has a remote provider cancel the job and waits for its word; one that has finished meanwhile has a result."""
        provider = self._providers[job.spec.provider]
        handle = job.handle or await self._launches.held(job)
        if handle is None:
            await self._end_cancelled(job)
            return
        asked, quiet = False, 0
        while True:
            try:
                update = await provider.poll(handle, job.cursor)
            except ProviderError as error:
                # Nothing is left to be cancelled where a provider keeps saying that it has no such job.
                if not is_unknown(error) or self._failures.get(job.id, 0) < UNKNOWN_TRIES:
                    raise
                await self._end_cancelled(job)
                return
            going = await self._take(job, update)
            if going is None:
                return
            job = going
            if not asked:
                await provider.cancel(handle)
                asked = True
            else:
                await asyncio.sleep(_until_next_look(provider, quiet))
                quiet += 1

    async def _pause(self, job: Job) -> None:
        """Has the provider stop a started job; one that was finished before has a result, which wins."""
        provider = self._providers[job.spec.provider]
        handle = job.handle or await self._launches.held(job)
        if handle is not None:
            if provider.capabilities.remote:
                await self._store.write(rows.hold, job, handle)
            await provider.pause(handle)
            while True:
                update = await provider.poll(handle, job.cursor)
                going = await self._take(job, update)
                if going is None:
                    return
                job = going
                if update.status is JobStatus.PAUSED or not provider.capabilities.remote:
                    break
                await asyncio.sleep(provider.capabilities.poll_seconds)  # it bills until it says that it has stopped
        resumed = NewEvent(f"waiting:{job.fence}", "Job was resumed while it stopped; it waits for a place", _now())
        await self._store.write(rows.park, job, paused_event(job), resumed)

    async def _take(self, job: Job, update: JobUpdate) -> Job | None:
        """Stores what a poll said; None where that was the job's end."""
        if (update.cursor, update.provider_status) != (job.cursor, job.provider_status):
            retired: list[Model] = []
            job = await self._store.write(self._record, job, update, retired)
            for model in retired:
                await self._providers[job.spec.provider].forget(model)
        if update.result is not None:
            await self._succeed(job, update.result)
        elif update.status is JobStatus.FAILED:
            await self._fail(job, update.error or JobError("server_error", "The provider gave no reason."))
        elif update.status is JobStatus.CANCELLED:
            await self._end_cancelled(job)
        else:
            return job
        return None

    def _record(self, tx: Tx, job: Job, update: JobUpdate, retired: list[Model]) -> Job:
        """Events, checkpoints, progress and cursor of one poll, together; the models that made room go to `retired`."""
        events = list(update.events)
        for checkpoint in update.checkpoints:
            events += results.publish(tx, job, checkpoint)
            if not self._providers[job.spec.provider].capabilities.remote:  # a vendor retires its own
                keep = CHECKPOINTS_KEPT
                retired += model_rows.retire_checkpoints(tx, job.project_id, job.id, keep=keep, now=_now())
        values: dict[str, object] = {"cursor": update.cursor, "provider_status": update.provider_status}
        if update.progress is not None:
            values["progress"] = asdict(update.progress)
            if update.progress.seconds_left is not None:
                values["estimated_finish"] = _now() + round(update.progress.seconds_left)
        if update.estimated_finish is not None:
            values["estimated_finish"] = update.estimated_finish
        if update.hyperparameters is not None:
            chosen = asdict(update.hyperparameters)
            values["resolved"] = {name: value for name, value in chosen.items() if value is not None}
        return rows.change(tx, job, events, **values)

    async def _count_stall(self, job: Job, last_words: JobError | None) -> Job:
        """A provider lost the job: fails it when that happens again and again without a new step in between."""
        step = job.progress.step if job.progress else 0
        stalls = 0 if step > (job.stalled_at_step or 0) else job.stalls + 1
        if stalls >= STALLS:
            said = f" Its last words: {last_words.message}" if last_words else ""
            raise JobFailure(f"Training stopped {STALLS} times without getting further than step {step}.{said}")
        attempt = job.attempt + 1
        event = NewEvent(
            f"attempt:{attempt}",
            f"Training was interrupted at step {step}; it goes on from its newest resume point (attempt {attempt})",
            _now(),
            EventLevel.WARN,
        )
        return await self._store.write(rows.change, job, [event], attempt=attempt, stalls=stalls, stalled_at_step=step)

    # ---------------------------------------------------------------------------------------------------- the ends

    async def _succeed(self, job: Job, result: JobResult) -> None:
        """First the model is callable, then the job says so, in one transaction with everything it leaves behind."""
        model = results.model_of(job, job.planned_model, result.upstream_model, None, result.finished_at)

        async def report(message: str) -> None:
            await self._store.write(rows.add_events, job, [NewEvent(f"settle:{message}", message, _now())])

        provider = self._providers[job.spec.provider]
        try:
            deployment = await provider.settle(model, report)
        except (JobFailure, ProviderError) as refused:
            passing = isinstance(refused, ProviderError) and (refused.passes or not refused.without_effect)
            if passing or not provider.capabilities.remote:
                raise
            # What was trained, and paid for, is not lost because it does not answer: its owner is told what is missing.
            deployment = refused.deployment if isinstance(refused, NotServed) else None
            said = f"The job has succeeded at {job.spec.provider}, but its model does not answer yet: {refused.message}"
            await self._store.write(rows.add_events, job, [NewEvent("not-served", said, _now(), EventLevel.WARN)])
        model = replace(model, deployment=deployment)
        csv = None if result.metrics_csv is None else await results.receive(self._blobs, result.metrics_csv)
        events = [
            NewEvent("model", f"New fine-tuned model created: {model.id}", _now()),
            NewEvent("succeeded", "The job has successfully completed", _now()),
        ]

        def store(tx: Tx) -> None:
            files = [] if csv is None else [file_rows.insert(tx, results.result_file(job, csv)).id]
            model_rows.insert(tx, model)
            rows.change(
                tx,
                job,
                events,
                status=JobStatus.SUCCEEDED,
                fine_tuned_model=model.id,
                trained_tokens=result.trained_tokens,
                finished_at=result.finished_at,
                estimated_finish=None,
                result_files=files,
            )
            if csv is not None:
                self._blobs.publish(csv)

        try:
            await self._store.write(store)
        except BaseException:
            if csv is not None:
                await csv.discard()
            raise

    async def _fail(self, job: Job, error: JobError, data: Mapping[str, object] | None = None) -> None:
        log.info("%s failed: %s", job.id, error.message)
        event = NewEvent("failed", error.message, _now(), EventLevel.ERROR, data=data or {})

        def store(tx: Tx) -> None:
            rows.change(
                tx,
                job,
                [event],
                status=JobStatus.FAILED,
                error=asdict(error),
                finished_at=_now(),
                estimated_finish=None,
            )
            drop_unneeded(tx, self._blobs, _data(job))

        await self._store.write(store)

    async def _end_cancelled(self, job: Job) -> None:
        """Its provider says that it is cancelled, or never had it."""
        event = NewEvent("cancelled", "The job was cancelled", _now())
        values = {"status": JobStatus.CANCELLED, "desired": Desired.CANCEL, "estimated_finish": None}
        await self._store.write(rows.change, job, [event], **values)

    async def _let_go(self, job: Job) -> None:
        """The job has ended: stops what may still run at its provider and frees what only a running job needs."""
        provider = self._providers[job.spec.provider]
        if not provider.capabilities.remote:  # a vendor's job has ended by its own word
            handle = job.handle or await self._launches.held(job)
            if handle is not None and job.status is not JobStatus.SUCCEEDED:
                await provider.cancel(handle)
        await provider.release(job.id)

        def store(tx: Tx) -> None:
            rows.let_go(tx, job)
            drop_unneeded(tx, self._blobs, _data(job))

        await self._store.write(store)


def _until_next_look(provider: Provider, quiet: int) -> float:
    """Seconds; `quiet` looks in a row have shown the same state. Soon behind a change, when the next is near."""
    return min(provider.capabilities.poll_seconds, 1.5 ** min(quiet, 20))


def _now() -> int:
    return int(time.time())


def _data(job: Job) -> list[str]:
    return [sha256 for sha256 in (job.training_sha256, job.validation_sha256) if sha256 is not None]
