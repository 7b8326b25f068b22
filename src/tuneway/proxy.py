"""The data plane: chat requests go to the model's upstream unparsed and the answer comes back byte for byte.

It knows routes and bytes, nothing of jobs or of the web framework. An answer that is to be stored is the same bytes; of
them only the last ones wait until it is. Every request has a connection of its own: on one
that is kept alive, a POST to a server that has just gone can neither be told from one that was read nor sent again.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Annotated, Any, NoReturn, Protocol

import aiohttp
import msgspec
from msgspec import UNSET, Meta, UnsetType
from yarl import URL

from tuneway.errors import InvalidRequest, TooManyRequests, TunewayError, UpstreamBroken, UpstreamError
from tuneway.outbound import Outbound
from tuneway.providers.line import refusal, without_secrets
from tuneway.types import Route, Upstream

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
FindUpstream = Callable[[], Awaitable[Upstream]]
FindRoute = Callable[[str, str], Awaitable[Route]]


class Recording(Protocol):
    """Stores one answer, durably. What it raises is the client's answer instead."""

    async def whole(self, answer: bytes) -> None:
        """A JSON object."""

    async def stream(self, events: bytes) -> None:
        """The server-sent events before the last one."""


Record = Callable[[str, bytes], Awaitable[Recording]]
"""Takes a project and a request that is to be stored, before it is sent. Raises InvalidRequest."""

CONNECT_SECONDS = 10
SILENCE_SECONDS = 600
"""How long an upstream may say nothing: as long as OpenAI's clients wait."""

PIECE = 64 * 1024
MAX_HELD = 1024 * 1024
"""Bytes of an unfinished server-sent event that are held back; a longer event is passed on in parts."""
MAX_ANSWER = 32 * 1024 * 1024
"""Bytes of an answer that the gateway keeps: to store it, or because it asked for it itself."""

_LAST_EVENT = re.compile(rb"^data: ?\[DONE\]", re.MULTILINE)
_DONE_HERE = frozenset({"store", "metadata"})
"""What a stored request has of the gateway, whatever its upstream says to ignore."""

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


_Key = Annotated[str, Meta(max_length=64)]
_Value = Annotated[str, Meta(max_length=512)]


class Peek(msgspec.Struct):
    """All that the gateway reads of a chat request. `stream` only has to be of its type; the upstream acts on it.

    `metadata` belongs to what is stored. Without `store` it is checked all the same and is the upstream's business.
    """

    model: str | UnsetType = UNSET
    stream: bool | None = None
    store: bool | None = None
    metadata: Annotated[dict[_Key, _Value], Meta(max_length=16)] | None = None


_peek = msgspec.json.Decoder(Peek)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_WRONG = re.compile(r"(?P<what>.*) - at (?P<key>`key` in )?`\$\.(?P<param>\w+).*`")


def peek(body: bytes) -> Peek:
    """Raises InvalidRequest that names the field."""
    try:
        return _peek.decode(body)
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error)) from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None


def _wrong_field(said: str) -> InvalidRequest:
    found = _WRONG.fullmatch(said)
    if found is None:
        return InvalidRequest("The body must be a JSON object.")
    param = found["param"]
    what = found["what"][0].lower() + found["what"][1:] + (" as a key" if found["key"] else "")
    if " of length " not in what:
        return InvalidRequest(f"Invalid type for '{param}': {what}.", param=param, code="invalid_type")
    code = "object_above_max_properties" if "`object`" in what else "string_above_max_length"
    return InvalidRequest(f"Invalid '{param}': {what}.", param=param, code=code)


class _Named(msgspec.Struct):
    model: str | UnsetType = UNSET


_model = msgspec.json.Decoder(_Named)


def peek_model(body: bytes) -> str:
    """The model of a request of which the rest is not the gateway's to judge. Raises InvalidRequest."""
    try:
        found = _model.decode(body).model
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error)) from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    if found is UNSET:
        raise _no_model()
    return found


def _no_model() -> InvalidRequest:
    return InvalidRequest("Missing required parameter: 'model'.", param="model", code="missing_required_parameter")


