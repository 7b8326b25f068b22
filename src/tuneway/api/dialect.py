"""The three dialects of the wire, in one table, and which of them a request speaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from starlette.datastructures import Headers
from starlette.types import Scope

from tuneway.errors import (
    ChatModelNotFound,
    EngineUnavailable,
    Forbidden,
    InternalError,
    InvalidRequest,
    JobAlreadyCompleted,
    JobNotEnded,
    NotFound,
    NotReady,
    TooManyRequests,
    TunewayError,
    Unauthorized,
    UnknownRoute,
)
from tuneway.types import AUTO, EventLevel, JobStatus

DIALECT = "tuneway.dialect"
"""Key of the request's dialect in its ASGI scope."""
ORIGINAL_PATH = "tuneway.original_path"
"""Key, in the ASGI scope, of the path as the client wrote it."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What differs between the dialects.

    `created` is the HTTP status of a successful create, with a `Location` header where it is 201; `auto` is how the
    value "auto" of a hyperparameter is written; `error_codes` overrides `error.code` by class, the nearest one wins.
    """

    name: Literal["gateway", "openai", "azure"]
    statuses: Mapping[JobStatus, str]
    suffix_limit: int
    created: int = 200
    levels: Mapping[EventLevel, str] = field(default_factory=lambda: {level: level.value for level in EventLevel})
    auto: Literal["auto", -1] = AUTO
    deletes_blindly: bool = False
    """Whether deleting a job that is not there succeeds."""
    optional: Mapping[str, str] = field(default_factory=dict)
    """Fields of a job's create that this dialect alone has, and the option of a provider that each is; where the job's
    provider has no such option, the field has no effect and the answer says so.
    """
    error_codes: Mapping[type[TunewayError], str] = field(default_factory=dict)

    def code(self, error: TunewayError) -> str | None:
        """`error.code` of an error in this dialect."""
        named = (self.error_codes[kind] for kind in type(error).__mro__ if kind in self.error_codes)
        return next(named, error.code)


_SAME = {status: status.value for status in JobStatus}

OPENAI = Dialect(
    name="openai",
    # OpenAI's enum is closed in some clients and has no `paused`; a paused job waits to go on, as a queued one does.
    statuses=_SAME | {JobStatus.PAUSED: "queued"},
    suffix_limit=64,
)
GATEWAY = Dialect(
    name="gateway",
    statuses=_SAME | {JobStatus.VALIDATING_FILES: "created", JobStatus.QUEUED: "created", JobStatus.PAUSED: "running"},
    suffix_limit=40,
)
AZURE = Dialect(
    name="azure",
    statuses=_SAME | {JobStatus.VALIDATING_FILES: "pending", JobStatus.QUEUED: "pending", JobStatus.PAUSED: "pending"},
    suffix_limit=40,
    created=201,
    levels={EventLevel.INFO: "info", EventLevel.WARN: "warning", EventLevel.ERROR: "error"},
    auto=-1,
    deletes_blindly=True,
    # Which data centres train; LiteLLM sends it with every job (1.106).
    optional={"trainingType": "training_type"},
    error_codes={
        InternalError: "internalFailure",
        InvalidRequest: "invalidPayload",
        JobAlreadyCompleted: "unexpectedEntityState",
        JobNotEnded: "unexpectedEntityState",
        NotFound: "notFound",
        ChatModelNotFound: "DeploymentNotFound",
        UnknownRoute: "404",
        Unauthorized: "401",
        Forbidden: "forbidden",
        TooManyRequests: "tooManyRequests",
        NotReady: "serviceUnavailable",
        EngineUnavailable: "serviceUnavailable",
    },
)
DIALECTS: Mapping[str, Dialect] = {dialect.name: dialect for dialect in (GATEWAY, OPENAI, AZURE)}


def choose(scope: Scope, *, relayed: bool = False) -> Dialect:
    """The dialect of a request: by `x-tuneway-dialect`, else by its path, else by Portkey's headers, else OpenAI's.

    One that is `relayed` speaks the gateway's unless it says otherwise.

    Raises InvalidRequest for a dialect that there is not.
    """
    headers = Headers(scope=scope)
    asked = headers.get("x-tuneway-dialect")
    if asked is not None:
        if asked not in DIALECTS:
            known = ", ".join(f"'{name}'" for name in DIALECTS)
            raise InvalidRequest(
                f"Invalid value: '{asked}'. Supported values of the header x-tuneway-dialect are: {known}.",
                param="x-tuneway-dialect",
                code="invalid_value",
            )
        return DIALECTS[asked]
    if scope["path"].startswith("/openai/"):
        return AZURE
    if relayed or any(name.startswith("x-portkey-") for name in headers):
        return GATEWAY
    return OPENAI
