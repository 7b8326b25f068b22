"""Chat requests through the gateway to an upstream that answers, or dies, as told."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
import pytest

from tests.contract.conftest import Gateway, Server
from tests.contract.fakes import BASE, NoKeys, services
from tests.contract.upstream import JSON_HEAD, SSE_HEAD, FakeUpstream, answers, chunk, json_answer
from tuneway import api
from tuneway.errors import (
    EngineUnavailable,
    InvalidRequest,
    OutOfSpace,
    TooManyRequests,
    TunewayError,
    UpstreamBroken,
    UpstreamError,
)
from tuneway.proxy import MAX_ANSWER, Proxy
from tuneway.types import Route, Upstream

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
BODY = {"model": BASE.name, "messages": MESSAGES}


def event(content: str) -> bytes:
    """A server-sent event with a chunk of an answer."""
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    value = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def post(gateway: Gateway, body: Any = BODY, headers: dict[str, str] | None = None) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return gateway.http.post(
        f"{gateway.url}/v1/chat/completions",
        content=content,
        headers={"content-type": "application/json", **(headers or {})},
    )


def test_an_answer_comes_back_byte_for_byte(gateway: Gateway, upstream: FakeUpstream) -> None:
    answer = b'{ "id" : "chatcmpl-1",   "odd":"\\u00e4 \xc3\xa4" }\n'
    upstream.behave = json_answer(answer, b"x-tuneway-ignored: service_tier", b"x-request-id: req_theirs")
    sent = b'{ "model" : "smollm2-135m-instruct" ,"messages":[] , "unknown": 1e2}'
    response = post(gateway, sent)
    assert response.content == answer
    assert response.headers["x-tuneway-ignored"] == "service_tier"
    assert response.headers["x-request-id"] == "req_theirs"
    assert response.headers["content-length"] == str(len(answer))
    assert upstream.received[0].body == sent
    assert upstream.received[0].line == "POST /v1/chat/completions HTTP/1.1"


def test_a_stream_reaches_the_sdk(gateway: Gateway, upstream: FakeUpstream) -> None:
    parts = [event("Hel"), event("lo"), b"data: [DONE]\n\n"]
    upstream.behave = answers(SSE_HEAD + b"".join(map(chunk, parts)) + b"0\r\n\r\n")
    stream = gateway.client.chat.completions.create(model=BASE.name, messages=MESSAGES, stream=True)
    assert stream.response.headers["x-tuneway-ignored"] == "service_tier"
    assert "".join(part.choices[0].delta.content or "" for part in stream) == "Hello"


def test_each_event_is_sent_as_it_comes(gateway: Gateway, upstream: FakeUpstream) -> None:
    first_was_read = threading.Event()

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + chunk(event("one")))
        await writer.drain()
        await asyncio.to_thread(first_was_read.wait, 10)
        writer.write(chunk(event("two")) + b"0\r\n\r\n")

    upstream.behave = behave
    stream = gateway.client.chat.completions.create(model=BASE.name, messages=MESSAGES, stream=True)
    assert next(stream).choices[0].delta.content == "one"
    first_was_read.set()
    assert next(stream).choices[0].delta.content == "two"


def test_the_callers_credentials_and_our_headers_stay_here(gateway: Gateway, upstream: FakeUpstream) -> None:
    upstream.behave = json_answer(b"{}", b"set-cookie: a=b", b"access-control-allow-origin: *", b"server: engine")
    secret = {
        "authorization": "Bearer secret",
        "api-key": "secret",
        "cookie": "secret",
        "proxy-authorization": "secret",
        "x-portkey-api-key": "secret",
        "x-tuneway-api-key": "secret",
        "x-anything": "secret",
        "te": "trailers",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    response = post(gateway, headers=secret)
    assert response.status_code == 200
    assert not {"set-cookie", "access-control-allow-origin"} & set(response.headers)
    received = upstream.received[0].headers
    assert "secret" not in "".join(received.values())
    assert received.keys() == {
        "accept",
        "authorization",
        "content-length",
        "content-type",
        "host",
        "traceparent",
        "x-request-id",
        "x-tuneway-adapter",
        "x-tuneway-project",
        "connection",
    }
    assert received["authorization"] == "Bearer engine-token"
    assert received["x-request-id"] == response.headers["x-request-id"]


def test_an_upstreams_error_is_passed_on(gateway: Gateway, upstream: FakeUpstream) -> None:
    body = json.dumps({"error": {"message": "no", "type": "invalid_request_error", "param": "n", "code": "x"}}).encode()
    upstream.behave = answers(
        b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    with pytest.raises(openai.BadRequestError) as raised:
        gateway.client.chat.completions.create(model=BASE.name, messages=MESSAGES)
    assert (raised.value.param, raised.value.code) == ("n", "x")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/elsewhere\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 500 Oh\r\ncontent-type: text/html\r\ncontent-length: 6\r\n\r\n<html>",
    ],
)
def test_an_answer_that_is_no_json_becomes_an_envelope(gateway: Gateway, upstream: FakeUpstream, head: bytes) -> None:
    upstream.behave = answers(head)
    response = post(gateway)
    assert response.status_code == 502
    assert response.json()["error"]["type"] == "upstream_error"
    assert len(upstream.received) == 1


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200 OK\r\ncontent-ty", b"garbage\r\n\r\n"])
def test_death_before_the_headers_is_a_502_and_no_second_try(
    gateway: Gateway, upstream: FakeUpstream, raw: bytes
) -> None:
    upstream.behave = answers(raw)
    response = post(gateway)
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_broken"
    assert len(upstream.received) == 1
    upstream.behave = json_answer(b"{}")
    assert post(gateway).status_code == 200


@pytest.mark.parametrize("torn", [b"", b'data: {"id": "chatc', event("torn")[:-1]])
def test_death_in_a_stream_is_an_error_event(gateway: Gateway, upstream: FakeUpstream, torn: bytes) -> None:
    upstream.behave = answers(SSE_HEAD + chunk(event("whole")) + (chunk(torn) if torn else b""))
    stream = gateway.client.chat.completions.create(model=BASE.name, messages=MESSAGES, stream=True)
    assert next(stream).choices[0].delta.content == "whole"
    with pytest.raises(openai.APIError) as raised:
        next(stream)
    assert raised.value.code == "upstream_broken"
    # The HTTP response itself ends cleanly, so that the connection can be used again.
    response = post(gateway, {**BODY, "stream": True})
    assert response.content.startswith(event("whole") + b'data: {"error": ')
    assert response.content.endswith(b"}\n\n")


@pytest.mark.parametrize("framing", [b"content-length: 100\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n8\r\n"])
def test_death_in_a_json_body_breaks_the_body(gateway: Gateway, upstream: FakeUpstream, framing: bytes) -> None:
    upstream.behave = answers(JSON_HEAD + framing + b'{"id": ')
    with pytest.raises(httpx2.RemoteProtocolError):
        post(gateway)


def test_a_client_that_leaves_ends_the_request_upstream(gateway: Gateway, upstream: FakeUpstream) -> None:
    upstream.behave = upstream.waits_for_the_end(SSE_HEAD + chunk(event("one")))
    stream = gateway.client.chat.completions.create(model=BASE.name, messages=MESSAGES, stream=True)
    next(stream)
    stream.close()
    assert upstream.gone.wait(10)


def test_a_client_that_leaves_before_the_headers_ends_the_request_too(gateway: Gateway, upstream: FakeUpstream) -> None:
    arrived = threading.Event()

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await upstream.waits_for_the_end()(reader, writer)

    upstream.behave = behave
    body = json.dumps(BODY).encode()
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        assert arrived.wait(10)
    assert upstream.gone.wait(10)


def test_a_client_that_does_not_read_stops_the_upstream(gateway: Gateway, upstream: FakeUpstream) -> None:
    total, stalled = 64 * 1024 * 1024, threading.Event()
    piece = b"x" * 65536

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(JSON_HEAD + b"content-length: %d\r\n\r\n" % total)
        for _ in range(total // len(piece)):
            writer.write(piece)
            try:
                await asyncio.wait_for(writer.drain(), 0.5)
            except TimeoutError:
                stalled.set()
                await writer.drain()

    upstream.behave = behave
    headers = {"content-type": "application/json"}
    url = f"{gateway.url}/v1/chat/completions"
    with gateway.http.stream("POST", url, content=json.dumps(BODY), headers=headers, timeout=60) as response:
        assert stalled.wait(30)
        assert sum(map(len, response.iter_raw())) == total


def test_an_engine_that_has_gone_is_asked_for_again_once(gateway: Gateway, upstream: FakeUpstream) -> None:
    routes = [upstream.socket.with_name("gone"), upstream.socket]

    async def find(name: str) -> Route:
        return Route(Upstream("http://engine/v1/chat/completions", {}, routes.pop(0)), name)

    gateway.models.find = find
    assert post(gateway).status_code == 200
    assert gateway.models.done["route"] == 2
    assert len(upstream.received) == 1
    routes[:] = [upstream.socket.with_name("gone")] * 3
    assert post(gateway).json()["error"]["code"] == "upstream_broken"
    assert len(routes) == 1


def test_an_engine_that_cannot_start_is_a_503(gateway: Gateway) -> None:
    async def find(name: str) -> Route:
        raise EngineUnavailable

    gateway.models.find = find
    with pytest.raises(openai.InternalServerError) as raised:
        gateway.client.chat.completions.create(model=BASE.name, messages=MESSAGES)
    assert (raised.value.status_code, raised.value.code) == (503, "engine_unavailable")


def test_an_unknown_model_is_openais_404(gateway: Gateway) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        gateway.client.chat.completions.create(model="ft:none", messages=MESSAGES)
    assert raised.value.code == "model_not_found"
    assert "The model `ft:none` does not exist or you do not have access to it." in raised.value.message


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"[]", 400, None),
        (b"\xff", 400, None),
        (b'{"model": "\xff"}', 400, None),
        (b"{}", 400, "model"),
        (b'{"model": 7}', 400, "model"),
        (b'{"model": null}', 400, "model"),
        (b'{"model": "m", "stream": "yes"}', 400, "stream"),
        (b'{"model": "m", "store": 1}', 400, "store"),
        (b'{"model": "m", "metadata": {"a": null}}', 400, "metadata"),
        (b'{"model": "m", "store": true}', 400, "store"),
        (b'{"model": "m", "x": NaN}', 400, None),
        (b'{"model": "m", "x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", 400, None),
        (b'{"model": "m", "x": "' + b"x" * 2 * 1024 * 1024 + b'"}', 413, None),
    ],
    ids=range(15),
)
def test_a_wrong_body_goes_nowhere(gateway: Gateway, body: bytes, status: int, param: str | None) -> None:
    response = post(gateway, body)
    assert response.status_code == status
    assert response.json()["error"]["param"] == param
    assert gateway.models.done["route"] == 0


def test_a_large_body_arrives_whole(gateway: Gateway, upstream: FakeUpstream) -> None:
    body = {**BODY, "user": "x" * 1_500_000}
    assert post(gateway, body).status_code == 200
    assert json.loads(upstream.received[0].body) == body


def test_open_streams_are_counted(gateway: Gateway, upstream: FakeUpstream) -> None:
    def open_streams() -> str:
        lines = gateway.http.get(f"{gateway.url}/metrics").text.splitlines()
        return next(line for line in lines if line.startswith("tuneway_chat_streams_open"))

    upstream.behave = upstream.waits_for_the_end(SSE_HEAD + chunk(event("one")))
    stream = gateway.client.chat.completions.create(model=BASE.name, messages=MESSAGES, stream=True)
    next(stream)
    assert open_streams().endswith(" 1.0")
    stream.close()
    assert upstream.gone.wait(10)
    upstream.behave = json_answer(b"{}")
    assert post(gateway).status_code == 200
    assert open_streams().endswith(" 0.0")


# ------------------------------------------------------------------------------------------------------ to be stored

STORED = {**BODY, "store": True}
LAST = b"data: [DONE]\n\n"


async def _nothing() -> None:
    pass


@dataclass
class Recorder:
    """Keeps what it was given to store, once `before` has ended."""

    requests: list[bytes] = field(default_factory=list)
    stored: list[bytes] = field(default_factory=list)
    before: Callable[[], Awaitable[None]] = _nothing

    async def record(self, project: str, body: bytes) -> Recorder:
        assert project == "default"
        self.requests.append(body)
        return self

    async def whole(self, answer: bytes) -> None:
        await self.before()
        self.stored.append(answer)

    stream = whole


@pytest.fixture
def recorder(gateway: Gateway, server: Server, settings: api.ApiSettings) -> Recorder:
    """What a gateway with a place to store answers stores them by."""
    recorder = Recorder()
    server.app = api.build(
        services(keys=NoKeys(), chat=Proxy(gateway.models.route, recorder.record), ready=lambda: True), settings
    )
    return recorder


async def _full() -> None:
    raise OutOfSpace


def test_an_answer_is_stored_as_it_came(gateway: Gateway, upstream: FakeUpstream, recorder: Recorder) -> None:
    answer = b'{ "id" : "chatcmpl-1",   "odd":"\xc3\xa4" }\n'
    upstream.behave = json_answer(answer, b"x-tuneway-ignored: metadata, service_tier")
    response = post(gateway, STORED)
    assert response.content == answer
    assert response.headers["x-tuneway-ignored"] == "service_tier"
    assert recorder.stored == [answer]
    assert recorder.requests == [upstream.received[0].body] == [json.dumps(STORED).encode()]
    assert post(gateway, {**BODY, "store": False}).content == answer
    assert len(recorder.stored) == 1


@pytest.mark.parametrize("cut", [0, 7, 100])
@pytest.mark.parametrize("last", [LAST, b"data:[DONE]\r\n\r\n", b"data: [DONE]"])
def test_the_last_event_waits_until_the_others_are_stored(
    gateway: Gateway, upstream: FakeUpstream, recorder: Recorder, cut: int, last: bytes
) -> None:
    events = event("data: [DONE]") + event("b")
    others_were_read = threading.Event()

    async def read() -> None:
        assert await asyncio.to_thread(others_were_read.wait, 10)

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(SSE_HEAD + chunk(events + last[:cut]))
        if last[cut:]:
            await writer.drain()
            await read()
            writer.write(chunk(last[cut:]))
        writer.write(b"0\r\n\r\n")

    upstream.behave, recorder.before = behave, read
    url, headers = f"{gateway.url}/v1/chat/completions", {"content-type": "application/json"}
    with gateway.http.stream("POST", url, content=json.dumps(STORED), headers=headers) as response:
        got = b""
        for piece in response.iter_raw():
            got += piece
            if got == events:
                assert not recorder.stored
                others_were_read.set()
    assert got == events + last
    assert recorder.stored == [events]


@pytest.mark.parametrize("before", [b"", event("one")])
def test_a_full_disk_is_told_in_a_stream(
    gateway: Gateway, upstream: FakeUpstream, recorder: Recorder, before: bytes
) -> None:
    recorder.before = _full
    upstream.behave = answers(SSE_HEAD + chunk(before + LAST) + b"0\r\n\r\n")
    content = post(gateway, {**STORED, "stream": True}).content
    assert content == before + b"data: " + json.dumps(OutOfSpace().envelope()).encode() + b"\n\n"


def test_a_full_disk_is_a_507(gateway: Gateway, upstream: FakeUpstream, recorder: Recorder) -> None:
    recorder.before = _full
    upstream.behave = json_answer(b"{}")
    response = post(gateway, STORED)
    assert (response.status_code, response.json()["error"]["code"]) == (507, "out_of_space")


def test_an_answer_too_long_to_store_is_refused(gateway: Gateway, upstream: FakeUpstream, recorder: Recorder) -> None:
    upstream.behave = json_answer(b'"' + b"x" * MAX_ANSWER + b'"')
    response = post(gateway, STORED)
    assert (response.status_code, response.json()["error"]["code"]) == (502, "answer_too_long")
    assert not recorder.stored


def test_a_stream_without_its_end_is_not_stored(gateway: Gateway, upstream: FakeUpstream, recorder: Recorder) -> None:
    upstream.behave = answers(SSE_HEAD + chunk(event("one")) + b"0\r\n\r\n")
    content = post(gateway, {**STORED, "stream": True}).content
    assert content.startswith(event("one") + b'data: {"error": ')
    assert b"upstream_broken" in content
    assert not recorder.stored


def test_an_error_of_the_upstream_is_not_stored(gateway: Gateway, upstream: FakeUpstream, recorder: Recorder) -> None:
    head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    upstream.behave = answers(head)
    assert post(gateway, STORED).status_code == 400
    assert not recorder.stored


def test_nothing_is_stored_for_a_client_that_left(gateway: Gateway, upstream: FakeUpstream, recorder: Recorder) -> None:
    upstream.behave = upstream.waits_for_the_end(SSE_HEAD + chunk(event("one")))
    stream = gateway.client.chat.completions.create(model=BASE.name, messages=MESSAGES, stream=True, store=True)
    next(stream)
    stream.close()
    assert upstream.gone.wait(10)
    assert not recorder.stored


# -------------------------------------------------------------------------------------------- asked by the gateway


def complete(gateway: Gateway) -> dict[str, Any]:
    return asyncio.run(Proxy(gateway.models.route).complete("default", BODY))


def test_the_gateway_asks_by_itself(gateway: Gateway, upstream: FakeUpstream) -> None:
    upstream.behave = json_answer(b'{"id": "chatcmpl-1"}')
    assert complete(gateway) == {"id": "chatcmpl-1"}
    assert json.loads(upstream.received[0].body) == BODY
    assert upstream.received[0].headers["authorization"] == "Bearer engine-token"


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": {"message": "no", "param": "n", "code": "x"}}, InvalidRequest),
        (429, {"error": {"message": "no", "param": "n", "code": "x"}}, TooManyRequests),
        (500, {"error": {"message": "no", "param": "n", "code": "x"}}, UpstreamError),
        (400, {"message": "what"}, UpstreamError),
        (200, ["no object"], UpstreamError),
    ],
    ids=range(5),
)
def test_an_upstreams_error_keeps_its_words(
    gateway: Gateway, upstream: FakeUpstream, status: int, body: Any, kind: type[TunewayError]
) -> None:
    raw = json.dumps(body).encode()
    upstream.behave = answers(
        b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(raw)) + raw
    )
    with pytest.raises(TunewayError) as raised:
        complete(gateway)
    assert type(raised.value) is kind
    if "error" in body:
        assert (raised.value.message, raised.value.param, raised.value.code) == ("no", "n", "x")


def test_a_broken_answer_to_the_gateway_is_told(gateway: Gateway, upstream: FakeUpstream) -> None:
    upstream.behave = answers(JSON_HEAD + b"content-length: 100\r\n\r\n{")
    with pytest.raises(UpstreamBroken):
        complete(gateway)
