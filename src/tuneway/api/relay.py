"""Relayed requests: OpenAI's operations, answered by the provider that the request names, in the request's dialect."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from tuneway.api.azure import DEPLOYMENT, location
from tuneway.api.body import read, read_bytes, read_json, read_nothing, require_json
from tuneway.api.chat import with_model
from tuneway.api.context import PROVIDER_HEADERS, ApiSettings, Chat, Models
from tuneway.api.dialect import DIALECT, Dialect
from tuneway.api.edge import REQUEST_ID
from tuneway.api.errors import render
from tuneway.api.multipart import StreamedForm
from tuneway.api.relaying import Relayed, parameters, require_effect
from tuneway.api.relaying import read as read_headers
from tuneway.api.schema.jobs import CreateFineTuningJobRequest, spell_auto
from tuneway.errors import (
    InvalidRequest,
    MethodNotAllowed,
    OutboundRefused,
    ProviderError,
    ProviderTimedOut,
    RequestTimedOut,
    TunewayError,
    UnknownRoute,
)
from tuneway.proxy import peek_model, until_left
from tuneway.relay import Json, Line, Relay, Vendor
from tuneway.types import AUTO, JobStatus, Method

log = logging.getLogger(__name__)

RELAYED = "tuneway.relayed"
"""Key, in the ASGI scope, of what the headers say of a relay."""

_CHECKED = ("model", "training_file", "validation_file", "suffix", "seed", "metadata", "tuneway")
"""Fields of a create that are checked before it is sent; the others are the provider's to judge."""

_PLACES = ("base_url", "inference_url", "azure_foundry_url", "azure_resource_name", "aws_region")
"""Options by which a caller says where to."""

Handler = Callable[["Call"], Awaitable[Response | None]]


@dataclass(frozen=True, slots=True)
class Call:
    """One relayed request. `parts` are the ids in its `path`, which is behind the provider's base URL."""

    request: Request
    relayed: Relayed
    vendor: Vendor
    dialect: Dialect
    path: str
    parts: tuple[str, ...]
    send: Send

    @property
    def query(self) -> dict[str, str]:
        return parameters(QueryParams(self.request.scope["query_string"]))


@dataclass(frozen=True, slots=True)
class Operation:
    """A route; `name` is what metrics call it, `method` a pattern of methods, and the groups of `path` are ids."""

    name: str
    method: str
    path: re.Pattern[str]
    handler: Handler


