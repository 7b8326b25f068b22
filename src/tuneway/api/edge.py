"""The outermost layer, plain ASGI: request id, timing, the guard, and the last resort for every error."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Collection
from typing import Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuneway import types
from tuneway.api import access, azure, dialect, guard
from tuneway.api.context import PRINCIPAL, Keys, principal_of
from tuneway.api.errors import METHODS, render
from tuneway.api.metrics import Metrics
from tuneway.api.schema.base import organization
from tuneway.errors import InternalError, RequestTimedOut, TunewayError, Unauthorized, UnknownRoute
from tuneway.keys import allow

OPENAI_VERSION = "2020-10-01"

REQUEST_ID = "tuneway.request_id"
"""Key of the request's id in its ASGI scope."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_CLIENT_LEFT = 499
"""nginx's number for it; it is counted and never sent."""

BODY_SILENCE_SECONDS = 60
"""How long a client may send nothing in the middle of a body."""

log = logging.getLogger(__name__)


def new_request_id() -> str:
    return f"req_{uuid.uuid4().hex}"


class RelayApp(Protocol):
    """What answers relays; `claims` says whether a request is one, `check_other` refuses one that should have been."""

    def claims(self, scope: Scope, headers: Headers) -> bool: ...

    def check_other(self, headers: Headers) -> None: ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class Edge:
    """Answers every request. The log gets ids and paths, never headers or bodies."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        allowed_hosts: Collection[str],
        metrics: Metrics,
        relay: RelayApp | None = None,
    ) -> None:
        self._app = app
        self._relay = relay
        self._keys = keys
        self._allowed_hosts = allowed_hosts
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[REQUEST_ID] = new_request_id()
        stamped = _Stamped(send, scope[REQUEST_ID])
        try:
            await self._answer(scope, receive, stamped)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = getattr(scope.get("route"), "name", "none")
            self._metrics.answered(method, route, stamped.status or _CLIENT_LEFT, stamped.seconds())

    async def _answer(self, scope: Scope, receive: Receive, send: _Stamped) -> None:
        error: TunewayError
        try:
            headers = Headers(scope=scope)
            guard.check(headers, self._allowed_hosts)
            relayed = self._relay is not None and self._relay.claims(scope, headers)
            scope[dialect.DIALECT] = dialect.choose(scope, relayed=relayed)
            if _CONTROL.search(scope["path"]):
                # Starlette's patterns let one line break stand at the end of any path.
                raise UnknownRoute(f"Invalid URL ({scope['method']} {scope['path']!r})")
            azure.rewrite(scope)
            await self._authorize(scope, headers, send, relayed=relayed)
            if relayed and self._relay is not None:
                send.project = None  # the provider's answer names its own organization
                allow(principal_of(scope), types.Scope.RELAY)
                await self._relay(scope, Patient(receive), send)
                return
            if self._relay is not None and scope["path"] not in access.FREE:
                self._relay.check_other(headers)
            await self._app(scope, Patient(receive), send)
            return
        except ClientDisconnect:
            return
        except TunewayError as raised:
            error = raised
        except Exception:
            log.exception("%s %s %r failed", scope[REQUEST_ID], scope["method"], scope["path"])
            error = InternalError()
        if send.status is None:
            send.closing = isinstance(error, RequestTimedOut)
            await render(error, scope)(scope, receive, send)
        else:
            # Too late for an envelope. A return without the last byte makes the server break the connection, so that
            # the client sees a broken body, never a short one that looks whole.
            log.warning("%s %s %r broke off: %s", scope[REQUEST_ID], scope["method"], scope["path"], error.message)

    async def _authorize(self, scope: Scope, headers: Headers, send: _Stamped, *, relayed: bool) -> None:
        if scope["path"] in access.FREE:
            return
        key = access.gateways_own(headers) if relayed else access.presented(headers)
        try:
            principal = await self._keys.authenticate(key)
        except Unauthorized:
            if relayed and key is None:
                raise Unauthorized(
                    "A relay needs a key of this gateway besides the provider's credential: send it as "
                    "'x-tuneway-api-key: tnw_…'. It must have the scope `relay`."
                ) from None
            raise
        send.project = principal.project
        scope[PRINCIPAL] = principal


class Patient:
    """`receive` that waits for the body only so long: a client that stops in the middle of it holds nothing for ever.

    Behind the body it waits as long as it takes: the next message tells that the client has left.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = False

    async def __call__(self) -> Message:
        if self._ended:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), BODY_SILENCE_SECONDS)
        except TimeoutError:
            raise RequestTimedOut(
                f"Nothing of the request's body came for {BODY_SILENCE_SECONDS} seconds. Send the request again."
            ) from None
        self._ended = not message.get("more_body", False)
        return message


class _Stamped:
    """`send`, adding to every response the headers that OpenAI's have; it keeps the status that was sent."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self._started = time.perf_counter()
        self.status: int | None = None
        self.project: str | None = None
        self.closing = False
        """Whether the connection ends with the answer, as the rest of the request will not be read."""

    def seconds(self) -> float:
        return time.perf_counter() - self._started

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers.setdefault("x-request-id", self._request_id)
            headers["openai-version"] = OPENAI_VERSION
            if self.project is not None:
                headers["openai-organization"] = organization(self.project)
                headers["openai-project"] = self.project
            if self.closing:
                headers["connection"] = "close"
            headers["openai-processing-ms"] = str(round(1000 * self.seconds()))
        await self._send(message)
