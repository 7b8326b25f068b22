"""A vendor's HTTP API on loopback: what every simulator shares.

Knows the server in its thread, what was asked of it, the faults that a test ordered, and how to hang up without an
answer. Knows nothing of any vendor: a subclass brings routes, words and state. A body is read whole before its handler
runs, and a handler is one synchronous step: its effect is whole or none, whether or not the client still waits.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from tests.simulators.multipart import KEPT, Form

SEEN_BYTES = 1024 * 1024
"""A body beyond this is not kept in `requests`; its length is."""

HOWS = frozenset(f"{what}_{when}" for what in ("error", "cut", "slow", "hold") for when in ("before", "after")) | {
    "cut_during",
    "answer",
}
PATIENCE = 10.0
"""Seconds that a test waits for the server's thread before it fails."""


@dataclass
class Seen:
    """What was asked. `complete` is False when the client left before its body was whole."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    operation: str
    body: bytes = b""
    length: int = 0
    complete: bool = False

    @property
    def bearer(self) -> str | None:
        """The credential in `Authorization: Bearer …`."""
        scheme, _, credential = self.headers.get("authorization", "").partition(" ")
        return credential if scheme.lower() == "bearer" else None


@dataclass
class Request:
    """A whole request, as a handler gets it. `body` is None when it was too large to keep."""

    seen: Seen
    params: dict[str, str]
    body: bytes | None
    form: Form | None

    def json(self) -> Any:
        try:
            return json.loads(self.body or b"")
        except ValueError:
            message = "We could not parse the JSON body of your request. (HINT: expected a JSON object.)"
            raise Refused(400, message) from None

    def object(self) -> dict[str, Any]:
        """The body, a JSON object; no body at all is an empty one."""
        kind = self.seen.headers.get("content-type", "")
        if self.seen.length and "json" not in kind:
            raise Refused(400, f"Unsupported content type: '{kind}'. This API method only accepts 'application/json'.")
        found = self.json() if self.seen.length else {}
        if not isinstance(found, dict):
            raise Refused(400, "The JSON body of your request must be an object.")
        return found


@dataclass
class Answer:
    """A response. More than one chunk is sent chunk by chunk, without a length."""

    chunks: Sequence[bytes]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    shown = {"content-type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer([json.dumps(value, ensure_ascii=False).encode()], status, shown)


class Refused(Exception):
    """A vendor's no, in the words that vendors of OpenAI's shape share; each renders it in its own envelope."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.kind = status, message, param, code, kind
        self.headers = headers or {}


Handler = Callable[[Request], Answer]


@dataclass
class Fault:
    how: str
    status: int
    seconds: float
    retry_after: str | None
    body: bytes | None

    @property
    def what(self) -> str:
        return self.how.partition("_")[0]

    def is_at(self, when: str) -> bool:
        return self.how.endswith(f"_{when}")


