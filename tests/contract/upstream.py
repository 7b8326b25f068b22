"""A small HTTP server on a unix socket that answers, byte by byte, as a test tells it to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tuneway.types import Route, Upstream

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\nx-tuneway-ignored: service_tier\r\n\r\n"
)


@dataclass
class Received:
    line: str
    headers: dict[str, str]
    body: bytes


def chunk(data: bytes) -> bytes:
    """One chunk of HTTP's chunked encoding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def answers(raw: bytes) -> Behaviour:
    """Sends `raw`, then closes the connection: with less than a whole response, an upstream that dies."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()

    return behave


def json_answer(body: bytes, *headers: bytes) -> Behaviour:
    extra = b"".join(header + b"\r\n" for header in headers)
    return answers(JSON_HEAD + extra + b"content-length: %d\r\n\r\n" % len(body) + body)


@dataclass
class FakeUpstream:
    """`gone` is set when the other side closed the connection while `behave` waited for it."""

    socket: Path
    behave: Behaviour = field(default_factory=lambda: json_answer(b"{}"))
    received: list[Received] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)

    async def route(self, name: str) -> Route:
        headers = {"authorization": "Bearer engine-token", "x-tuneway-adapter": "a1"}
        return Route(Upstream("http://engine/v1/chat/completions", headers, self.socket), name)

    def waits_for_the_end(self, first: bytes = b"") -> Behaviour:
        """Sends `first` and then nothing, until the gateway hangs up."""

        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(first)
            await writer.drain()
            await reader.read()
            self.gone.set()

        return behave

    async def serve(self, up: threading.Event, stop: asyncio.Event) -> None:
        server = await asyncio.start_unix_server(self._handle, self.socket)
        up.set()
        async with server:
            await stop.wait()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers["content-length"]))
        self.received.append(Received(head[0], headers, body))
        try:
            await self.behave(reader, writer)
        finally:
            writer.close()
