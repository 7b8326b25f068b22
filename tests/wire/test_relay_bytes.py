"""What a relay carries: bodies, streams, forms, files and errors, byte by byte; and that it carries on no longer than
its client.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
import psutil
import pytest

from tests.simulators.openai import OpenAISimulator
from tests.simulators.sdk import HI, ROWS
from tests.wire.conftest import Gateway
from tests.wire.relays import OPENAI, RawProvider, ask, heads, relayed, response
from tests.wire.vendors import eventually

ENVELOPE = {"message", "type", "param", "code"}
CHAT = "/v1/chat/completions"
FILES = "/v1/files"
JOB = "/v1/fine_tuning/jobs/ftjob-1"
MEBIBYTE = 2**20
JSON = {"content-type": "application/json"}


@pytest.fixture
def sim() -> Iterator[OpenAISimulator]:
    with OpenAISimulator() as sim:
        yield sim
    assert sim.leaks == []


@pytest.fixture
def raw() -> Iterator[RawProvider]:
    with RawProvider().running() as raw:
        yield raw


def to(sim: OpenAISimulator) -> dict[str, str]:
    return heads(sim.base_url) | {"authorization": f"Bearer {sim.key}"}


# -------------------------------------------------------------------------------------------------------------- chat

ODD = [
    b'{ "model" : "m" ,\n\t"messages":[] , "unknown": 1e2}\n\n',
    '{"model":"m","messages":[{"role":"user","content":"gr\\u00fc\\u00DF ☂ \\/ \\ud83d\\ude00"}]}'.encode(),
    b'{"model":"m","messages":[],"n":1,"n":2,"metadata":{"a":null},"store":"maybe","stream":1}',
    b'{"messages":[],"model":"ft:a:b::c/d","logit_bias":{"1":1.0000000000000000000001}}',
]


@pytest.mark.parametrize("body", ODD)
def test_a_chat_request_is_sent_as_it_is(gateway: Gateway, raw: RawProvider, body: bytes) -> None:
    assert ask(gateway, raw.base_url, "POST", CHAT, JSON, content=body).status_code == 200
    received = raw.received[0]
    assert received.body == body
    assert received.line == "POST /v1/chat/completions HTTP/1.1"
    assert received.header("content-length") == str(len(body))
    assert received.header("authorization") == "Bearer sk-raw"
    assert received.header("host") == f"127.0.0.1:{raw.port}"


def test_a_large_chat_request_too(gateway: Gateway, raw: RawProvider) -> None:
    body = json.dumps({"model": "m", "messages": ["x" * 3_000_000]}).encode()
    assert ask(gateway, raw.base_url, "POST", CHAT, JSON, content=body).status_code == 200
    assert raw.received[0].body == body


def test_an_answer_comes_back_as_it_is(gateway: Gateway, sim: OpenAISimulator) -> None:
    """Of the simulator, whose answers no serializer writes."""
    for stream in (False, True):
        body = {"model": OPENAI, "messages": HI, "stream": stream}
        found = gateway.http.post(CHAT, headers=to(sim), json=body)
        assert found.status_code == 200
        assert found.content == sim.chat_bytes
        assert found.headers["openai-organization"] == "acme"
        assert found.headers["x-request-id"] != sim.requests[-1].headers["x-request-id"]
        assert ("content-length" in found.headers) is not stream


def test_what_an_answer_says_besides(gateway: Gateway, raw: RawProvider) -> None:
    kept = {
        "x-request-id": "req_theirs",
        "x-ratelimit-remaining-tokens": "7",
        "retry-after-ms": "3",
        "x-should-retry": "false",
    }
    lines = [f"{name}: {value}".encode() for name, value in kept.items()]
    odd = [b"set-cookie: a=b", b"access-control-allow-origin: *", "openai-organization: grüß".encode()]
    raw.answers = [response(b'{"object": "list", "data": []}', *lines, *odd)]
    for answer in (
        ask(gateway, raw.base_url, "POST", CHAT, JSON, content=ODD[0]),
        ask(gateway, raw.base_url, "GET", "/v1/models"),
    ):
        assert kept.items() <= dict(answer.headers).items()
        assert not {"set-cookie", "access-control-allow-origin"} & answer.headers.keys()
        assert answer.headers["x-tuneway-provider"] == "openai"
        values = [value for name, value in answer.headers.raw if name.lower() == b"openai-organization"]
        assert values == ["grüß".encode()]


def test_an_event_is_passed_on_when_it_has_come(gateway: Gateway, raw: RawProvider) -> None:
    """However it is cut; and a provider that dies in the middle of one is an error event."""
    event = 'data: {"ü": "☂"}\n\n'.encode()

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for at in range(len(event)):
            writer.write(b"1\r\n" + event[at : at + 1] + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"5\r\ndata:\r\n")
        await writer.drain()

    raw.behave = behave
    headers = heads(raw.base_url) | {"authorization": "Bearer sk-raw"}
    with gateway.http.stream("POST", CHAT, headers=headers, json={"model": "m", "stream": True}) as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == event
        rest = b"".join(pieces)
    assert json.loads(rest.removeprefix(b"data: "))["error"]["code"] == "upstream_broken"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"\xff", None),
        (b"{}", "model"),
        (b'{"model": 7}', "model"),
        (b'{"model": null}', "model"),
        (b'{"model": "m", "x": ' + b"[" * 100_000, None),
    ],
)
def test_what_is_no_chat_request_goes_nowhere(
    gateway: Gateway, raw: RawProvider, body: bytes, param: str | None
) -> None:
    answer = ask(gateway, raw.base_url, "POST", CHAT, JSON, content=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert raw.received == []


# ------------------------------------------------------------------------------------------------------------- errors

OPENAIS = b'{"error": {"message":"no \\u00fc" , "type":"insufficient_quota","param":null, "code":"q"}, "more": 1}\n'
AZURES = b'{"error": {"code": "DeploymentNotFound", "message": "no deployment"}}'
REWORDED = [
    (AZURES, b"application/json", "no deployment", "DeploymentNotFound"),
    (b"<html>Bad gateway</html>", b"text/html", "The provider answered: status {} without an error message", None),
    (b"", b"text/plain", "The provider answered: status {} without an error message", None),
    (b"over capacity", b"text/plain", "The provider answered: over capacity", None),
    (b'{"error": {"message": "\\ud83d"}}', b"application/json", "?", None),
]


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_a_whole_error_comes_back_as_it_is(gateway: Gateway, raw: RawProvider, status: int) -> None:
    raw.answers = [response(OPENAIS, b"retry-after: 20", b"x-request-id: req_1", status=b"%d No" % status)]
    answer = ask(gateway, raw.base_url, "POST", CHAT, JSON, content=ODD[0])
    assert (answer.status_code, answer.content) == (status, OPENAIS)
    assert (answer.headers["retry-after"], answer.headers["x-request-id"]) == ("20", "req_1")


@pytest.mark.parametrize(("body", "kind", "message", "code"), REWORDED)
@pytest.mark.parametrize("status", [404, 503])
def test_any_other_error_is_said_in_the_envelope(
    gateway: Gateway, raw: RawProvider, body: bytes, kind: bytes, message: str, code: str | None, status: int
) -> None:
    raw.answers = [response(body, b"retry-after: 20", b"x-request-id: req_1", status=b"%d No" % status, kind=kind)]
    answer = ask(gateway, raw.base_url, "POST", CHAT, JSON, content=ODD[0])
    said = {"message": message.format(status), "type": "upstream_error", "param": None, "code": code}
    assert (answer.status_code, answer.json()) == (status, {"error": said})
    assert (answer.headers["retry-after"], answer.headers["x-request-id"]) == ("20", "req_1")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 429, 500, 503])
@pytest.mark.parametrize("body", [OPENAIS, AZURES])
def test_errors_of_other_operations(gateway: Gateway, raw: RawProvider, status: int, body: bytes) -> None:
    """By `type`, a client tells the provider's from the gateway's own."""
    headers = [b"retry-after: 20", b"x-request-id: req_1", b"x-should-retry: false", b"x-ratelimit-limit-requests: 3"]
    raw.answers = [response(body, *headers, status=b"%d No" % status)]
    answer = ask(gateway, raw.base_url, "POST", f"{JOB}/cancel")
    theirs = json.loads(body)["error"]
    said = {"message": theirs["message"], "type": "upstream_error", "param": None, "code": theirs["code"]}
    assert (answer.status_code, answer.json()) == (status, {"error": said})
    assert (answer.headers["retry-after"], answer.headers["x-request-id"]) == ("20", "req_1")
    assert (answer.headers["x-should-retry"], answer.headers["x-ratelimit-limit-requests"]) == ("false", "3")
    assert answer.headers["x-tuneway-provider"] == "openai"


def test_the_sdk_raises_the_same_errors(gateway: Gateway, raw: RawProvider) -> None:
    raw.answers = [response(OPENAIS, b"x-request-id: req_1", status=b"429 No")]
    with relayed(gateway, raw.base_url, "sk-raw") as client:
        with pytest.raises(openai.RateLimitError) as raised:
            client.chat.completions.create(model="m", messages=HI)
        assert (raised.value.type, raised.value.code, raised.value.request_id) == ("insufficient_quota", "q", "req_1")
        with pytest.raises(openai.RateLimitError) as raised:
            client.fine_tuning.jobs.cancel("ftjob-1")
        assert (raised.value.type, raised.value.code, raised.value.request_id) == ("upstream_error", "q", "req_1")


EVERY = [
    ("POST", "/v1/files", {"files": {"file": ("a.jsonl", ROWS)}, "data": {"purpose": "fine-tune"}}),
    ("GET", "/v1/files", {}),
    ("GET", "/v1/files/file-1", {}),
    ("DELETE", "/v1/files/file-1", {}),
    ("POST", "/v1/uploads", {"json": {}}),
    ("POST", "/v1/uploads/upload_1/parts", {"files": {"data": ("a", b"x")}}),
    ("POST", "/v1/uploads/upload_1/complete", {"json": {}}),
    ("POST", "/v1/fine_tuning/jobs", {"json": {"model": "m", "training_file": "file-1"}}),
    ("GET", "/v1/fine_tuning/jobs", {}),
    ("GET", JOB, {}),
    ("POST", f"{JOB}/pause", {}),
    ("GET", f"{JOB}/events", {}),
    ("GET", f"{JOB}/checkpoints", {}),
    ("GET", "/v1/fine_tuning/checkpoints/c/permissions", {}),
    ("DELETE", "/v1/fine_tuning/checkpoints/c/permissions/p", {}),
    ("POST", "/v1/fine_tuning/alpha/graders/run", {"json": {}}),
    ("GET", "/v1/models", {}),
    ("GET", "/v1/models/m", {}),
    ("DELETE", "/v1/models/m", {}),
]
GARBAGE = [
    b"null",
    b"7",
    b'"text"',
    b"[1]",
    b'[{"id": []}]',
    b"{}",
    b'{"data": 1}',
    b'{"data": {"a": 1}}',
    b'{"data": [1, null]}',
    b'{"data": [{}], "has_more": "x"}',
    b'{"id": {"a": "\\ud83d"}, "created_at": 1e999, "status": NaN, "metrics": [1], "level": [], "error": "oh"}',
    b'{"data": [{"created_at": 1e300, "metrics": [1], "level": [], "error": "oh", "hyperparameters": [1]}]}',
    b'{"id": "a\\r\\nx: y", "status": ["a"], "method": "dpo", "error": [1], "result_files": 7}',
    b'{"hyperparameters": "x", "method": {"type": ["x"]}, "status": {"a": 1}, "created_at": "yesterday"}',
    b'{"method": {"type": "dpo", "dpo": "x"}, "created_at": [1], "error": {"message": 1}, "result_files": {"a": 1}}',
]


@pytest.mark.parametrize(("method", "path", "more"), EVERY, ids=[f"{row[0]} {row[1]}" for row in EVERY])
def test_garbage_of_a_provider_is_its_fault(
    gateway: Gateway, raw: RawProvider, method: str, path: str, more: dict[str, Any]
) -> None:
    for garbage in GARBAGE:
        for prefix, dialect in (("/v1", "gateway"), ("/openai/v1", "azure")):
            raw.answers = [response(garbage)]
            shown = {"x-tuneway-dialect": dialect}
            answer = ask(gateway, raw.base_url, method, path.replace("/v1", prefix, 1), shown, **more)
            if answer.status_code >= 300:
                assert answer.status_code == 502, (garbage, answer.text)
                assert answer.json()["error"]["type"] == "upstream_error"
                assert answer.json()["error"].keys() == ENVELOPE
            else:
                answer.json()


# -------------------------------------------------------------------------------------------------------------- files

BOUNDARY = "odd--boundary' 1"


def form(*parts: str, content: bytes = ROWS) -> bytes:
    """A form as no client of ours writes it."""
    shown = {
        "purpose": b"Content-Disposition:   form-data; name=purpose\r\nX-Odd: 1\r\n\r\nfine-tune",
        "file": b'content-type: application/jsonl\r\nContent-Disposition: form-data; name="file"; '
        + 'filename="你好.jsonl"'.encode()
        + b"\r\n\r\n"
        + content,
    }
    edge = b"--" + BOUNDARY.encode()
    return b"".join(edge + b"\r\n" + shown[part] + b"\r\n" for part in parts) + edge + b"--\r\nepilogue"


@pytest.mark.parametrize("order", [("purpose", "file"), ("file", "purpose")], ids=["purpose first", "file first"])
@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "chunked"])
def test_a_form_is_sent_as_it_is(
    gateway: Gateway, raw: RawProvider, sim: OpenAISimulator, order: tuple[str, ...], chunked: bool
) -> None:
    body, kind = form(*order), f'multipart/form-data; boundary="{BOUNDARY}"; odd=1'

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(body), 333):
            yield body[at : at + 333]

    content: Any = pieces() if chunked else body
    raw.answers = [response(b'{"id": "file-1", "object": "file"}')]
    assert ask(gateway, raw.base_url, "POST", FILES, {"content-type": kind}, content=content).status_code == 200
    received = raw.received[0]
    assert received.body == body
    assert received.header("content-type") == kind
    assert received.header("content-length") == (None if chunked else str(len(body)))
    assert received.header("transfer-encoding") == ("chunked" if chunked else None)
    content = pieces() if chunked else body
    made = gateway.http.post(FILES, headers=to(sim) | {"content-type": kind}, content=content)
    assert made.status_code == 200, made.text
    assert made.json()["filename"] == "你好.jsonl"
    assert sim.files[made.json()["id"]].content == ROWS
    assert sim.requests[0].body == body


@pytest.mark.parametrize(
    ("kind", "status"), [(None, 415), ("application/json", 415), ("multipart/form-data", 400), ("text/plain", 415)]
)
def test_what_is_no_form_goes_nowhere(gateway: Gateway, raw: RawProvider, kind: str | None, status: int) -> None:
    headers = {} if kind is None else {"content-type": kind}
    for path in (FILES, "/v1/uploads/upload_1/parts"):
        assert ask(gateway, raw.base_url, "POST", path, headers, content=b"x").status_code == status
    assert raw.received == []


def test_a_form_is_judged_by_its_provider(gateway: Gateway, sim: OpenAISimulator) -> None:
    for part in ({"purpose": "evals"}, {"purpose": "new"}, {}, {"purpose": "fine-tune", "odd": "1"}):
        answer = gateway.http.post(FILES, headers=to(sim), data=part, files={"file": ("a.txt", b"x")})
        assert answer.status_code == (200 if part == {"purpose": "evals"} else 400)
        assert part == {"purpose": "evals"} or answer.json()["error"]["type"] == "upstream_error"
    assert len(sim.asked("create_file")) == 4


def test_a_slow_client_is_no_slow_provider(gateway: Gateway, sim: OpenAISimulator) -> None:
    """The time-out begins when the provider has everything."""
    body = form("purpose", "file")

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(body), len(body) // 4):
            threading.Event().wait(0.1)
            yield body[at : at + len(body) // 4]

    headers = to(sim) | {"content-type": f'multipart/form-data; boundary="{BOUNDARY}"'}
    headers |= {"x-portkey-request-timeout": "300"}
    assert gateway.http.post(FILES, headers=headers, content=pieces()).status_code == 200


def test_a_large_file_is_not_held(gateway: Gateway, sim: OpenAISimulator) -> None:
    size, piece = 300 * MEBIBYTE, bytes(range(256)) * 1024
    start = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nassistants\r\n--b\r\n'
    start += b'content-disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
    end = b"\r\n--b--\r\n"
    process = psutil.Process(gateway.process.pid)
    before = process.memory_info().rss
    peaks: list[int] = []

    def pieces() -> Iterator[bytes]:
        yield start
        for number in range(size // len(piece)):
            if number % 64 == 0:
                peaks.append(process.memory_info().rss - before)
            yield piece
        yield end

    headers = to(sim) | {"content-type": "multipart/form-data; boundary=b"}
    headers |= {"content-length": str(len(start) + size + len(end))}
    made = gateway.http.post(FILES, headers=headers, content=pieces())
    assert made.status_code == 200, made.text
    digest = hashlib.sha256()
    for _ in range(size // len(piece)):
        digest.update(piece)
    assert sim.files[made.json()["id"]].sha256 == digest.hexdigest()
    assert max(peaks) < 60 * MEBIBYTE


def test_a_large_download_is_not_held(gateway: Gateway, raw: RawProvider) -> None:
    size, piece = 300 * MEBIBYTE, bytes(range(256)) * 1024

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(response(b"", b"x: y", kind=b"application/octet-stream").replace(b": 0", b": %d" % size))
        for _ in range(size // len(piece)):
            writer.write(piece)
            await writer.drain()

    raw.behave = behave
    process = psutil.Process(gateway.process.pid)
    before = process.memory_info().rss
    received, peak, same = 0, 0, True
    headers = heads(raw.base_url) | {"authorization": "Bearer sk-raw"}
    with gateway.http.stream("GET", f"{FILES}/file-1/content", headers=headers) as answer:
        assert answer.headers["content-length"] == str(size)
        for number, chunk in enumerate(answer.iter_raw()):
            at = received % len(piece)
            same = same and chunk == (piece * 3)[at : at + len(chunk)]
            received += len(chunk)
            if number % 256 == 0:
                peak = max(peak, process.memory_info().rss - before)
    assert (received, same) == (size, True)
    assert peak < 60 * MEBIBYTE


def test_a_download_says_what_it_is(gateway: Gateway, raw: RawProvider) -> None:
    odd = 'content-disposition: attachment; filename="你好.txt"'.encode()
    raw.answers = [response(b"abc", odd, b"set-cookie: a=b", kind=b"text/plain")]
    answer = ask(gateway, raw.base_url, "GET", f"{FILES}/file-1/content")
    assert answer.content == b"abc"
    assert (b"content-disposition", odd.partition(b": ")[2]) in answer.headers.raw
    assert (answer.headers["content-type"], answer.headers["x-content-type-options"]) == ("text/plain", "nosniff")
    assert "set-cookie" not in answer.headers
    raw.answers = [response(b"b", b"content-range: bytes 1-1/3", status=b"206 Partial Content")]
    part = {"range": "bytes=1-1", "x-portkey-forward-headers": "range"}
    answer = ask(gateway, raw.base_url, "GET", f"{FILES}/file-1/content", part)
    assert (answer.status_code, answer.content, answer.headers["content-range"]) == (206, b"b", "bytes 1-1/3")


def test_a_download_that_breaks_off_is_not_whole(gateway: Gateway, raw: RawProvider) -> None:
    for framing in (b"content-length: 100\r\n\r\nabc", b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"):
        raw.answers = [b"HTTP/1.1 200 OK\r\n" + framing]
        with pytest.raises(httpx2.RemoteProtocolError):
            ask(gateway, raw.base_url, "GET", f"{FILES}/file-1/content")


# --------------------------------------------------------------------------------------------------- clients that leave


def test_a_client_that_leaves_ends_what_it_asked_for(gateway: Gateway, raw: RawProvider) -> None:
    stream = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n"
    )
    download = response(b"x" * MEBIBYTE).replace(b"%d" % MEBIBYTE, b"%d" % (64 * MEBIBYTE))
    headers = heads(raw.base_url) | {"authorization": "Bearer sk-raw"}
    for first, method, path, body in (
        (stream, "POST", CHAT, {"model": "m", "stream": True}),
        (download, "GET", f"{FILES}/file-1/content", None),
    ):
        raw.behave = raw.waits_for_the_end(first)
        with gateway.http.stream(method, path, headers=headers, json=body) as answer:
            pieces = answer.iter_raw()
            assert next(pieces)
            assert not raw.gone.is_set()
        assert raw.gone.wait(10)
        raw.gone.clear()


@pytest.mark.parametrize("path", [CHAT, f"{FILES}/file-1/content"])
def test_one_that_leaves_before_the_answer_too(gateway: Gateway, raw: RawProvider, path: str) -> None:
    raw.behave = raw.waits_for_the_end()
    body = b'{"model": "m"}' if path == CHAT else b""
    with _connected(gateway) as client:
        client.sendall(_head("POST" if path == CHAT else "GET", path, raw.base_url, len(body)) + body)
        eventually(lambda: raw.received, 10)
    assert raw.gone.wait(10)


def test_one_that_leaves_in_the_middle_of_an_upload(gateway: Gateway, raw: RawProvider) -> None:
    body, kind = form("purpose", "file"), f'multipart/form-data; boundary="{BOUNDARY}"'
    with _connected(gateway) as client:
        client.sendall(_head("POST", FILES, raw.base_url, 10 * len(body), kind) + body)
        assert raw.begun.wait(10)
        assert not raw.gone.is_set()
    assert raw.gone.wait(10)
    assert raw.received == []
    assert gateway.http.get("/healthz").status_code == 200


def test_a_provider_that_refuses_in_the_middle_of_an_upload(gateway: Gateway, raw: RawProvider) -> None:
    """Its words reach the client, which need not send the rest."""
    raw.refuses = response(OPENAIS, b"connection: close", status=b"401 No")
    body = form("purpose", "file", content=b"x" * 8 * MEBIBYTE)
    answer = ask(
        gateway,
        raw.base_url,
        "POST",
        FILES,
        {"content-type": f'multipart/form-data; boundary="{BOUNDARY}"'},
        content=body,
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "q")


def _connected(gateway: Gateway) -> socket.socket:
    address = urlsplit(gateway.url)
    assert address.hostname is not None
    assert address.port is not None
    return socket.create_connection((address.hostname, address.port), 10)


def _head(method: str, path: str, base_url: str, length: int, kind: str = "application/json") -> bytes:
    headers = heads(base_url) | {"authorization": "Bearer sk-raw", "host": "localhost", "content-type": kind}
    lines = [f"{method} {path} HTTP/1.1", f"content-length: {length}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()