class Proxy:
    """`find_route` takes a project and a model name; it may start what serves the model, and may be cancelled.

    Without `record` nothing is stored, and a request that asks for it is refused. Upstreams that are not sockets of
    this machine are reached through `outbound`, which decides about their hosts.
    """

    def __init__(self, find_route: FindRoute, record: Record | None = None, outbound: Outbound | None = None) -> None:
        self._find_route = find_route
        self._record = record
        self._outbound = outbound

    async def answer(
        self,
        project: str,
        body: bytes,
        headers: Mapping[str, str],
        receive: Receive,
        send: Send,
        *,
        model: str | None = None,
    ) -> None:
        """Sends the upstream's answer; the request upstream ends as soon as the client leaves.

        `headers` are the client's, with lower-case names; of them only REQUEST_HEADERS are passed on. `model` weighs
        more than the body's. Raises TunewayError: before anything was sent, or, when the upstream broke off a body that
        is no event stream, after.
        """
        asked = peek(body)
        if model is None:
            if asked.model is UNSET:
                raise _no_model()
            model = asked.model
        recording = await self._recording(project, body) if asked.store else None
        found = self._finder(project, model)
        await until_left(self._answer(found, body, headers, send, recording, project), receive)

    async def relay(
        self, upstream: Upstream, body: bytes, headers: Mapping[str, str], receive: Receive, send: Send
    ) -> None:
        """As `answer`, for an upstream that the caller has chosen: the same bytes both ways, and nothing is stored."""

        async def there() -> Upstream:
            return upstream

        await until_left(self._answer(there, body, headers, send, None), receive)

    async def complete(self, project: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a chat request of the gateway's own; `body` has a model and no `stream`.

        Raises what `find_route` does; InvalidRequest, TooManyRequests or UpstreamError with the upstream's words.
        """
        headers = {"accept": "application/json", "content-type": "application/json"}
        found = self._finder(project, body["model"])
        async with self._asked(found, msgspec.json.encode(body), headers, project) as (response, _):
            answer = await _read(response)
            status = response.status
        try:
            value = msgspec.json.decode(answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            value = None
        if status != 200:
            _raise_upstreams(status, value)
        if not isinstance(value, dict):
            raise UpstreamError("The server of this model answered with something else than a JSON object.")
        return value

    async def _recording(self, project: str, body: bytes) -> Recording:
        if self._record is None:
            raise InvalidRequest("'store' is not supported here.", param="store", code="unsupported_parameter")
        return await self._record(project, body)

    def _finder(self, project: str, model: str) -> FindUpstream:
        async def find() -> Upstream:
            return (await self._find_route(project, model)).upstream

        return find

    async def _answer(
        self,
        find: FindUpstream,
        body: bytes,
        headers: Mapping[str, str],
        send: Send,
        recording: Recording | None,
        project: str | None = None,
    ) -> None:
        passed_on = {name: value for name, value in headers.items() if name in REQUEST_HEADERS}
        async with self._asked(find, body, passed_on, project) as (response, upstream):
            if response.status >= 300 and upstream.socket is None and self._outbound is not None:
                await _pass_refusal_on(response, upstream, send)
            else:
                await _pass_on(response, send, recording)

    @asynccontextmanager
    async def _asked(
        self, find: FindUpstream, body: bytes, headers: Mapping[str, str], project: str | None
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, Upstream]]:
        """The upstream's response, as far as its headers; what breaks from here on is an UpstreamBroken."""
        async with AsyncExitStack() as stack:
            for last_try in (False, True):
                upstream = await find()
                # Engines of this gateway keep projects apart; nobody else is told of them.
                ours = {} if upstream.socket is None or project is None else {"x-tuneway-project": project}
                sent = body if upstream.model is None else with_model(body, upstream.model)
                try:
                    session = await stack.enter_async_context(self._session(upstream))
                    response = await stack.enter_async_context(
                        session.post(
                            URL(upstream.url, encoded=True),
                            # In pieces: aiohttp writes a body given as bytes in one go, however large.
                            data=_pieces(sent),
                            headers={**headers, "content-length": str(len(sent)), **ours, **upstream.headers},
                            allow_redirects=False,
                        )
                    )
                    break
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    if upstream.socket is None and self._outbound is not None:
                        raise  # `outbound` says what it is
                    if not isinstance(error, aiohttp.ClientConnectorError):
                        raise UpstreamBroken from error
                    # Nothing was sent: the engine ended between the route and the connection. The route starts another.
                    if last_try:
                        raise UpstreamBroken(
                            "The server of this model does not answer. Send the request again."
                        ) from error
            try:
                yield response, upstream
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise UpstreamBroken from error

    def _session(self, upstream: Upstream) -> AbstractAsyncContextManager[aiohttp.ClientSession]:
        """Without a word of its own in the request's headers."""
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS)
        if upstream.socket is None and self._outbound is not None:
            return self._outbound.session(upstream.url, limits)
        return _session(upstream, limits)


