"""The data plane: chat requests go to the model's upstream unparsed and the answer comes back byte for byte.

It knows routes and bytes, nothing of jobs or of the web framework. Every request has a connection of its own: on one
that is kept alive, a POST to a server that has just gone can neither be told from one that was read nor sent again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import aiohttp
import msgspec

from tuneway.errors import InvalidRequest, UpstreamBroken, UpstreamError
from tuneway.types import Route, Upstream

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
FindRoute = Callable[[str, str], Awaitable[Route]]

CONNECT_SECONDS = 10
SILENCE_SECONDS = 600
"""How long an upstream may say nothing: as long as OpenAI's clients wait."""

PIECE = 64 * 1024
MAX_HELD = 1024 * 1024
"""Bytes of an unfinished server-sent event that are held back; a longer event is passed on in parts."""

# Named, not excluded: what a client or an upstream may send besides is its own (credentials, cookies, hop-by-hop).
REQUEST_HEADERS = frozenset({"accept", "content-type", "traceparent", "tracestate", "x-request-id"})
RESPONSE_HEADERS = frozenset(
    {
        "cache-control",
        "content-encoding",
        "content-length",
        "content-type",
        "retry-after",
        "retry-after-ms",
        "x-request-id",
        "x-should-retry",
        "x-tuneway-ignored",
    }
)
RESPONSE_PREFIXES = ("openai-", "x-ratelimit-")


class Peek(msgspec.Struct):
    """All that the gateway reads of a chat request. `stream` only has to be of its type; the upstream acts on it."""

    model: str
    stream: bool | None = None


_peek = msgspec.json.Decoder(Peek)


def peek(body: bytes) -> Peek:
    """Raises InvalidRequest that names the field."""
    try:
        return _peek.decode(body)
    except msgspec.ValidationError as error:
        said = str(error)
        if "missing required field" in said:
            raise InvalidRequest(
                "Missing required parameter: 'model'.", param="model", code="missing_required_parameter"
            ) from None
        wrong, at, path = said.partition(" - at `$.")
        if not at:
            raise InvalidRequest("The body must be a JSON object.") from None
        param = path.rstrip("`")
        wrong = wrong[0].lower() + wrong[1:]
        raise InvalidRequest(f"Invalid type for '{param}': {wrong}.", param=param, code="invalid_type") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None


class Proxy:
    """`find_route` takes a project and a model name; it may start what serves the model, and may be cancelled."""

    def __init__(self, find_route: FindRoute) -> None:
        self._find_route = find_route

    async def answer(self, project: str, body: bytes, headers: Mapping[str, str], receive: Receive, send: Send) -> None:
        """Sends the upstream's answer; the request upstream ends as soon as the client leaves.

        `headers` are the client's, with lower-case names; of them only REQUEST_HEADERS are passed on. Raises
        TunewayError: before anything was sent, or, when the upstream broke off a body that is no event stream, after.
        """
        model = peek(body).model
        answering = asyncio.create_task(self._answer(project, model, body, headers, send))
        leaving = asyncio.create_task(_client_left(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                await answering
        finally:
            answering.cancel()
            leaving.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    async def _answer(self, project: str, model: str, body: bytes, headers: Mapping[str, str], send: Send) -> None:
        passed_on = {name: value for name, value in headers.items() if name in REQUEST_HEADERS}
        for last_try in (False, True):
            upstream = (await self._find_route(project, model)).upstream
            try:
                async with (
                    _session(upstream) as session,
                    session.post(
                        upstream.url,
                        # In pieces: aiohttp writes a body given as bytes in one go, however large.
                        data=_pieces(body),
                        headers={**passed_on, "content-length": str(len(body)), **upstream.headers},
                        allow_redirects=False,
                    ) as response,
                ):
                    await _pass_on(response, send)
                return
            except aiohttp.ClientConnectorError as error:
                # Nothing was sent: the engine ended between the route and the connection. The route starts another.
                if last_try:
                    raise UpstreamBroken("The server of this model does not answer. Send the request again.") from error
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise UpstreamBroken from error


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _session(upstream: Upstream) -> aiohttp.ClientSession:
    connector: aiohttp.BaseConnector
    if upstream.socket is None:
        connector = aiohttp.TCPConnector(force_close=True)
    else:
        connector = aiohttp.UnixConnector(path=str(upstream.socket), force_close=True)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS),
    )


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]


async def _pass_on(response: aiohttp.ClientResponse, send: Send) -> None:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if response.status >= 300 and kind != "application/json":
        raise UpstreamError(f"The server of this model answered with status {response.status} and no JSON.")
    headers = {
        name.lower(): value
        for name, value in response.headers.items()
        if name.lower() in RESPONSE_HEADERS or name.lower().startswith(RESPONSE_PREFIXES)
    }
    chunks: AsyncIterator[bytes] = response.content.iter_any()
    if kind == "text/event-stream" and "content-encoding" not in headers:
        headers.pop("content-length", None)
        chunks = _whole_events(chunks)
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": raw})
    async for chunk in chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _whole_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The bytes of `chunks`, cut behind whole events; when the upstream breaks, an error event ends them."""
    held = b""
    try:
        async for chunk in chunks:
            held += chunk
            end = max(held.rfind(blank) + len(blank) if blank in held else 0 for blank in (b"\n\n", b"\r\n\r\n"))
            if end == 0 and len(held) > MAX_HELD:
                end = len(held)
            if end:
                yield held[:end]
                held = held[end:]
    except (aiohttp.ClientError, TimeoutError, OSError):
        yield b"data: " + json.dumps(UpstreamBroken().envelope()).encode() + b"\n\n"
    else:
        if held:
            yield held