class RelayRoutes:
    """The ASGI app of relays; whoever calls it has found out that the request is one, and that its sender may."""

    def __init__(self, relay: Relay, chat: Chat, models: Models, settings: ApiSettings) -> None:
        self._relay = relay
        self._chat = chat
        self._models = models
        self._settings = settings
        self._operations = [
            Operation(name, method, re.compile(path), handler)
            for name, method, path, handler in (
                ("create_file", "POST", "/files", self._create_file),
                ("list_files", "GET", "/files", _list_files),
                ("retrieve_file", "GET", "/files/([^/]+)", _retrieve_file),
                ("delete_file", "DELETE", "/files/([^/]+)", _delete_file),
                ("download_file", "GET", "/files/([^/]+)/content", _download_file),
                ("create_upload", "POST", "/uploads", self._pass_on),
                ("add_upload_part", "POST", "/uploads/([^/]+)/parts", _add_part),
                ("end_upload", "POST", "/uploads/([^/]+)/(?:complete|cancel)", self._pass_on),
                ("create_fine_tuning_job", "POST", "/fine_tuning/jobs", self._create_job),
                ("list_fine_tuning_jobs", "GET", "/fine_tuning/jobs", _list_jobs),
                ("retrieve_fine_tuning_job", "GET", "/fine_tuning/jobs/([^/]+)", _retrieve_job),
                ("delete_fine_tuning_job", "DELETE", "/tuneway/jobs/([^/]+)", _delete_job),
                ("change_fine_tuning_job", "POST", "/fine_tuning/jobs/([^/]+)/(cancel|pause|resume)", self._change_job),
                ("list_events", "GET", "/fine_tuning/jobs/([^/]+)/events", _list_events),
                ("list_checkpoints", "GET", "/fine_tuning/jobs/([^/]+)/checkpoints", _list_checkpoints),
                ("permissions", "GET|POST", "/fine_tuning/checkpoints/(.+)/permissions", self._pass_on),
                ("permission", "DELETE", "/fine_tuning/checkpoints/(.+)/permissions/([^/]+)", self._pass_on),
                ("graders", "POST", "/fine_tuning/alpha/graders/(?:run|validate)", self._pass_on),
                ("list_models", "GET", "/models", _list_models),
                ("retrieve_model", "GET", "/models/(.+)", _retrieve_model),
                ("delete_model", "DELETE", "/models/(.+)", _delete_model),
                ("create_chat_completion", "POST", "/chat/completions", self._complete),
                ("list_completions", "GET", "/chat/completions", self._pass_on),
                ("stored_completion", "GET|POST|DELETE", "/chat/completions/([^/]+)", self._pass_on),
                ("stored_messages", "GET", "/chat/completions/([^/]+)/messages", self._pass_on),
            )
        ]

    def claims(self, scope: Scope, headers: Headers) -> bool:
        """Whether the request is a relay; what its headers say is kept for the call. Raises InvalidRequest."""
        if not scope["path"].startswith(("/v1/", "/openai/")):
            return False
        azure_path = scope["path"].startswith("/openai/")
        relayed = read_headers(headers, self._relay.kinds, azure_path=azure_path, api_version=_api_version(scope))
        if relayed is None:
            return False
        scope[RELAYED] = relayed
        return True

    def check_other(self, headers: Headers) -> None:
        """Raises InvalidRequest for a request that is none of a relay, and of which a header says that it should be."""
        require_effect(headers, self._relay.kinds)
        for header in PROVIDER_HEADERS:
            if named := headers.get(header, "").removeprefix("@"):
                self._models.require_provider(named, header)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        relayed: Relayed = scope[RELAYED]
        named = _Named(send, relayed, Headers(scope=scope))
        try:
            operation, path, parts = self._find(scope)
            scope["route"] = operation
            vendor = self._relay.vendor(relayed.kind, relayed.given, relayed.called, relayed.forwarded, relayed.seconds)
            named.line = vendor.line
            call = Call(Request(scope, receive), relayed, vendor, scope[DIALECT], path, parts, named)
            response = await operation.handler(call)
        except RequestTimedOut:
            raise
        except TunewayError as error:
            if named.started:
                raise
            response = render(_blamed(error, relayed), scope)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            if named.started or named.line is None or not named.line.last_headers:
                raise
            # The provider has answered, and in a shape that nobody foresaw.
            log.exception("%s: %s answered in a form that is not known", scope[REQUEST_ID], relayed.kind)
            response = render(
                ProviderError(502, f"{relayed.kind} answered in a form that is not known here; the log says more."),
                scope,
            )
        if response is not None:
            await response(scope, receive, named)

    def _find(self, scope: Scope) -> tuple[Operation, str, tuple[str, ...]]:
        """The operation, and its path with every id as one segment. Raises UnknownRoute and MethodNotAllowed."""
        # The path as it was sent: an id may hold an encoded slash, which is none between segments.
        sent = scope["raw_path"].decode("latin-1").partition("?")[0].removeprefix("/v1")
        fitting = [(each, found) for each in self._operations if (found := each.path.fullmatch(sent))]
        for each, found in fitting:
            if re.fullmatch(each.method, scope["method"]):
                parts = tuple(unquote(part) for part in found.groups())
                for part in parts:
                    if part in (".", ".."):
                        raise InvalidRequest(f"{part!r} is no id.")
                return each, _path(found), parts
        line = f"{scope['method']} {scope['path'][:500]}"
        if fitting:
            allowed = [method for each, _ in fitting for method in each.method.split("|")]
            raise _NotAllowed(f"Invalid method for URL ({line}). Allowed: {', '.join(allowed)}.", allowed)
        raise UnknownRoute(f"Invalid URL ({line}): it is not passed on to providers.")

    # ---------------------------------------------------------------------------------------------------- operations

    async def _create_file(self, call: Call) -> Response:
        form = StreamedForm(call.request)
        file = await call.vendor.relay_upload(form)
        return _created(call, file)

    async def _create_job(self, call: Call) -> Response:
        body = await read_json(call.request, self._settings.max_json_bytes)
        checked = {name: value for name, value in body.items() if name in _CHECKED}
        asked = CreateFineTuningJobRequest.parse(checked, call.dialect).to_domain(call.dialect)
        if asked.provider not in (None, call.vendor.kind):
            raise InvalidRequest(
                f"'tuneway.provider' is {asked.provider[:64]!r}, but the headers name {call.vendor.kind!r}. Name one.",
                param="tuneway.provider",
                code="invalid_value",
            )
        _check_method(body)
        if call.dialect.auto != AUTO:
            body = spell_auto(body, call.dialect.auto)
        tries = call.request.headers.get("x-stainless-retry-count", "")
        retry = int(tries) if tries.isascii() and tries.isdecimal() and len(tries) < 4 else 0
        try:
            job = await self._relay.create_job(call.vendor, dict(body), retry=retry, caller=call.relayed.given)
        except ProviderTimedOut as error:
            late = ProviderTimedOut(
                f"{error.message} It may start the job all the same: look at its jobs before you send this again."
            )
            # It has no job to show yet, so that a retry would find none and start a second one.
            return render(late, call.request.scope, {"x-should-retry": "false"})
        return _created(call, _shown_job(job, call))

    async def _change_job(self, call: Call) -> Response:
        await read_nothing(call.request, self._settings.max_json_bytes)
        job_id, verb = call.parts
        return _JSON(_shown_job(await call.vendor.change_job(job_id, verb), call))  # type: ignore[arg-type]  # the path's pattern

    async def _pass_on(self, call: Call) -> Response:
        body = await read(call.request, self._settings.max_json_bytes)
        if body:
            require_json(call.request)
        query = call.request.scope["query_string"].decode("latin-1").split("&")
        kept = "&".join(part for part in query if not part.startswith("api-version="))
        status, value = await call.vendor.pass_on(call.request.method, call.path, kept, body or None)
        return Response(status_code=status) if status == 204 else _JSON(value, status)

    async def _complete(self, call: Call) -> None:
        scope = call.request.scope
        body = await read_bytes(call.request, self._settings.max_chat_bytes)
        deployment: str | None = scope.get(DEPLOYMENT)
        if deployment is not None:
            body = with_model(body, deployment)
        upstream = await call.vendor.chat(deployment or peek_model(body))
        upstream = replace(upstream, headers={**call.relayed.forwarded, **upstream.headers})
        headers = {**Headers(scope=scope), "x-request-id": scope[REQUEST_ID]}
        seconds = call.relayed.seconds
        try:
            async with asyncio.timeout(seconds) as limit:
                await self._chat.relay(upstream, body, headers, call.request.receive, _Unbounded(call.send, limit))
        except TimeoutError:
            raise ProviderTimedOut(f"{call.vendor.kind} did not answer in {seconds:g} seconds.") from None


