"""HTTP on the connection, before there is a request: bounds for its head, and our envelope for what is no HTTP.

uvicorn with httptools bounds neither the size of a request's head nor the time that it may take to come.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tuneway.api.edge import OPENAI_VERSION, new_request_id
from tuneway.errors import HeadTooLarge, InvalidRequest, RequestTimedOut, TunewayError

MAX_HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 30
UNREAD_SECONDS = 300
"""How long the rest of a body may take whose request was answered already; it is read for the client to see why."""


class Protocol(HttpToolsProtocol):
    """One connection."""

    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _refused = False
    _in_body = False
    _behind_chunks = False
    """Also after an early answer: who is refused in the middle of a large body must still be able to read why."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        was_behind_chunks = self._behind_chunks
        if self._head_timer is None and not self._in_body:
            self._expect_head()  # the next request of a connection that was kept
        super().data_received(data)
        if (self._head_timer is not None and not self._in_body) or (was_behind_chunks and self._behind_chunks):
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(HeadTooLarge())

    def on_chunk_header(self) -> None:
        self._behind_chunks = True  # until there is data: behind the last chunk, which has none, come trailers

    def on_body(self, body: bytes) -> None:
        self._behind_chunks = False
        super().on_body(body)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # a trailer means nothing to any route
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_timer()
        if sum(len(name) + len(value) for name, value in self.headers) + len(self.url) > MAX_HEAD_BYTES:
            self._refuse(HeadTooLarge())
            raise httptools.HttpParserError  # ends the parsing; `send_400_response` finds it answered
        self._in_body = True
        self._head_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = self._behind_chunks = False
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(UNREAD_SECONDS, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest("This is not a valid HTTP request."))

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        self._refuse(RequestTimedOut(f"The request's headers did not come within {HEAD_SECONDS} seconds."))

    def _refuse(self, error: TunewayError) -> None:
        if self._refused:
            return
        self._refused = True
        self._stop_timer()
        # A request that is still being answered keeps the connection to itself; it only gets no successor.
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_response(error))
        self.transport.close()


def _response(error: TunewayError) -> bytes:
    body = json.dumps(error.envelope()).encode()
    headers: dict[str, Any] = {
        "content-type": "application/json",
        "content-length": len(body),
        "connection": "close",
        "x-request-id": new_request_id(),
        "openai-version": OPENAI_VERSION,
        "openai-processing-ms": 0,
    }
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body
