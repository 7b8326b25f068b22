"""What a handler is given: the services, as it sees them, the caller's project and the caller's dialect."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from fastapi import Depends, Request
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from tuneway import __version__
from tuneway.accounts import Shown, ShownKind
from tuneway.api.dialect import DIALECT, Dialect
from tuneway.api.metrics import Metrics
from tuneway.completions import Outcome, Selection
from tuneway.errors import InvalidRequest
from tuneway.graders.values import Graded, Grader
from tuneway.relay import Relay
from tuneway.types import (
    Account,
    BaseModel,
    Checkpoint,
    Completion,
    Delivery,
    DeliveryState,
    File,
    Import,
    Job,
    JobEvent,
    JobRequest,
    Key,
    LineState,
    Model,
    Origin,
    Page,
    Permission,
    Principal,
    Route,
    Scope,
    Upload,
    UploadPart,
    Upstream,
    Webhook,
)

MEBIBYTE = 2**20
PROVIDER_HEADERS = ("x-tuneway-provider", "x-portkey-provider")
_MAX_KEY_LENGTH = 255
_MAX_METADATA = 16
_METADATA = re.compile(r"metadata\[(.+)\]")


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """`allowed_hosts` are names besides the loopback ones, with a port or for every port. Sizes are in bytes."""

    auth: bool = False
    allowed_hosts: tuple[str, ...] = ()
    max_file_bytes: int = 512 * MEBIBYTE
    max_json_bytes: int = MEBIBYTE
    max_chat_bytes: int = 32 * MEBIBYTE
    version: str = __version__


class Jobs(Protocol):
    async def create(self, project: str, request: JobRequest, origin: Origin) -> Job: ...

    def ignored(self, request: JobRequest, provider: str) -> Sequence[str]: ...

    async def get(self, project: str, job_id: str) -> Job: ...

    async def list(
        self, project: str, *, after: str | None, limit: int, metadata: Mapping[str, str] | None
    ) -> Page[Job]: ...

    async def cancel(self, project: str, job_id: str, origin: Origin) -> Job: ...

    async def pause(self, project: str, job_id: str) -> Job: ...

    async def resume(self, project: str, job_id: str) -> Job: ...

    async def adopt(self, project: str, job_id: str, provider_job_id: str | None) -> Job: ...

    async def delete(self, project: str, job_id: str) -> None: ...

    async def follow(
        self, project: str, job_id: str, *, after: str | None
    ) -> AsyncIterator[Sequence[JobEvent] | None]: ...

    async def events(self, project: str, job_id: str, *, after: str | None, limit: int) -> Page[JobEvent]: ...

    async def checkpoints(self, project: str, job_id: str, *, after: str | None, limit: int) -> Page[Checkpoint]: ...

    async def queue_position(self, job: Job) -> int | None: ...

    async def count_by_status(self) -> Mapping[str, int]: ...


class Incoming(Protocol):
    async def write(self, data: bytes) -> None: ...

    async def commit(
        self, project: str, *, filename: str, purpose: str, expires_after: int | None, origin: Origin
    ) -> File: ...

    async def discard(self) -> None: ...


class Files(Protocol):
    def receive(self) -> Incoming: ...

    async def get(self, project: str, file_id: str) -> File: ...

    async def list(
        self, project: str, *, after: str | None, limit: int, order: Literal["asc", "desc"], purpose: str | None
    ) -> Page[File]: ...

    async def delete(self, project: str, file_id: str) -> None: ...

    async def fetch(self, project: str, *, filename: str, purpose: str, url: str, origin: Origin) -> File: ...

    def path(self, file: File) -> Path: ...


class IncomingPart(Protocol):
    async def write(self, data: bytes) -> None: ...

    async def commit(self, origin: Origin) -> UploadPart: ...

    async def discard(self) -> None: ...


class Uploads(Protocol):
    async def create(
        self,
        project: str,
        *,
        filename: str,
        purpose: str,
        bytes: int,
        mime_type: str,
        expires_after: int | None,
        origin: Origin,
    ) -> Upload: ...

    async def receive_part(self, project: str, upload_id: str) -> IncomingPart: ...

    async def complete(
        self, project: str, upload_id: str, *, part_ids: Sequence[str], md5: str | None, origin: Origin
    ) -> tuple[Upload, File]: ...

    async def cancel(self, project: str, upload_id: str, origin: Origin) -> Upload: ...


class Models(Protocol):
    async def list(self, project: str) -> Sequence[BaseModel | Model]: ...

    async def get(self, project: str, name: str) -> BaseModel | Model: ...

    async def delete(self, project: str, name: str) -> None: ...

    async def route(self, project: str, name: str) -> Route: ...

    def require_provider(self, provider: str, param: str) -> None: ...


class Keys(Protocol):
    async def authenticate(self, presented: str | None) -> Principal: ...

    async def create(
        self, project: str, name: str, scopes: Collection[Scope] = ..., expires_after: int | None = None
    ) -> tuple[Key, str]: ...

    async def list(self, project: str | None) -> Sequence[Key]: ...

    async def revoke(self, project: str | None, key_id: str) -> Key: ...


class Chat(Protocol):
    async def answer(
        self,
        project: str,
        body: bytes,
        headers: Mapping[str, str],
        receive: Receive,
        send: Send,
        *,
        model: str | None = None,
    ) -> None: ...

    async def relay(
        self, upstream: Upstream, body: bytes, headers: Mapping[str, str], receive: Receive, send: Send
    ) -> None: ...


class Completions(Protocol):
    async def list(
        self,
        project: str,
        *,
        after: str | None,
        limit: int,
        order: Literal["asc", "desc"],
        model: str | None,
        metadata: Mapping[str, str] | None,
    ) -> Page[Completion]: ...

    async def get(self, project: str, completion_id: str) -> Completion: ...

    async def update(self, project: str, completion_id: str, metadata: Mapping[str, str] | None) -> Completion: ...

    async def delete(self, project: str, completion_id: str) -> None: ...

    async def make_file(
        self, project: str, selection: Selection, *, filename: str, expires_after: int | None, origin: Origin
    ) -> tuple[File, Outcome]: ...


class Permissions(Protocol):
    async def grant(self, project: str, model: str, to: Sequence[str]) -> Sequence[Permission]: ...

    async def list(
        self,
        project: str,
        model: str,
        *,
        granted_to: str | None,
        after: str | None,
        limit: int,
        order: Literal["ascending", "descending"],
    ) -> Page[Permission]: ...

    async def revoke(self, project: str, model: str, permission_id: str) -> None: ...


class Graders(Protocol):
    async def validate(self, grader: Grader) -> None: ...

    async def run(self, project: str, grader: Grader, output: str, item: Mapping[str, Any]) -> Graded: ...


class Webhooks(Protocol):
    async def create(
        self, project: str, url: str, events: Sequence[str], name: str, origin: Origin
    ) -> tuple[Webhook, str]: ...

    async def list(self, project: str) -> Sequence[Webhook]: ...

    async def get(self, project: str, webhook_id: str) -> Webhook: ...

    async def delete(self, project: str, webhook_id: str) -> None: ...

    async def deliveries(
        self, project: str, webhook_id: str, *, after: str | None, limit: int, state: DeliveryState | None
    ) -> Page[Delivery]: ...

    async def test(self, project: str, webhook_id: str) -> Delivery: ...


class Accounts(Protocol):
    def kinds(self) -> Sequence[ShownKind]: ...

    async def add(self, account: Account, secrets: Mapping[str, str]) -> Shown: ...

    async def remove(self, name: str) -> None: ...

    async def list(self) -> Sequence[Shown]: ...

    async def get(self, name: str) -> Shown: ...

    async def check(self, name: str) -> None: ...

    def lines(self) -> Iterable[tuple[str, LineState]]: ...


class Imports(Protocol):
    async def start(self, project: str, provider: str) -> Import: ...

    async def get(self, project: str, import_id: str) -> Import: ...

    async def list(self, project: str, *, after: str | None, limit: int) -> Page[Import]: ...


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes are built on. `ready` is asked by `/readyz`."""

    jobs: Jobs
    files: Files
    uploads: Uploads
    models: Models
    chat: Chat
    completions: Completions
    keys: Keys
    permissions: Permissions
    webhooks: Webhooks
    graders: Graders
    accounts: Accounts
    imports: Imports
    ready: Callable[[], bool]
    relay: Relay | None = None


