"""Clients of relays, and a provider on a bare socket that shows every byte it gets and answers as it is told."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai

from tests.simulators.openai import OpenAISimulator
from tests.simulators.sdk import HI, ROWS
from tests.wire.conftest import Gateway

OPENAI = "gpt-4o-mini"
CHAT = {"json": {"model": OPENAI, "messages": HI}}
FILE = {"files": {"file": ("a.jsonl", ROWS)}, "data": {"purpose": "fine-tune"}}
OPERATIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/v1/models", {}),
    ("GET", "/v1/files", {}),
    ("POST", "/v1/files", FILE),
    ("GET", "/v1/fine_tuning/jobs", {}),
    ("POST", "/v1/fine_tuning/jobs", {"json": {"model": OPENAI, "training_file": "file-1"}}),
    ("POST", "/v1/fine_tuning/jobs/ftjob-1/cancel", {}),
    ("POST", "/v1/chat/completions", CHAT),
    ("GET", "/v1/chat/completions", {}),
]
"""One of each way in which a relay is answered."""


def heads(base_url: str, provider: str = "openai", family: str = "x-portkey", **more: str) -> dict[str, str]:
    """The headers of a relay to `base_url`, besides its credential; `more` in the family's form."""
    found = {f"{family}-provider": provider, f"{family}-custom-host": base_url}
    return found | {f"{family}-{name.replace('_', '-')}": value for name, value in more.items()}


@contextmanager
def relayed(gateway: Gateway, base_url: str, key: str, **more: Any) -> Iterator[openai.OpenAI]:
    """The official SDK, aimed at a provider through the gateway, checking every answer against its models."""
    given: dict[str, Any] = {
        "max_retries": 0,
        "_strict_response_validation": True,
        "default_headers": heads(base_url),
    } | more
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, **given) as client:
        yield client


@contextmanager
def through(gateway: Gateway, sim: OpenAISimulator, **more: Any) -> Iterator[openai.OpenAI]:
    with relayed(gateway, sim.base_url, sim.key, **more) as client:
        yield client


def ask(
    gateway: Gateway, base_url: str, method: str, path: str, headers: Mapping[str, str] = {}, **more: Any
) -> httpx2.Response:
    """A request of a relay with the key `sk-raw`, or with what `headers` say."""
    sent = heads(base_url) | {"authorization": "Bearer sk-raw"} | dict(headers)
    return gateway.http.request(method, path, headers=sent, **more)


def sent(gateway: Gateway, data: bytes) -> bytes:
    """What comes back until the gateway closes the connection."""
    address = urlsplit(gateway.url)
    with socket.create_connection((address.hostname, address.port), 10) as connection:
        connection.sendall(data)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    return received


@dataclass
class Received:
    """A request: its first line, its headers as they stood there, its body without chunks' frames."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """None for one that is not there exactly once."""
        found = [value for known, value in self.headers if known.lower() == name]
        return found[0] if len(found) == 1 else None


Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def response(body: bytes, *headers: bytes, status: bytes = b"200 OK", kind: bytes = b"application/json") -> bytes:
    lines = [b"HTTP/1.1 " + status, b"content-type: " + kind, b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@dataclass
class RawProvider:
    """`answers` are whole responses, one for each request; the last stays. `behave` takes their place.

    `refuses` is sent as soon as a request's head has come, and no byte more is read. `begun` is set by a head.

    `gone` is set when the other side has closed the connection while `behave` waited for that.
    """

    answers: list[bytes] = field(default_factory=lambda: [response(b"{}")])
    received: list[Received] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    behave: Behaviour | None = None
    refuses: bytes | None = None
    port: int = 0
    host: str = "127.0.0.1"
    """Where it listens; at 0.0.0.0 it answers by every address of this machine."""

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @contextmanager
    def running(self) -> Iterator[RawProvider]:
        up, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()
        thread = threading.Thread(target=loop.run_until_complete, args=[self._serve(up, stop)])
        thread.start()
        try:
            assert up.wait(10)
            yield self
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(10)
            loop.close()

    def waits_for_the_end(self, first: bytes = b"") -> Behaviour:
        """Sends `first` and then nothing, until the gateway hangs up."""

        async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(first)
            await writer.drain()
            with suppress(ConnectionError):
                await reader.read()
            self.gone.set()

        return behave

    async def _serve(self, up: threading.Event, stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self._handle, self.host, 0)
        self.port = server.sockets[0].getsockname()[1]
        up.set()
        async with server:
            await stop.wait()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.begun.set()
            if self.refuses is not None:
                writer.write(self.refuses)
                await writer.drain()
                return
            self.received.append(await _read(head, reader))
            if self.behave is not None:
                await self.behave(reader, writer)
            else:
                writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone.set()
        finally:
            writer.close()


async def _read(head: bytes, reader: asyncio.StreamReader) -> Received:
    line, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines if line)]
    known = {name.lower(): value for name, value in headers}
    body = b""
    if known.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    elif "content-length" in known:
        body = await reader.readexactly(int(known["content-length"]))
    return Received(line, headers, body)
