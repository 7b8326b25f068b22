"""`/v1/chat/completions`: a bare ASGI endpoint, as nothing of the framework may touch the bytes."""

from __future__ import annotations

from prometheus_client import Gauge
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from tuneway.api.body import read_bytes
from tuneway.api.context import project_of
from tuneway.api.edge import REQUEST_ID
from tuneway.proxy import Proxy


class ChatCompletions:
    """`limit` is the largest body, in bytes; `streams` counts the requests that are being answered."""

    def __init__(self, proxy: Proxy, *, limit: int, streams: Gauge) -> None:
        self._proxy = proxy
        self._limit = limit
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_bytes(Request(scope, receive), self._limit)
        headers = {**Headers(scope=scope), "x-request-id": scope[REQUEST_ID]}
        with self._streams.track_inprogress():
            await self._proxy.answer(project_of(scope), body, headers, receive, send)
