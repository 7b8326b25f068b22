"""What a handler is given: the services, as it sees them, the caller's project and the caller's dialect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

from fastapi import Depends, Request
from starlette.types import Scope

from tuneway import __version__
from tuneway.api.dialect import DIALECT, Dialect
from tuneway.api.metrics import Metrics
from tuneway.types import BaseModel, Checkpoint, File, Job, JobEvent, JobRequest, Model, Page, Route

MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """`allowed_hosts` are names besides the loopback ones, with a port or for every port. Sizes are in bytes."""

    allowed_hosts: tuple[str, ...] = ()
    max_file_bytes: int = 512 * MEBIBYTE
    max_json_bytes: int = MEBIBYTE
    max_chat_bytes: int = 32 * MEBIBYTE
    version: str = __version__


class Jobs(Protocol):
    async def create(self, project: str, request: JobRequest, *, idempotency_key: str | None = None) -> Job: ...

    async def get(self, project: str, job_id: str) -> Job: ...

    async def list(
        self, project: str, *, after: str | None, limit: int, metadata: Mapping[str, str] | None
    ) -> Page[Job]: ...

    async def cancel(self, project: str, job_id: str) -> Job: ...

    async def events(self, project: str, job_id: str, *, after: str | None, limit: int) -> Page[JobEvent]: ...

    async def checkpoints(self, project: str, job_id: str, *, after: str | None, limit: int) -> Page[Checkpoint]: ...

    async def queue_position(self, job: Job) -> int | None: ...

    async def count_by_status(self) -> Mapping[str, int]: ...


class Incoming(Protocol):
    async def write(self, data: bytes) -> None: ...

    async def commit(self, project: str, *, filename: str, purpose: str, expires_after: int | None) -> File: ...

    async def discard(self) -> None: ...


class Files(Protocol):
    def receive(self) -> Incoming: ...

    async def get(self, project: str, file_id: str) -> File: ...

    async def list(
        self, project: str, *, after: str | None, limit: int, order: Literal["asc", "desc"], purpose: str | None
    ) -> Page[File]: ...

    async def delete(self, project: str, file_id: str) -> None: ...

    def path(self, file: File) -> Path: ...


class Models(Protocol):
    async def list(self, project: str) -> Sequence[BaseModel | Model]: ...

    async def get(self, project: str, name: str) -> BaseModel | Model: ...

    async def delete(self, project: str, name: str) -> None: ...

    async def route(self, project: str, name: str) -> Route: ...


@dataclass(frozen=True, slots=True)
class Context:
    jobs: Jobs
    files: Files
    models: Models
    ready: Callable[[], bool]
    metrics: Metrics
    settings: ApiSettings


def project_of(scope: Scope) -> str:
    """Whose things the request may see. There is one project until there are keys."""
    return "default"


def _context(request: Request) -> Context:
    found: Context = request.app.state.context
    return found


def _project(request: Request) -> str:
    return project_of(request.scope)


def _dialect(request: Request) -> Dialect:
    found: Dialect = request.scope[DIALECT]
    return found


Served = Annotated[Context, Depends(_context)]
Project = Annotated[str, Depends(_project)]
Spoken = Annotated[Dialect, Depends(_dialect)]