@dataclass(frozen=True, slots=True)
class Context:
    services: Services
    metrics: Metrics
    settings: ApiSettings

    @property
    def jobs(self) -> Jobs:
        return self.services.jobs

    @property
    def files(self) -> Files:
        return self.services.files

    @property
    def uploads(self) -> Uploads:
        return self.services.uploads

    @property
    def models(self) -> Models:
        return self.services.models

    @property
    def completions(self) -> Completions:
        return self.services.completions


PRINCIPAL = "tuneway.principal"
"""Key, in the ASGI scope, of who sends the request."""


def principal_of(scope: AsgiScope) -> Principal:
    found: Principal = scope[PRINCIPAL]
    return found


def project_of(scope: AsgiScope) -> str:
    """Whose things the request may see."""
    return principal_of(scope).project


def _origin(request: Request) -> Origin:
    """Raises InvalidRequest for an idempotency key of a wrong form."""
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= _MAX_KEY_LENGTH:
        raise InvalidRequest(
            f"The header Idempotency-Key must have 1 to {_MAX_KEY_LENGTH} characters.", param="Idempotency-Key"
        )
    tries = request.headers.get("x-stainless-retry-count", "")
    retry = int(tries) if tries.isascii() and tries.isdecimal() and len(tries) < 4 else 0
    return Origin(principal_of(request.scope).key_id, retry, key)


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
Sender = Annotated[Origin, Depends(_origin)]


def metadata_filter(request: Request, things: str) -> Mapping[str, str] | None:
    """The filter in `metadata[k]=v`, {} (those without metadata) for `metadata=null`, None for no filter.

    Raises InvalidRequest.
    """
    wanted: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        key = _METADATA.fullmatch(name)
        if key is not None and wanted.setdefault(key[1], value) != value:
            raise InvalidRequest(f"'{name}' is given twice with different values.", param=name)
    if len(wanted) > _MAX_METADATA:
        raise InvalidRequest(f"Filter {things} by at most {_MAX_METADATA} pairs: none has more.", param="metadata")
    literal = request.query_params.get("metadata")
    if literal is None:
        return wanted or None
    if literal != "null" or wanted:
        raise InvalidRequest(
            f"Filter {things} by 'metadata[key]=value', or by 'metadata=null' for those without metadata.",
            param="metadata",
        )
    return {}
