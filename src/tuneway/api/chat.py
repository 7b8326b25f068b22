"""`/v1/chat/completions`: a bare ASGI endpoint, as nothing of the framework may touch the bytes."""

from __future__ import annotations

import json

from msgspec import UNSET
from prometheus_client import Gauge
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from tuneway import types
from tuneway.api.azure import DEPLOYMENT
from tuneway.api.body import read_bytes
from tuneway.api.context import PROVIDER_HEADERS, Chat, Models, principal_of, project_of
from tuneway.api.edge import REQUEST_ID
from tuneway.keys import allow
from tuneway.proxy import peek


class ChatCompletions:
    """`limit` is the largest body, in bytes; `streams` counts the requests that are being answered."""

    def __init__(self, proxy: Chat, models: Models, *, limit: int, streams: Gauge) -> None:
        self._proxy = proxy
        self._models = models
        self._limit = limit
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        allow(principal_of(scope), types.Scope.CHAT)
        body = await read_bytes(Request(scope, receive), self._limit)
        deployment: str | None = scope.get(DEPLOYMENT)
        if deployment is not None:
            body = with_model(body, deployment)
        headers = {**Headers(scope=scope), "x-request-id": scope[REQUEST_ID]}
        for header in PROVIDER_HEADERS:
            if provider := headers.get(header, "").removeprefix("@"):
                self._models.require_provider(provider, header)
        with self._streams.track_inprogress():
            await self._proxy.answer(project_of(scope), body, headers, receive, send, model=deployment)


def with_model(body: bytes, model: str) -> bytes:
    """The body with a model, as upstreams need one: where it has none, the one that Azure's path names.

    Raises InvalidRequest.
    """
    if peek(body).model is not UNSET:
        return body
    start = body.index(b"{") + 1
    rest = body[start:]
    comma = b"" if rest.lstrip().startswith(b"}") else b","
    return body[:start] + b'"model":' + json.dumps(model).encode() + comma + rest