async def until_left(answer: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Runs `answer` to its end, or until the client leaves; then it is cancelled."""
    answering = asyncio.create_task(answer)
    leaving = asyncio.create_task(_client_left(receive))
    try:
        await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            await answering
    finally:
        answering.cancel()
        leaving.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


def with_model(body: bytes, model: str) -> bytes:
    """The same request for another model; of the rest not a byte changes but white space between its fields.

    Raises InvalidRequest for a field that stands in it twice: it cannot be told which of them is meant.
    """
    try:
        fields = _fields.decode(body)
        json.loads(body, object_pairs_hook=_once)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    whole: bytes = msgspec.json.encode(fields)
    return whole


def _once(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None) if len({*names}) < len(names) else None
    if twice is not None:
        raise InvalidRequest(f"The field '{twice[:100]}' is given twice. Give it once.", param=twice[:100])


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _session(upstream: Upstream, limits: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
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
        timeout=limits,
    )


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]


async def _pass_on(response: aiohttp.ClientResponse, send: Send, recording: Recording | None) -> None:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if response.status >= 300 and kind != "application/json":
        raise UpstreamError(f"The server of this model answered with status {response.status} and no JSON.")
    headers = _kept(_headers_of(response))
    chunks: AsyncIterator[bytes] = response.content.iter_any()
    if recording is not None and response.status == 200:
        _name_ignored(headers)
        if kind == "text/event-stream":
            chunks = _recorded(chunks, recording)
        else:
            answer = await _read(response)
            await recording.whole(answer)
            chunks = _pieces(answer)
    if kind == "text/event-stream" and "content-encoding" not in headers:
        headers.pop("content-length", None)
        chunks = _whole_events(chunks)
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": raw})
    async for chunk in chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _headers_of(response: aiohttp.ClientResponse) -> dict[str, str]:
    """Names in lower case; each byte one character, as servers write it again."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.raw_headers}


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    """What a client gets of an upstream's headers, whose names are in lower case."""
    return {
        name: value for name, value in headers.items() if name in RESPONSE_HEADERS or name.startswith(RESPONSE_PREFIXES)
    }


async def _pass_refusal_on(response: aiohttp.ClientResponse, upstream: Upstream, send: Send) -> None:
    """A provider's error: byte for byte where it is OpenAI's envelope, else its words in ours, with its status.

    But never with the credential that was sent, should the provider repeat it.
    """
    body = without_secrets(await _read(response), upstream.headers)
    headers = _headers_of(response)
    error = refusal("The provider", response.status, headers, body)
    if upstream.model is not None and response.status in (401, 403):
        # The credential is the gateway's, and not the client's to mend.
        raise UpstreamError(f"The provider refuses this gateway's own credential: {error.message}", code=error.code)
    if not _is_envelope(body):
        raise error
    kept = _kept(headers)
    kept["content-length"] = str(len(body))
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in kept.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _is_envelope(body: bytes) -> bool:
    """Whether it is an error with all four of OpenAI's keys."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    error = value.get("error") if isinstance(value, dict) else None
    return isinstance(error, dict) and {"message", "type", "param", "code"} <= error.keys()


def _name_ignored(headers: dict[str, str]) -> None:
    """Takes out of `x-tuneway-ignored` what the gateway itself does for a stored request."""
    named = [name.strip() for name in headers.pop("x-tuneway-ignored", "").split(",")]
    left = [name for name in named if name and name not in _DONE_HERE]
    if left:
        headers["x-tuneway-ignored"] = ", ".join(left)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    answer = bytearray()
    async for chunk in response.content.iter_any():
        answer += chunk
        if len(answer) > MAX_ANSWER:
            raise _too_long()
    return bytes(answer)


def _too_long() -> UpstreamError:
    return UpstreamError(
        f"The answer is longer than the {MAX_ANSWER} bytes that can be stored; nothing was stored. Ask for less, or "
        "send the request without 'store'.",
        code="answer_too_long",
    )


def _raise_upstreams(status: int, value: Any) -> NoReturn:
    """The upstream's error as one of ours: its message, and whose fault it is."""
    found = value.get("error") if isinstance(value, dict) else None
    error = found if isinstance(found, dict) else {}
    message, param, code = (
        said if isinstance(said := error.get(name), str) else None for name in ("message", "param", "code")
    )
    if message is None:
        raise UpstreamError(f"The server of this model answered with status {status} and no error message.")
    if status == 429:
        raise TooManyRequests(message, param=param, code=code)
    if 400 <= status < 500:
        raise InvalidRequest(message, param=param, code=code)
    raise UpstreamError(message, param=param, code=code)


async def _recorded(chunks: AsyncIterator[bytes], recording: Recording) -> AsyncIterator[bytes]:
    """The same bytes; those from the last event on wait until the others are stored.

    Raises what storing raises, and UpstreamBroken for a stream that ends without its last event.
    """
    taken, stored = bytearray(), False
    async for chunk in chunks:
        if stored:
            yield chunk
            continue
        passed, line = len(taken), taken.rfind(b"\n") + 1
        taken += chunk
        if len(taken) > MAX_ANSWER:
            raise _too_long()
        last = _LAST_EVENT.search(taken, line)
        if last is None:
            yield chunk
            continue
        before = max(last.start(), passed)
        if before > passed:
            yield bytes(taken[passed:before])
        await recording.stream(bytes(taken[: last.start()]))
        stored = True
        yield bytes(taken[before:])
    if not stored:
        raise UpstreamBroken("The answer ended too early and was not stored. Send the request again.")


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
    except TunewayError as error:
        yield _error_event(error)
    except (aiohttp.ClientError, TimeoutError, OSError):
        yield _error_event(UpstreamBroken())
    else:
        if held:
            yield held


def _error_event(error: TunewayError) -> bytes:
    return b"data: " + json.dumps(error.envelope()).encode() + b"\n\n"