class _Protocol(HttpToolsProtocol):
    """Gives the app its connection: ASGI itself has no way to hang up without an answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.gone = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.gone.set()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["transport"] = self.transport


class Simulator:
    """A vendor. `created` are the ids of its jobs in order of creation, which is what it would bill."""

    def __init__(self, key: str = "sk-simulated") -> None:
        self.key = key
        self.url = ""
        self.requests: list[Seen] = []
        self.leaks: list[str] = []
        self.answers: dict[str, bytes] = {}
        """The last body sent, by operation."""
        self.created: list[str] = []
        self.jobs: dict[str, Any] = {}
        self.files: dict[str, Any] = {}
        self.models: dict[str, Any] = {}
        self.crashes: list[Exception] = []
        self.lock = threading.RLock()
        """Held while a handler runs; a test that changes state from outside takes it too."""
        self._turn = threading.Condition()
        self._faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self._gates: defaultdict[str, list[asyncio.Event]] = defaultdict(list)
        self._unfinished: defaultdict[str, int] = defaultdict(int)
        routes = list(self.routes())
        self.operations = frozenset(operation for _, _, operation, _ in routes)
        app = Starlette(
            routes=[
                *(Route(path, _Endpoint(self, name, handler), methods=[verb]) for verb, path, name, handler in routes),
                Route("/{path:path}", _Endpoint(self, "unknown", self.no_such_route)),
            ]
        )
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            timeout_keep_alive=60,  # a pooled connection must not end by itself in the middle of a slow test
        )
        config.load()
        self._config, self._state = config, ServerState()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__)

    # What a vendor brings.

    def routes(self) -> Iterable[tuple[str, str, str, Handler]]:
        """Method, path, operation, handler. The first that matches wins."""
        raise NotImplementedError

    def authorize(self, request: Request, operation: str) -> None:
        """Raises `Refused` unless the request may be answered."""
        raise NotImplementedError

    def refusal(self, refused: Refused, path: str) -> Answer:
        """The vendor's error envelope."""
        raise NotImplementedError

    def headers(self, path: str) -> dict[str, str]:
        """What every answer carries."""
        return {}

    def no_such_route(self, request: Request) -> Answer:
        raise Refused(404, f"Invalid URL ({request.seen.method} {request.seen.path})")

    # What a test does.

    def start(self) -> Self:
        self._thread.start()
        assert self._up.wait(PATIENCE)
        return self

    def stop(self) -> None:
        """Lets what is held or slow go on, ends the thread, and raises what a handler should not have raised."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(PATIENCE)
            assert not self._thread.is_alive()
        if self.crashes:
            raise self.crashes[0]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def fault(
        self,
        operation: str,
        how: str,
        *,
        times: int = 1,
        status: int = 500,
        seconds: float = 0,
        retry_after: str | None = None,
        body: bytes | None = None,
    ) -> None:
        """Orders a fault for the next `times` requests of an operation that have no fault yet."""
        if operation not in self.operations or how not in HOWS:
            raise ValueError(f"no operation {operation!r}, or no fault {how!r}")
        with self._turn:
            self._faults[operation].extend([Fault(how, status, seconds, retry_after, body)] * times)

    def wait_held(self, operation: str, timeout: float = PATIENCE, count: int = 1) -> None:
        """Returns when `count` requests of the operation are held."""
        with self._turn:
            if not self._turn.wait_for(lambda: len(self._gates[operation]) >= count, timeout):
                raise TimeoutError(
                    f"{len(self._gates[operation])} of {count} requests of {operation!r} came to be held"
                )

    def release(self, operation: str) -> None:
        """Lets held requests go on and holds no later one; returns when what they had still to do is done."""
        with self._turn:
            ordered = self._faults[operation]
            self._faults[operation] = deque(fault for fault in ordered if fault.what != "hold")
            for gate in self._gates.pop(operation, []):
                self._loop.call_soon_threadsafe(gate.set)
            if not self._turn.wait_for(lambda: self._unfinished[operation] == 0, PATIENCE):
                raise TimeoutError(f"what was held of {operation!r} did not go on")

    def asked(self, operation: str) -> list[Seen]:
        return [seen for seen in self.requests if seen.operation == operation]

    # The server.

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        """What `uvicorn.Server` does, without its tenths of seconds at the end: hundreds of tests start a simulator."""
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        server = await self._loop.create_server(self._connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._up.set()
        await self._stopping.wait()
        for _ in range(3):
            await asyncio.sleep(0)  # what was just accepted becomes a connection; a closed server would leave it open
        server.close()
        for connection in self._connections():
            connection.shutdown()  # an idle one is closed, any other after its answer
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=PATIENCE / 4)
        left = self._connections()
        for connection in left:
            connection.transport.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(connection.gone.wait() for connection in left)), PATIENCE / 4)
        for connection in self._connections():
            connection.transport.abort()  # its client does not read its answer
        await asyncio.sleep(0)

    def _connection(self) -> asyncio.Protocol:
        return _Protocol(config=self._config, server_state=self._state, app_state={})

    def _connections(self) -> list[_Protocol]:
        return [connection for connection in self._state.connections if isinstance(connection, _Protocol)]

    async def handle(self, scope: Scope, receive: Receive, send: Send, operation: str, handler: Handler) -> None:
        """One request: the fault ordered for it, and around that or instead of it the handler."""
        request = await self._read(scope, receive, operation)
        if not request.seen.complete:
            return
        leak = self._leak(request.seen)
        fault = None if leak else self._take(operation)
        held = fault is not None and await self._delay(operation, fault, "before")
        if leak:
            answer = self._refused(Refused(400, f"A gateway's own {leak} reached the vendor."), request.seen.path)
        elif fault and fault.how in ("error_before", "answer"):
            answer = self._faulty(fault, request.seen.path)
        elif fault and fault.how == "cut_before":
            return await self._hang_up(scope, receive)
        else:
            answer = self._effect(request, operation, handler)
        if held:
            self._done(operation)
        if fault and await self._delay(operation, fault, "after"):
            self._done(operation)
        if fault and fault.how == "cut_after":
            return await self._hang_up(scope, receive)
        if fault and fault.how == "error_after":
            answer = self._faulty(fault, request.seen.path)
        answer.headers = self.headers(request.seen.path) | answer.headers
        await self._send(answer, operation, send, half=fault is not None and fault.how == "cut_during")
        if fault and fault.how == "cut_during":
            await self._hang_up(scope, receive)

    async def _read(self, scope: Scope, receive: Receive, operation: str) -> Request:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        seen = Seen(scope["method"], scope["path"], query, headers, operation)
        kind = headers.get("content-type", "")
        form = Form(kind) if kind.lower().startswith("multipart/form-data") else None
        limit = SEEN_BYTES if form else KEPT
        body: bytearray | None = bytearray()
        message = await receive()
        while message["type"] == "http.request":
            data: bytes = message.get("body", b"")
            seen.length += len(data)
            if form:
                form.feed(data)
            if body is not None:
                body += data
                if len(body) > limit:
                    body = None
            if not message.get("more_body", False):
                seen.complete = True
                break
            message = await receive()
        whole = None if body is None else bytes(body)
        seen.body = whole if whole is not None and len(whole) <= SEEN_BYTES else b""
        self.requests.append(seen)
        return Request(seen, scope["path_params"], whole, form)

    def _leak(self, seen: Seen) -> str | None:
        """What of a gateway must never reach a vendor: its headers and its keys."""
        for name, value in seen.headers.items():
            placeholder = "Bearer OPENAI_API_KEY"  # what Portkey's SDK sends for want of a credential
            if name.startswith(("x-portkey-", "x-tuneway-")) or "tnw_" in value or value == placeholder:
                self.leaks.append(f"header {name}")
                return self.leaks[-1]
        return None

    def _take(self, operation: str) -> Fault | None:
        with self._turn:
            return self._faults[operation].popleft() if self._faults[operation] else None

    async def _delay(self, operation: str, fault: Fault, when: str) -> bool:
        """Waits if the fault says so; True if it was held, for then somebody may wait for what comes next."""
        if fault.what == "slow" and fault.is_at(when):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), fault.seconds)
        if fault.what != "hold" or not fault.is_at(when):
            return False
        gate = asyncio.Event()
        with self._turn:
            self._gates[operation].append(gate)
            self._unfinished[operation] += 1
            self._turn.notify_all()
        waits = [asyncio.ensure_future(event.wait()) for event in (gate, self._stopping)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return True

    def _done(self, operation: str) -> None:
        with self._turn:
            self._unfinished[operation] -= 1
            self._turn.notify_all()

    def _effect(self, request: Request, operation: str, handler: Handler) -> Answer:
        try:
            with self.lock:
                self.authorize(request, operation)
                return handler(request)
        except Refused as refused:
            return self._refused(refused, request.seen.path)
        except Exception as error:
            self.crashes.append(error)
            return as_json({"crash": repr(error)}, 500)

    def _refused(self, refused: Refused, path: str) -> Answer:
        answer = self.refusal(refused, path)
        answer.headers |= refused.headers
        return answer

    def _faulty(self, fault: Fault, path: str) -> Answer:
        headers = {} if fault.retry_after is None else {"retry-after": fault.retry_after}
        if fault.body is not None:
            html = fault.body.lstrip().startswith(b"<")
            headers["content-type"] = "text/html; charset=utf-8" if html else "application/json"
            return Answer([fault.body], fault.status, headers)
        if fault.status == 429:
            refused = Refused(429, "Rate limit reached.", code="rate_limit_exceeded", kind="requests", headers=headers)
        else:
            refused = Refused(fault.status, "The server had an error.", kind="server_error", headers=headers)
        return self._refused(refused, path)

    async def _send(self, answer: Answer, operation: str, send: Send, half: bool) -> None:
        self.answers[operation] = answer.body
        headers = dict(answer.headers)
        if len(answer.chunks) == 1 and answer.status != 204:
            headers["content-length"] = str(len(answer.body))
        shown = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": shown})
        if half:
            middle = answer.body[: len(answer.body) // 2]
            return await send({"type": "http.response.body", "body": middle, "more_body": True})
        for chunk in answer.chunks[:-1]:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": answer.chunks[-1] if answer.chunks else b""})

    async def _hang_up(self, scope: Scope, receive: Receive) -> None:
        scope["state"]["transport"].close()
        while (await receive())["type"] != "http.disconnect":
            pass


@dataclass(frozen=True)
class _Endpoint:
    """A route's app."""

    simulator: Simulator
    operation: str
    handler: Handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.simulator.handle(scope, receive, send, self.operation, self.handler)
