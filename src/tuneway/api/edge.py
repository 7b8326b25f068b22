"""The outermost layer, plain ASGI: request id, timing, the guard, and the last resort for every error."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuneway.api import dialect, guard
from tuneway.api.errors import METHODS, render
from tuneway.api.metrics import Metrics
from tuneway.errors import InternalError, TunewayError

OPENAI_VERSION = "2020-10-01"

REQUEST_ID = "tuneway.request_id"
"""Key of the request's id in its ASGI scope."""

_CLIENT_LEFT = 499
"""nginx's number for it; it is counted and never sent."""

log = logging.getLogger(__name__)


class Edge:
    """Answers every request. The log gets ids and paths, never headers or bodies."""

    def __init__(self, app: ASGIApp, *, allowed_hosts: Collection[str], metrics: Metrics) -> None:
        self._app = app
        self._allowed_hosts = allowed_hosts
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[REQUEST_ID] = f"req_{uuid.uuid4().hex}"
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
            guard.check(Headers(scope=scope), self._allowed_hosts)
            scope[dialect.DIALECT] = dialect.choose(scope)
            await self._app(scope, receive, send)
            return
        except ClientDisconnect:
            return
        except TunewayError as raised:
            error = raised
        except Exception:
            log.exception("%s %s %r failed", scope[REQUEST_ID], scope["method"], scope["path"])
            error = InternalError()
        if send.status is None:
            await render(error, scope)(scope, receive, send)
        else:
            # Too late for an envelope. A return without the last byte makes the server break the connection, so that
            # the client sees a broken body, never a short one that looks whole.
            log.warning("%s %s %r broke off: %s", scope[REQUEST_ID], scope["method"], scope["path"], error.message)


class _Stamped:
    """`send`, adding to every response the headers that OpenAI's have; it keeps the status that was sent."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self._started = time.perf_counter()
        self.status: int | None = None

    def seconds(self) -> float:
        return time.perf_counter() - self._started

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers.setdefault("x-request-id", self._request_id)
            headers["openai-version"] = OPENAI_VERSION
            headers["openai-processing-ms"] = str(round(1000 * self.seconds()))
        await self._send(message)
