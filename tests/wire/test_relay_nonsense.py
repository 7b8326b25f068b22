"""Ids, paths and what is no request, of relays: an id is one segment, and no nonsense is a mistake of the gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.simulators.openai import OpenAISimulator
from tests.simulators.sdk import HI
from tests.wire.conftest import Gateway
from tests.wire.relays import OPERATIONS, RawProvider, ask, heads, relayed, response, sent

ENVELOPE = {"message", "type", "param", "code"}
KEY = "sk-relayed"


@pytest.fixture
def sim() -> Iterator[OpenAISimulator]:
    with OpenAISimulator(KEY) as sim:
        yield sim
    assert sim.leaks == []


@pytest.fixture
def raw() -> Iterator[RawProvider]:
    with RawProvider().running() as raw:
        yield raw


@pytest.mark.parametrize(
    ("id", "segment"),
    [
        ("file-1", "file-1"),
        ("a%2Fb", "a%2Fb"),
        ("a%2fb", "a%2Fb"),
        ("..%2f..%2fmodels", "..%2F..%2Fmodels"),
        ("%2e%2e%2fx", "..%2Fx"),
        ("a%3Fb%23c", "a%3Fb%23c"),
        ("a%25b", "a%25b"),
        ("ft:gpt:acme::1", "ft:gpt:acme::1"),
        ("ft%3Agpt%3Aacme%3A%3A1", "ft:gpt:acme::1"),
        ("%C3%BC%E2%98%82", "%C3%BC%E2%98%82"),
        ("%ff", "%EF%BF%BD"),
        ("a+b&c=d;e", "a%2Bb%26c%3Dd%3Be"),
        ("a%20b", "a%20b"),
    ],
)
def test_an_id_is_one_segment(gateway: Gateway, raw: RawProvider, id: str, segment: str) -> None:
    raw.answers = [response(b'{"object": "list", "data": []}')]
    asked: list[tuple[str, str, Any]] = [
        ("GET", "/v1/files/{}", None),
        ("DELETE", "/v1/files/{}", None),
        ("GET", "/v1/files/{}/content", None),
        ("GET", "/v1/models/{}", None),
        ("DELETE", "/v1/models/{}", None),
        ("GET", "/v1/fine_tuning/jobs/{}/events", None),
        ("POST", "/v1/fine_tuning/jobs/{}/cancel", None),
        ("GET", "/v1/fine_tuning/checkpoints/{}/permissions", None),
        ("DELETE", "/v1/fine_tuning/checkpoints/{}/permissions/cp_1", None),
        ("POST", "/v1/uploads/{}/complete", {}),
        ("GET", "/v1/chat/completions/{}/messages", None),
    ]
    for method, path, body in asked:
        plain = f"{method} {path.format(id)} HTTP/1.1".encode()
        headers = heads(raw.base_url) | {"authorization": f"Bearer {KEY}", "host": "localhost", "connection": "close"}
        headers |= {} if body is None else {"content-type": "application/json", "content-length": "2"}
        lines = [plain, *(f"{name}: {text}".encode() for name, text in headers.items())]
        answered = sent(gateway, b"\r\n".join([*lines, b"", b"" if body is None else b"{}"]))
        assert answered.startswith(b"HTTP/1.1 200"), answered
        assert raw.received[-1].line == f"{method} {path.format(segment)} HTTP/1.1"


def test_a_models_name_may_have_slashes(gateway: Gateway, raw: RawProvider) -> None:
    """As SDKs write them, which encode some and some not."""
    names = ("meta-llama/Llama-3:8b", "accounts/a/models/b", "ft:a/b:c::d:ckpt-step-3")
    with relayed(gateway, raw.base_url, KEY, _strict_response_validation=False) as client:
        for name in names:
            client.models.retrieve(name)
            client.fine_tuning.checkpoints.permissions.list(name)
            client.chat.completions.create(model=name, messages=HI)
            assert raw.received[-3].line == f"GET /v1/models/{name.replace('/', '%2F')} HTTP/1.1"
            encoded = name.replace("/", "%2F")
            assert raw.received[-2].line == f"GET /v1/fine_tuning/checkpoints/{encoded}/permissions HTTP/1.1"
            assert json.loads(raw.received[-1].body)["model"] == name


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/files/..", 400),
        ("GET", "/v1/files/%2e%2e", 400),
        ("GET", "/v1/files/.", 400),
        ("GET", "/v1/models/..", 400),
        ("GET", "/v1/fine_tuning/jobs/%2E%2e/events", 400),
        ("GET", "/v1/fine_tuning/checkpoints/../permissions", 400),
        ("GET", "/v1/chat/completions/..", 400),
        ("GET", "/v1/chat/completions/x/../y", 404),
        ("GET", "/v1/../v1/files", 404),
        ("GET", "/v1//files", 404),
        ("GET", "/v1/files/", 404),
        ("GET", "/v1/files//content", 404),
        ("GET", "/v1/files/a%00b", 404),
        ("GET", "/v1/files/a%0d%0ab", 404),
        ("GET", "/v1/v1/files", 404),
        ("GET", "/v1/", 404),
        ("GET", "/v1/embeddings", 404),
        ("POST", "/v1/responses", 404),
        ("GET", "/v1/tuneway/keys", 404),
        ("GET", "/v1/tuneway/providers", 404),
        ("PUT", "/v1/files", 405),
        ("PATCH", "/v1/fine_tuning/jobs/x", 405),
        ("DELETE", "/v1/fine_tuning/jobs/x", 405),
        ("TRACE", "/v1/models", 405),
        ("HEAD", "/v1/models", 405),
        ("OPTIONS", "/v1/chat/completions", 405),
        ("GET", "/openai/files/import", 404),
    ],
)
def test_a_path_that_is_none_goes_nowhere(
    gateway: Gateway, raw: RawProvider, method: str, path: str, status: int
) -> None:
    headers = heads(raw.base_url) | {"authorization": f"Bearer {KEY}", "host": "localhost", "connection": "close"}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items())]
    head, _, body = sent(gateway, "\r\n".join([*lines, "", ""]).encode()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d" % status), (head, body)
    assert (b"\r\nallow: " in head.lower()) is (status == 405)
    assert method == "HEAD" or json.loads(body)["error"].keys() == ENVELOPE
    assert raw.received == []


GARBAGE = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"a":1,"a":2}',
    b'{"model": NaN}',
    b"[" * 5000,
    b'"\\ud800"',
    b"{}" * 9,
]
KINDS = [
    "application/json",
    "application/json; charset=utf-16",
    "text/plain",
    "multipart/form-data; boundary=x",
    "",
    "é;=",
]


@pytest.mark.parametrize(("method", "path", "more"), OPERATIONS, ids=[f"{row[0]} {row[1]}" for row in OPERATIONS])
def test_no_garbage_is_a_mistake_of_the_gateway(
    gateway: Gateway, sim: OpenAISimulator, method: str, path: str, more: dict[str, Any]
) -> None:
    for kind in KINDS:
        for garbage in GARBAGE:
            sim.requests.clear()
            headers: Any = {"authorization": f"Bearer {KEY}", "content-type": kind.encode("latin-1")}
            answer = ask(gateway, sim.base_url, method, path, headers, content=garbage)
            assert answer.status_code < 500, (kind, garbage, answer.text)
            assert answer.status_code < 400 or answer.json()["error"].keys() == ENVELOPE


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer " + "k" * 5000},
        {"authorization": b"Bearer k\xe9y"},
        {"authorization": "Bearer a b"},
        {"x-portkey-openai-organization": b"\xff\xfe"},
        {"x-portkey-openai-organization": "o" * 600},
        {"x-portkey-custom-host": b"http://\xe9/v1"},
        {"x-portkey-config": b'{"\xff": 1}'},
        {"x-portkey-config": "{" * 30_000},
        {"x-portkey-forward-headers": ",".join(f"x-{number}" for number in range(5000))},
        {"x-portkey-trace-id": "t" * 5000},
        {"x-stainless-retry-count": "9" * 5000},
        {"openai-beta": b"\x80"},
        {f"x-portkey-{number}": "x" * 100 for number in range(200)},
    ],
    ids=range(13),
)
def test_nor_are_odd_headers(gateway: Gateway, sim: OpenAISimulator, headers: Any) -> None:
    for method, path, more in OPERATIONS:
        answer = ask(gateway, sim.base_url, method, path, {"authorization": f"Bearer {KEY}"} | headers, **more)
        assert answer.status_code < 500, answer.text
        assert answer.status_code < 400 or answer.json()["error"].keys() == ENVELOPE
