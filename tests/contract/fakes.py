"""Strict fakes of the services, in memory. They keep what they were asked and count what they did."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from tuneway import api
from tuneway.errors import (
    ChatModelNotFound,
    FileNotFound,
    InvalidRequest,
    JobAlreadyCompleted,
    JobNotFound,
    ModelNotFound,
    OutOfSpace,
)
from tuneway.types import (
    TERMINAL_STATUSES,
    BaseModel,
    Checkpoint,
    Desired,
    EventLevel,
    File,
    Hyperparameters,
    Job,
    JobEvent,
    JobRequest,
    JobSpec,
    JobStatus,
    LineState,
    Model,
    Origin,
    Page,
    Principal,
    Route,
    Scope,
)

NOW = 1_790_000_000
BASE = BaseModel("smollm2-135m-instruct", "local", "A small model.", NOW)


class NoKeys:
    """A gateway with auth off."""

    async def authenticate(self, presented: str | None) -> Principal:
        return Principal("default", frozenset(Scope))


def services(**given: Any) -> api.Services:
    """The services of an app; those that are not given are not asked for."""
    return api.Services(**{field.name: None for field in fields(api.Services)} | given)  # type: ignore[arg-type]


T = TypeVar("T", Job, JobEvent, Checkpoint, File)


def job(number: int, request: JobRequest | None = None, status: JobStatus = JobStatus.VALIDATING_FILES) -> Job:
    """A job as it is just after its creation."""
    request = request or JobRequest(model=BASE.name, training_file="file-1")
    return Job(
        seq=number,
        id=f"ftjob-{number:024}",
        project_id="default",
        created_at=NOW,
        spec=JobSpec(
            model=request.model,
            training_file=request.training_file,
            provider=request.provider or "local",
            method=request.method,
            hyperparameters=request.hyperparameters,
            validation_file=request.validation_file,
            suffix=request.suffix,
            seed=7 if request.seed is None else request.seed,
            metadata=request.metadata,
            integrations=request.integrations,
            reinforcement=request.reinforcement,
            learning_rate=request.learning_rate,
            options=request.options,
        ),
        status=status,
        training_sha256="0" * 64,
        planned_model=f"ft:{BASE.name}:default:{request.suffix or ''}:{number:08}",
        placement="local",
    )


def tuned(number: int, step: int | None = None) -> Model:
    end = "" if step is None else f":ckpt-step-{step}"
    return Model(
        seq=number,
        id=f"ft:{BASE.name}:default::{number:08}{end}",
        project_id="default",
        created_at=NOW,
        provider="local",
        base=BASE.name,
        job_id=f"ftjob-{number:024}",
        upstream_model="runs/1/adapter",
        step_number=step,
        data_sha256="0" * 64,
        hyperparameters=Hyperparameters(3, 8, 1.0),
    )


def event(number: int, level: EventLevel = EventLevel.INFO, **data: object) -> JobEvent:
    kind: Literal["message", "metrics"] = "metrics" if data else "message"
    return JobEvent(
        number, f"ftevent-{number:024}", "ftjob-1", f"e:{number}", NOW, level, kind, f"event {number}", data
    )


def checkpoint(number: int, **metrics: float) -> Checkpoint:
    name = f"ft:{BASE.name}:default::{number:08}:ckpt-step-{number}"
    return Checkpoint(number, f"ftckpt_{number:024}", "ftjob-1", NOW, number, metrics, name)


def _page(data: Sequence[T], after: str | None, limit: int) -> Page[T]:
    start = 0 if after is None else [item.id for item in data].index(after) + 1
    return Page(tuple(data[start : start + limit]), has_more=len(data) > start + limit)


@dataclass
class FakeJobs:
    done: Counter[str] = field(default_factory=Counter)
    rows: dict[str, Job] = field(default_factory=dict)
    keys: list[str | None] = field(default_factory=list)
    requests: list[JobRequest] = field(default_factory=list)
    filters: list[Mapping[str, str] | None] = field(default_factory=list)
    stored_events: list[JobEvent] = field(default_factory=list)
    stored_checkpoints: list[Checkpoint] = field(default_factory=list)
    batches: list[Sequence[JobEvent] | None] = field(default_factory=list)
    followed: list[str | None] = field(default_factory=list)
    adopted: list[str | None] = field(default_factory=list)
    breaks_with: Exception | None = None

    def add(self, made: Job) -> Job:
        self.rows[made.id] = made
        return made

    async def create(self, project: str, request: JobRequest, origin: Origin) -> Job:
        assert project == "default"
        if self.breaks_with is not None:
            raise self.breaks_with
        self.done["create"] += 1
        self.requests.append(request)
        self.keys.append(origin.idempotency_key)
        return self.add(job(len(self.rows) + 1, request))

    def ignored(self, request: JobRequest, provider: str) -> Sequence[str]:
        """As a provider without integrations and without options of its own."""
        return [*(["integrations"] if request.integrations else []), *request.ignored, *request.optional]

    async def adopt(self, project: str, job_id: str, provider_job_id: str | None) -> Job:
        found = await self.get(project, job_id)
        self.adopted.append(provider_job_id)
        return self.add(replace(found, attention=None, provider_job_id=provider_job_id))

    async def get(self, project: str, job_id: str) -> Job:
        assert project == "default"
        if job_id not in self.rows:
            raise JobNotFound(job_id)
        return self.rows[job_id]

    async def list(
        self, project: str, *, after: str | None, limit: int, metadata: Mapping[str, str] | None
    ) -> Page[Job]:
        self.filters.append(metadata)
        return _page([*self.rows.values()][::-1], after, limit)

    async def cancel(self, project: str, job_id: str, origin: Origin) -> Job:
        found = await self._going(project, job_id)
        self.done["cancel"] += 1
        return self.add(replace(found, status=JobStatus.CANCELLED, finished_at=NOW + 9))

    async def pause(self, project: str, job_id: str) -> Job:
        found = await self._going(project, job_id)
        self.done["pause"] += 1
        return self.add(replace(found, status=JobStatus.PAUSED, desired=Desired.PAUSE))

    async def resume(self, project: str, job_id: str) -> Job:
        found = await self._going(project, job_id)
        self.done["resume"] += 1
        return self.add(replace(found, status=JobStatus.QUEUED, desired=Desired.RUN))

    async def _going(self, project: str, job_id: str) -> Job:
        found = await self.get(project, job_id)
        if found.status in TERMINAL_STATUSES:
            raise JobAlreadyCompleted
        return found

    async def delete(self, project: str, job_id: str) -> None:
        await self.get(project, job_id)
        self.done["delete"] += 1
        del self.rows[job_id]

    async def follow(self, project: str, job_id: str, *, after: str | None) -> AsyncIterator[Sequence[JobEvent] | None]:
        await self.get(project, job_id)
        self.followed.append(after)

        async def batches() -> AsyncIterator[Sequence[JobEvent] | None]:
            for batch in self.batches:
                yield batch

        return batches()

    async def events(self, project: str, job_id: str, *, after: str | None, limit: int) -> Page[JobEvent]:
        await self.get(project, job_id)
        return _page(self.stored_events[::-1], after, limit)

    async def checkpoints(self, project: str, job_id: str, *, after: str | None, limit: int) -> Page[Checkpoint]:
        await self.get(project, job_id)
        return _page(self.stored_checkpoints[::-1], after, limit)

    async def queue_position(self, job: Job) -> int | None:
        assert job.status is JobStatus.QUEUED
        return 2

    async def count_by_status(self) -> Mapping[str, int]:
        return Counter(row.status.value for row in self.rows.values())


class FakeAccounts:
    def __init__(self) -> None:
        self.states: dict[str, LineState] = {}

    def lines(self) -> Iterable[tuple[str, LineState]]:
        return self.states.items()


class FakeIncoming:
    def __init__(self, files: FakeFiles) -> None:
        self._files = files
        self._data = bytearray()
        self.ended: str | None = None

    async def write(self, data: bytes) -> None:
        assert self.ended is None
        assert data
        if len(self._data) + len(data) > self._files.space:
            raise OutOfSpace
        self._files.largest_write = max(self._files.largest_write, len(data))
        self._data += data

    async def commit(
        self, project: str, *, filename: str, purpose: str, expires_after: int | None, origin: Origin
    ) -> File:
        assert project == "default"
        assert self.ended is None
        self.ended = "committed"
        self._files.done["commit"] += 1
        seq = self._files.done["commit"]
        expires_at = None if expires_after is None else NOW + expires_after
        digest = hashlib.sha256(self._data).hexdigest()
        file = File(seq, f"file-{seq:024}", project, NOW, filename, purpose, len(self._data), digest, expires_at)
        (self._files.folder / file.id).write_bytes(self._data)
        self._files.rows[file.id] = file
        return file

    async def discard(self) -> None:
        if self.ended is None:
            self.ended = "discarded"
            self._files.done["discard"] += 1
            self._files.discarded()


@dataclass
class FakeFiles:
    done: Counter[str] = field(default_factory=Counter)
    rows: dict[str, File] = field(default_factory=dict)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp()))
    space: int = 2**40
    largest_write: int = 0
    discarded: Callable[[], None] = lambda: None

    def receive(self) -> FakeIncoming:
        self.done["receive"] += 1
        return FakeIncoming(self)

    async def get(self, project: str, file_id: str) -> File:
        if file_id not in self.rows:
            raise FileNotFound(file_id)
        return self.rows[file_id]

    async def list(
        self, project: str, *, after: str | None, limit: int, order: Literal["asc", "desc"], purpose: str | None
    ) -> Page[File]:
        wanted = [file for file in self.rows.values() if purpose in (None, file.purpose)]
        return _page(wanted if order == "asc" else wanted[::-1], after, limit)

    async def delete(self, project: str, file_id: str) -> None:
        await self.get(project, file_id)
        self.done["delete"] += 1
        del self.rows[file_id]

    def path(self, file: File) -> Path:
        return self.folder / file.id


async def _no_route(name: str) -> Route:
    raise ChatModelNotFound(name)


@dataclass
class FakeModels:
    done: Counter[str] = field(default_factory=Counter)
    rows: dict[str, BaseModel | Model] = field(default_factory=lambda: {BASE.name: BASE})
    find: Callable[[str], Awaitable[Route]] = _no_route

    def require_provider(self, provider: str, param: str) -> None:
        if provider not in ("fake", "local", "openai"):
            raise InvalidRequest("There is no such provider.", param=param)

    async def list(self, project: str) -> Sequence[BaseModel | Model]:
        return [*self.rows.values()]

    async def get(self, project: str, name: str) -> BaseModel | Model:
        if name not in self.rows:
            raise ModelNotFound(name)
        return self.rows[name]

    async def delete(self, project: str, name: str) -> None:
        await self.get(project, name)
        self.done["delete"] += 1
        del self.rows[name]

    async def route(self, project: str, name: str) -> Route:
        assert project == "default"
        self.done["route"] += 1
        return await self.find(name)