async def _list_files(call: Call) -> Response:
    return _JSON(await call.vendor.list_files(call.query))


async def _retrieve_file(call: Call) -> Response:
    return _JSON(await call.vendor.file(call.parts[0]))


async def _delete_file(call: Call) -> Response:
    return _JSON(await call.vendor.delete_file(call.parts[0]))


async def _download_file(call: Call) -> None:
    """Byte for byte, as it comes."""

    async def answer() -> None:
        async with call.vendor.content(call.parts[0]) as reply:
            kept = ("content-length", "content-type", "content-disposition", "content-range", "x-request-id")
            headers = [(name.encode(), reply.headers[name].encode("latin-1")) for name in kept if name in reply.headers]
            headers.append((b"x-content-type-options", b"nosniff"))
            await call.send({"type": "http.response.start", "status": reply.status, "headers": headers})
            async for chunk in reply.chunks():
                await call.send({"type": "http.response.body", "body": chunk, "more_body": True})
        await call.send({"type": "http.response.body", "body": b"", "more_body": False})

    await until_left(answer(), call.request.receive)


async def _add_part(call: Call) -> Response:
    return _JSON(await call.vendor.pass_part_on(call.parts[0], StreamedForm(call.request)))


async def _list_jobs(call: Call) -> Response:
    found = await call.vendor.list_jobs(call.query)
    return _JSON({**found, "data": [_shown_job(job, call) for job in found["data"]]})


