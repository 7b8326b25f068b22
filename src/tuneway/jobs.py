"""The jobs service: creates, shows and cancels jobs; mints their ids, names and times. The worker does the rest."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TypeVar

from tuneway import ids
from tuneway.errors import InvalidFile, InvalidRequest, JobAlreadyCompleted, JobNotFound
from tuneway.models import Models
from tuneway.store import Store, Tx
from tuneway.store import files as file_rows
from tuneway.store import jobs as rows
from tuneway.store import models as model_rows
from tuneway.types import (
    Checkpoint,
    File,
    Job,
    JobEvent,
    JobRequest,
    JobSpec,
    JobStatus,
    NewEvent,
    Page,
)

PURPOSE = "fine-tune"
KEY_KEPT_SECONDS = 24 * 3600

T = TypeVar("T")


class Jobs:
    """`on_created` and `on_cancelled` tell the worker, which would find out by itself a second later."""

    def __init__(
        self,
        store: Store,
        models: Models,
        *,
        on_created: Callable[[], None],
        on_cancelled: Callable[[str], None],
    ) -> None:
        self._store = store
        self._models = models
        self._on_created = on_created
        self._on_cancelled = on_cancelled

    async def create(self, project: str, request: JobRequest, *, idempotency_key: str | None = None) -> Job:
        """Stores a new job with its first events, and its idempotency key, in one transaction.

        The same key with the same request within a day gives the first job again. Raises ModelNotTunable, InvalidFile,
        and InvalidRequest when the key came with another request.
        """
        base = self._models.tunable(request.model, request.provider)
        now = int(time.time())
        digest = hashlib.sha256(json.dumps(asdict(request), sort_keys=True).encode()).hexdigest()

        def store_job(tx: Tx) -> Job:
            if idempotency_key is not None:
                found = rows.job_of_key(tx, project, idempotency_key, since=now - KEY_KEPT_SECONDS)
                if found is not None:
                    return _first_job(tx, project, found, digest)
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
                ),
                status=JobStatus.VALIDATING_FILES,
                training_sha256=training.sha256,
                validation_sha256=None if validation is None else validation.sha256,
                planned_model=ids.tuned_model(base.name, project, request.suffix),
                placement=base.provider,
            )
            also = "" if validation is None else f" and validation file: {validation.id}"
            job = rows.insert(
                tx,
                job,
                [
                    NewEvent("created", f"Created fine-tuning job: {job.id}", now),
                    NewEvent("validating", f"Validating training file: {training.id}{also}", now),
                ],
            )
            if idempotency_key is not None:
                rows.keep_key(tx, project, idempotency_key, digest, job)
            return job

        job = await self._store.write(store_job)
        self._on_created()
        return job

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
        return _continued(page, after, "job")

    async def cancel(self, project: str, job_id: str) -> Job:
        """Makes the job `cancelled` at once and for good; what runs is stopped behind it.

        Raises JobNotFound, and JobAlreadyCompleted for a job that has ended.
        """
        event = NewEvent("cancelled", "The job was cancelled", int(time.time()))
        job = await self._store.write(rows.cancel, project, job_id, event)
        if job is None:
            ended = await self.get(project, job_id)
            raise JobAlreadyCompleted(f"Job has already completed: {job_id} is {ended.status.value}.")
        self._on_cancelled(job_id)
        return job

    async def events(self, project: str, job_id: str, *, after: str | None, limit: int) -> Page[JobEvent]:
        """One page of the job's events, newest first. Raises JobNotFound."""
        await self.get(project, job_id)
        page = await self._store.read(rows.event_page, project, job_id, after=after, limit=limit)
        return _continued(page, after, "event")

    async def checkpoints(self, project: str, job_id: str, *, after: str | None, limit: int) -> Page[Checkpoint]:
        """One page of the job's checkpoints, highest step first. Raises JobNotFound."""
        await self.get(project, job_id)
        page = await self._store.read(model_rows.checkpoint_page, project, job_id, after=after, limit=limit)
        return _continued(page, after, "checkpoint")

    async def queue_position(self, job: Job) -> int | None:
        """1 for the job that is next; None for one that does not wait."""
        return await self._store.read(rows.queue_position, job) if job.status is JobStatus.QUEUED else None

    async def count_by_status(self) -> Mapping[str, int]:
        return await self._store.read(rows.count_by_status)


def _first_job(tx: Tx, project: str, found: tuple[str, str], digest: str) -> Job:
    first_digest, job_id = found
    job = rows.get(tx, project, job_id)
    if first_digest != digest or job is None:
        raise InvalidRequest(
            "This Idempotency-Key came with another request before. Use a new key for a new job.",
            param="Idempotency-Key",
        )
    return job


def _file(tx: Tx, project: str, param: str, file_id: str) -> File:
    file = file_rows.get(tx, project, file_id)
    if file is None or file.purpose != PURPOSE:
        raise InvalidFile(f"invalid {param}: {file_id}", param=param)
    return file


def _continued(page: Page[T] | None, after: str | None, what: str) -> Page[T]:
    if page is None:
        raise InvalidRequest(f"There is no {what} {after!r} to continue after.", param="after")
    return page