async def _retrieve_job(call: Call) -> Response:
    return _JSON(_shown_job(await call.vendor.job(call.parts[0]), call))


async def _delete_job(call: Call) -> Response:
    await call.vendor.delete_job(call.parts[0])
    return Response(status_code=204)


async def _list_events(call: Call) -> Response:
    found = await call.vendor.events(call.parts[0], call.query)
    return _JSON({**found, "data": [_shown_event(event, call.dialect) for event in found["data"]]})


async def _list_checkpoints(call: Call) -> Response:
    return _JSON(await call.vendor.checkpoints(call.parts[0], call.query))


async def _list_models(call: Call) -> Response:
    return _JSON(await call.vendor.list_models())


async def _retrieve_model(call: Call) -> Response:
    return _JSON(await call.vendor.model(call.parts[0]))


async def _delete_model(call: Call) -> Response:
    return _JSON(await call.vendor.delete_model(call.parts[0]))


# ----------------------------------------------------------------------------------------------------------- requests


def _check_method(body: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for a method in which nothing could be found; what is in it is the provider's to judge."""
    _require_object(body, "hyperparameters")
    method = _require_object(body, "method")
    if not method:
        return
    kind = method.get("type")
    if not isinstance(kind, str) or kind not in set(Method):
        known = ", ".join(f"'{each.value}'" for each in Method)
        raise InvalidRequest(f"'method.type' must be one of {known}.", param="method.type", code="invalid_value")
    own = _require_object(method, kind, "method.")
    _require_object(own, "hyperparameters", f"method.{kind}.")


def _require_object(found: Mapping[str, Any], name: str, before: str = "") -> Json:
    value = found.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(
            f"Invalid type for '{before}{name}': expected an object.", param=before + name, code="invalid_type"
        )
    return value


def _path(found: re.Match[str]) -> str:
    """The path that was found, with every id in it as one segment, however it was written."""
    path, at = "", 0
    for number in range(1, len(found.groups()) + 1):
        path += found.string[at : found.start(number)] + quote(unquote(found[number]), safe=":")
        at = found.end(number)
    return path + found.string[at:]


def _api_version(scope: Scope) -> str | None:
    """The version that a path of Azure's asks for; its newer paths are v1, whatever AzureOpenAI sends beside them."""
    if not scope["path"].startswith("/openai/"):
        return None
    asked = parse_qs(scope["query_string"].decode("latin-1")).get("api-version", [])[-1:]
    if scope["path"].startswith("/openai/v1/") and asked != ["preview"]:
        return "v1"
    return asked[0] if asked else None


# -------------------------------------------------------------------------------------------------------------- shapes


class _JSON(JSONResponse):
    """What a provider said may hold half of a surrogate pair, which only stands in JSON as it came: escaped."""

    def render(self, content: Any) -> bytes:
        try:
            return super().render(content)
        except UnicodeEncodeError:
            return json.dumps(content, separators=(",", ":")).encode()


class _NotAllowed(MethodNotAllowed):
    def __init__(self, message: str, allowed: list[str]) -> None:
        super().__init__(message)
        self._allowed = allowed

    def headers(self) -> dict[str, str]:
        return {"allow": ", ".join(self._allowed)}


def _blamed(error: TunewayError, relayed: Relayed) -> TunewayError:
    """A host that may not be called is the mistake of who named it."""
    place = next((relayed.called[name] for name in _PLACES if name in relayed.called), None)
    if isinstance(error, OutboundRefused) and place is not None:
        return InvalidRequest(error.message, param=place, code=error.code)
    return error


def _created(call: Call, made: Json) -> Response:
    response = _JSON(made, call.dialect.created)
    if call.dialect.created == 201:
        response.headers["location"] = location(call.request.scope, quote(str(made.get("id")), safe=":"))
    return response


def _shown_job(job: Json, call: Call) -> Json:
    """In the dialect's words; the exact state and the provider's own word stand in `tuneway`."""
    status = JobStatus(job["status"])
    word = str(job.get("tuneway", {}).get("provider_status", status.value))
    state = "cancelling" if status is JobStatus.RUNNING and word.lower() in _CANCELLING else status.value
    extension = {**job.get("tuneway", {}), "state": state, "provider": call.vendor.kind, "provider_status": word}
    shown = {**_NEVER_MISSING, **job, "status": call.dialect.statuses[status], "tuneway": extension}
    if shown["seed"] is None:
        shown["seed"] = _NEVER_MISSING["seed"]
    if call.dialect.auto != AUTO:
        shown["hyperparameters"] = _respelled(job["hyperparameters"], call.dialect)
        method = shown.get("method")
        if isinstance(method, dict):
            shown["method"] = {
                name: {**own, "hyperparameters": _respelled(own["hyperparameters"], call.dialect)}
                if isinstance(own, dict) and isinstance(own.get("hyperparameters"), dict)
                else own
                for name, own in method.items()
            }
    return shown


_NEVER_MISSING: Json = {"organization_id": "", "seed": 0}
"""What strict clients want of every job, and some providers do not have."""


def _respelled(numbers: Json, dialect: Dialect) -> Json:
    return {name: dialect.auto if value == AUTO else value for name, value in numbers.items()}


_CANCELLING = frozenset(
    {"cancelling", "canceling", "cancel_requested", "cancellation_requested", "job_state_cancelling"}
)


def _shown_event(event: Json, dialect: Dialect) -> Json:
    levels = {level.value: shown for level, shown in dialect.levels.items()}
    level = event.get("level")
    return {**event, "level": levels.get(level, level) if isinstance(level, str) else level}


_KEPT = frozenset(
    {
        "openai-organization",
        "openai-project",
        "openai-version",
        "retry-after-ms",
        "x-request-id",
        "x-should-retry",
    }
)
"""Of a provider's answer, besides its limits."""


class _Unbounded:
    """`send` that lifts a time limit: it is for the beginning of an answer, not for all of a long stream."""

    def __init__(self, send: Send, limit: asyncio.Timeout) -> None:
        self._send = send
        self._limit = limit

    async def __call__(self, message: Message) -> None:
        if self._limit.when() is not None and not self._limit.expired():
            self._limit.reschedule(None)
        await self._send(message)


class _Named:
    """`send` that adds what every relayed answer says: what was ignored, and the caller's own name of the request."""

    def __init__(self, send: Send, relayed: Relayed, headers: Headers) -> None:
        self._send = send
        self._relayed = relayed
        self._trace = headers.get("x-portkey-trace-id") or headers.get("x-tuneway-trace-id")
        self.line: Line | None = None
        self.started = False

    async def __call__(self, message: Message) -> None:
        self.started = True
        if message["type"] == "http.response.start":
            found = MutableHeaders(scope=message)
            for name, value in ({} if self.line is None else self.line.last_headers).items():
                if name in _KEPT or name.startswith("x-ratelimit-"):
                    found.setdefault(name, value)
            found["x-tuneway-provider"] = self._relayed.kind
            if self._relayed.ignored:
                found["x-tuneway-ignored"] = ", ".join(self._relayed.ignored)
            if self._trace and re.fullmatch(r"[\x21-\x7e]{1,200}", self._trace):
                found["x-portkey-trace-id"] = self._trace
        await self._send(message)
