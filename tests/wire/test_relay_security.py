"""Whom a relay serves, where it goes, and that no key of anybody is seen where it does not belong.

Every secret of these tests begins so that it can be searched for; at the end the gateways' logs are.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.simulators.openai import OpenAISimulator
from tests.wire.conftest import SETTINGS, Gateway, running
from tests.wire.relays import OPERATIONS, RawProvider, ask, heads, response, sent
from tests.wire.test_keys import make_key
from tests.wire.vendors import account, settings

ENVELOPE = {"message", "type", "param", "code"}
KEY = "sk-Secret-of-the-caller"
ACCOUNTS = "sk-Secret-of-the-account"
MARKS = (KEY, ACCOUNTS, "tnw_", "Secret")


@contextmanager
def silent(folder: Path, text: str, secrets: Mapping[str, str] = {}) -> Iterator[Gateway]:
    """A gateway whose log has none of the secrets in the end, and no mistake of its own."""
    with running(folder, text, secrets=secrets) as gateway:
        yield gateway
        log = gateway.log()
    assert [mark for mark in MARKS if mark in log] == []
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Without auth, with an account that is called as its kind is."""
    more = account("openai", base_url="http://127.0.0.1:9/v1")
    with silent(tmp_path_factory.mktemp("open"), settings(more), {"VENDOR_KEY": ACCOUNTS}) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, dict[str, str]]]:
    """With auth on, and keys by their scopes; `all` may everything."""
    folder = tmp_path_factory.mktemp("guarded")
    every = ("read", "tune", "chat", "admin", "relay")
    keys = {"all": make_key(folder / "data", *(part for scope in every for part in ("--scope", scope)))}
    with silent(folder, SETTINGS + 'auth = "on"\n') as gateway:
        admin = {"authorization": f"Bearer {keys['all']}"}
        for name, scopes in (("relay", ["relay"]), ("no relay", ["read", "tune", "chat", "admin"])):
            made = gateway.http.post("/v1/tuneway/keys", headers=admin, json={"scopes": scopes})
            keys[name] = made.json()["key"]
        yield gateway, keys


@pytest.fixture
def sim() -> Iterator[OpenAISimulator]:
    with OpenAISimulator(KEY) as sim:
        yield sim
    assert sim.leaks == []


@pytest.fixture
def raw() -> Iterator[RawProvider]:
    with RawProvider().running() as raw:
        yield raw


def everything(raw: RawProvider) -> str:
    """All that the provider got."""
    return "".join(f"{each.line} {each.headers} {each.body!r}" for each in raw.received)


# ------------------------------------------------------------------------------------------------- keys of the gateway


def positions(key: str) -> list[dict[str, str]]:
    """Headers that hold a key of the gateway, in every place where one might be passed on."""
    along = {"x-portkey-forward-headers": "x-a", "authorization": f"Bearer {KEY}"}
    return [
        {"authorization": f"Bearer {key}"},
        {"authorization": f"bearer  {key}"},
        {"authorization": f"Bearer {KEY}", "api-key": key},
        {"authorization": f"Bearer {key}", "api-key": KEY},
        {"authorization": f"Bearer {KEY}", "x-portkey-api-key": key},
        {"authorization": f"Bearer {KEY}", "x-tuneway-api-key": key},
        {"authorization": f"Bearer {KEY}", "x-tuneway-api_key": key},
        {"authorization": f"Bearer {KEY}", "x-portkey-openai-organization": key},
        {"authorization": f"Bearer {KEY}", "openai-project": key},
        {"authorization": f"Bearer {KEY}", "cookie": key, "x-anything": key, "proxy-authorization": f"Bearer {key}"},
        {"authorization": f"Bearer {KEY}", "x-portkey-metadata": key, "x-portkey-trace-id": key},
        {"authorization": f"Bearer {KEY}", "x-portkey-config": json.dumps({"api_key": key})},
        along | {"x-a": key},
        along | {"x-a": f"Bearer {key}"},
        *(along | {"x-portkey-forward-headers": name, "x-tuneway-api-key": key} for name in ("x-tuneway-api-key",)),
        *({"authorization": f"Bearer {key}", "x-portkey-forward-headers": name} for name in ("authorization", "host")),
        *(
            along | {"x-portkey-forward-headers": name, name: key}
            for name in ("api-key", "cookie", "x-portkey-api-key")
        ),
    ]


def test_no_key_of_the_gateway_leaves_it(
    guarded: tuple[Gateway, dict[str, str]], gateway: Gateway, raw: RawProvider
) -> None:
    raw.answers = [response(b'{"object": "list", "data": []}')]
    made = gateway.http.post("/v1/tuneway/keys", json={"scopes": ["relay", "read", "chat", "tune"]}).json()["key"]
    for where, key in ((guarded[0], guarded[1]["all"]), (gateway, made)):
        for headers in positions(key):
            for method, path, more in OPERATIONS:
                sent = heads(raw.base_url) | headers
                answer = where.http.request(method, path, headers=sent, **more)
                assert answer.status_code < 500 or answer.json()["error"]["type"] == "upstream_error", answer.text
                assert key not in answer.text
    assert raw.received
    assert "tnw_" not in everything(raw)


def test_nothing_of_the_gateways_headers_leaves_it(gateway: Gateway, raw: RawProvider) -> None:
    """Of a client's headers only those that are needed do."""
    more = {"x-portkey-trace-id": "t", "x-portkey-metadata": "{}", "cookie": "a=b", "x-stainless-os": "Linux"}
    more |= {"x-forwarded-for": "10.0.0.1", "origin": "http://127.0.0.1", "referer": "http://x/", "te": "trailers"}
    more |= {"user-agent": "mine", "authorization": f"Bearer {KEY}"}
    for method, path, body in OPERATIONS:
        ask(gateway, raw.base_url, method, path, {k: v for k, v in more.items() if k != "origin"}, **body)
    assert len(raw.received) == len(OPERATIONS)
    allowed = {"accept", "accept-encoding", "authorization", "connection", "content-length", "content-type", "host"}
    for received in raw.received:
        names = [name.lower() for name, _ in received.headers]
        assert set(names) <= allowed | {"x-request-id", "user-agent"}, names
        assert len(set(names)) == len(names)
        assert received.header("authorization") == f"Bearer {KEY}"
        assert "mine" not in dict(received.headers).values()


def test_the_placeholder_of_portkeys_clients_never_leaves(
    guarded: tuple[Gateway, dict[str, str]], gateway: Gateway, raw: RawProvider
) -> None:
    where, keys = guarded
    for there, key in ((where, keys["all"]), (gateway, "any")):
        for mode in ({}, {"x-tuneway-mode": "relay"}):
            headers = heads(raw.base_url) | {"authorization": "Bearer OPENAI_API_KEY", "x-portkey-api-key": key}
            assert there.http.get("/v1/models", headers=headers | mode).status_code == 400
    assert raw.received == []


# ---------------------------------------------------------------------------------------------------------- who may


@pytest.mark.parametrize("header", ["x-tuneway-api-key", "x-portkey-api-key"])
def test_a_relay_needs_a_key_with_its_scope(
    guarded: tuple[Gateway, dict[str, str]], sim: OpenAISimulator, header: str
) -> None:
    gateway, keys = guarded
    for method, path, more in OPERATIONS:
        for key, status in (
            (None, 401),
            ("", 401),
            ("sk-other", 401),
            (f"tnw_{'k' * 43}", 401),
            (keys["no relay"], 403),
            (keys["relay"], None),
            (keys["all"], None),
        ):
            before = len(sim.requests)
            headers = {"authorization": f"Bearer {KEY}"} | ({} if key is None else {header: key})
            answer = ask(gateway, sim.base_url, method, path, headers, **more)
            if status is None:
                assert len(sim.requests) == before + 1, answer.text
                continue
            assert (answer.status_code, len(sim.requests)) == (status, before)
            assert answer.json()["error"].keys() == ENVELOPE
            assert key is None or key == "" or key not in answer.text
    said = ask(gateway, sim.base_url, "GET", "/v1/models", {"authorization": f"Bearer {KEY}"}).json()
    assert "x-tuneway-api-key" in said["error"]["message"]


def test_a_key_that_only_relays_does_nothing_else(
    guarded: tuple[Gateway, dict[str, str]], sim: OpenAISimulator
) -> None:
    gateway, keys = guarded
    own = {"authorization": f"Bearer {keys['relay']}"}
    for method, path, more in OPERATIONS:
        assert gateway.http.request(method, path, headers=own, **more).status_code == 403
    # A key in `Authorization` alone makes no relay, whatever provider is named.
    named = own | {"x-portkey-provider": "openai"}
    assert gateway.http.get("/v1/files", headers=named).status_code in (400, 403)
    assert sim.requests == []


def test_a_key_without_auth_is_looked_at_too(gateway: Gateway, sim: OpenAISimulator) -> None:
    """Who sends one means it."""
    key = gateway.http.post("/v1/tuneway/keys", json={"scopes": ["chat"]}).json()
    headers = {"authorization": f"Bearer {KEY}", "x-tuneway-api-key": key["key"]}
    assert ask(gateway, sim.base_url, "GET", "/v1/models", headers).status_code == 403
    gateway.http.delete(f"/v1/tuneway/keys/{key['id']}")
    assert ask(gateway, sim.base_url, "GET", "/v1/models", headers).status_code == 401
    assert sim.requests == []


def test_relays_may_be_off(tmp_path: Path, sim: OpenAISimulator) -> None:
    with silent(tmp_path, SETTINGS + 'relay = "off"\n') as gateway:
        for method, path, more in OPERATIONS:
            answer = ask(gateway, sim.base_url, method, path, {"authorization": f"Bearer {KEY}"}, **more)
            assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")
        assert gateway.http.get("/v1/models").status_code == 200
    assert sim.requests == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"host": "evil.example"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_pages_of_others_are_kept_out(
    gateway: Gateway, sim: OpenAISimulator, headers: dict[str, str], status: int
) -> None:
    answer = ask(gateway, sim.base_url, "GET", "/v1/models", {"authorization": f"Bearer {KEY}"} | headers)
    assert (answer.status_code, len(sim.requests)) == (status, int(status == 200))
    assert not [name for name in answer.headers if name.startswith("access-control-")]


# ------------------------------------------------------------------------------------------ the gateway's own accounts

USELESS = {
    "x-tuneway-custom-host": "{}",
    "x-portkey-custom-host": "{}",
    "x-tuneway-base-url": "{}",
    "x-portkey-base_url": "{}",
    "x-portkey-azure-foundry-url": "{}",
    "x-portkey-azure-resource-name": "evil",
    "x-portkey-openai-organization": "org",
    "x-portkey-config": '{{"provider": "openai", "custom_host": "{}"}}',
    "x-portkey-virtual-key": "v",
    "x-portkey-aws-region": "us-east-1",
}


@pytest.mark.parametrize("header", USELESS)
@pytest.mark.parametrize(
    "more",
    [
        {"x-tuneway-provider": "openai"},
        {"x-portkey-provider": "@openai", "authorization": "Bearer OPENAI_API_KEY"},
        {"x-portkey-provider": "openai", "authorization": f"Bearer {KEY}", "x-tuneway-mode": "managed"},
        {},
    ],
    ids=["named", "placeholder", "managed", "unnamed"],
)
def test_an_accounts_key_goes_nowhere_else(
    gateway: Gateway, raw: RawProvider, header: str, more: dict[str, str]
) -> None:
    """Not to a host that a caller named; the header that named it is refused, before anything is done."""
    for method, path, body in OPERATIONS:
        headers = {header: USELESS[header].format(raw.base_url)} | more
        answer = gateway.http.request(method, path, headers=headers, **body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, header), answer.text
    assert raw.received == []
    assert gateway.client.files.list().data == []


def test_a_credential_makes_it_the_callers_request(gateway: Gateway, raw: RawProvider) -> None:
    """Although there is an account of that name; its key stays."""
    for method, path, more in OPERATIONS:
        ask(gateway, raw.base_url, method, path, {"authorization": f"Bearer {KEY}"}, **more)
    assert len(raw.received) == len(OPERATIONS)
    assert ACCOUNTS not in everything(raw)


@pytest.mark.parametrize("name", ["mistral-ai", "nobody", "@nobody"])
def test_a_provider_that_there_is_not_is_refused_everywhere(gateway: Gateway, name: str) -> None:
    """A file must not stay here because its provider's name was misspelled."""
    for method, path, more in OPERATIONS:
        headers = {"x-portkey-provider": name, "authorization": f"Bearer {KEY}"}
        answer = gateway.http.request(method, path, headers=headers, **more)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-portkey-provider")
    assert gateway.http.get("/v1/models", headers={"x-portkey-provider": "fake"}).status_code == 200


def test_the_mode_decides(gateway: Gateway, sim: OpenAISimulator) -> None:
    known = {model["id"] for model in gateway.http.get("/v1/models").json()["data"]}
    credential = {"authorization": f"Bearer {KEY}"}
    named = {"x-portkey-provider": "openai", "x-tuneway-mode": "managed"}
    found = gateway.http.get("/v1/models", headers=credential | named)
    assert {model["id"] for model in found.json()["data"]} == known
    assert sim.requests == []
    relay = {"x-tuneway-mode": "relay"}
    assert ask(gateway, sim.base_url, "GET", "/v1/models", credential | relay).status_code == 200
    assert len(sim.requests) == 1
    for headers in (relay, relay | {"x-portkey-provider": "openai"}, relay | credential, {"x-tuneway-mode": "x"}):
        answer = gateway.http.get("/v1/models", headers=headers)
        assert (answer.status_code, answer.json()["error"].keys()) == (400, ENVELOPE)


# -------------------------------------------------------------------------------------------------------- where it goes

ELSEWHERE = [
    "http://127.0.0.2:{}/v1",
    "https://127.0.0.2:{}/v1",
    "http://localhost:{}/v1",
    "https://localhost:{}/v1",
    "http://2130706434:{}/v1",
    "http://0x7f000002:{}/v1",
    "http://0x7f.2:{}/v1",
    "http://017700000002:{}/v1",
    "http://127.2:{}/v1",
    "http://127.0.0.02:{}/v1",
    "http://[::1]:{}/v1",
    "http://[::ffff:127.0.0.2]:{}/v1",
    "http://[::ffff:7f00:2]:{}/v1",
    "http://[64:ff9b::7f00:2]:{}/v1",
    "http://0.0.0.0:{}/v1",
    "http://169.254.169.254/latest/meta-data",
    "https://169.254.169.254/v1",
    "https://10.0.0.1/v1",
    "https://192.168.0.1/v1",
    "https://[fd00::1]/v1",
    "https://example.com/v1",
    "https://api.openai.com.evil.example/v1",
    "http://user:password@127.0.0.1:{}/v1",
    "http://127.0.0.1:{}@127.0.0.2/v1",
    "http://127.0.0.1:{}/v1?x=",
    "http://127.0.0.1:{}/v1#",
    "http://127.0.0.1:{}/v1\\x",
    "http://127.0.0.1:{}/%2e%2e",
    "http://127.0.0.1:{}/v1 x",
    "http://127.0.0.1:0/v1",
    "http://127.0.0.1:99999/v1",
    "ftp://127.0.0.1:{}/v1",
    "file:///etc/passwd",
    "//127.0.0.1:{}/v1",
    "127.0.0.1:{}/v1",
    "https://",
]


@pytest.mark.parametrize("url", ELSEWHERE)
def test_a_host_that_is_not_allowed_is_not_called(gateway: Gateway, url: str) -> None:
    """By its address where it has one that is listed: 127.0.0.1 alone. Chat goes by another way than the rest."""
    with RawProvider(host="0.0.0.0").running() as raw:
        for method, path, more in OPERATIONS:
            named = {"x-portkey-custom-host": url.format(raw.port), "authorization": f"Bearer {KEY}"}
            answer = gateway.http.request(method, path, headers={"x-portkey-provider": "openai"} | named, **more)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-portkey-custom-host"), answer.text
            assert KEY not in answer.text
            assert "password" not in answer.text
        assert not raw.begun.is_set()


def test_a_name_is_allowed_only_with_an_address_that_is(tmp_path: Path) -> None:
    """`localhost` stands for every name whose DNS says something private."""
    text = SETTINGS.replace('["127.0.0.1"]', '["localhost", "127.0.0.5"]')
    with silent(tmp_path, text) as gateway, RawProvider(host="0.0.0.0").running() as raw:
        for scheme in ("http", "https"):
            for method, path, more in OPERATIONS:
                answer = ask(
                    gateway,
                    f"{scheme}://localhost:{raw.port}/v1",
                    method,
                    path,
                    {"authorization": f"Bearer {KEY}"},
                    **more,
                )
                assert (answer.status_code, answer.json()["error"]["code"]) == (400, "outbound_refused"), answer.text
        assert not raw.begun.is_set()
        assert ask(gateway, f"http://127.0.0.5:{raw.port}/v1", "GET", "/v1/files").status_code == 200


@pytest.mark.parametrize("status", [b"301 Moved", b"302 Found", b"307 Temporary", b"308 Permanent"])
def test_a_redirect_is_not_followed(gateway: Gateway, raw: RawProvider, status: bytes) -> None:
    with RawProvider().running() as other:
        location = f"location: {other.base_url}/models".encode()
        raw.answers = [response(b"{}", location, status=status)]
        for number, (method, path, more) in enumerate(OPERATIONS, 1):
            answer = ask(gateway, raw.base_url, method, path, {"authorization": f"Bearer {KEY}"}, **more)
            error = answer.json()["error"]
            assert (answer.status_code, error["type"], error["code"]) == (502, "upstream_error", "redirected")
            assert "location" not in answer.headers
            assert len(raw.received) == number
        assert not other.begun.is_set()


@pytest.mark.parametrize(
    "region", ["evil.com", "us-east-1.evil", "us-east-1/", "us-east-1#", "%2e", "a", "..", "us-east-1 x"]
)
def test_a_region_is_one(gateway: Gateway, region: str) -> None:
    headers = {"x-portkey-provider": "bedrock-mantle", "x-portkey-aws-region": region, "authorization": f"Bearer {KEY}"}
    answer = gateway.http.get("/v1/models", headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-portkey-aws-region")


@pytest.mark.parametrize("value", ["a\r\nx-a: b", "a\r\n\r\nGET / HTTP/1.1", "a\n b", "a\r\n b", "a\tb", "a\x00b"])
@pytest.mark.parametrize("header", ["x-portkey-custom-host", "authorization", "x-portkey-forward-headers", "x-a"])
def test_line_breaks_go_nowhere(gateway: Gateway, raw: RawProvider, header: str, value: str) -> None:
    """What a raw client sends as a header's value, with a line break in it, is another header or no HTTP."""
    headers = heads(raw.base_url) | {"authorization": f"Bearer {KEY}", "x-portkey-forward-headers": "x-a"}
    headers |= {header: (headers.get(header) or "") + value, "host": "localhost", "connection": "close"}
    lines = ["GET /v1/models HTTP/1.1", *(f"{name}: {text}" for name, text in headers.items())]
    answered = sent(gateway, "\r\n".join([*lines, "", ""]).encode("latin-1"))
    assert answered.startswith((b"HTTP/1.1 4", b"HTTP/1.1 2")), answered
    for received in raw.received:
        assert all(value.replace("\t", "").isprintable() for _, value in received.headers)
        assert received.header("host") == f"127.0.0.1:{raw.port}"


# --------------------------------------------------------------------------------------------------- secrets in errors


@pytest.mark.parametrize("kind", [b"application/json", b"text/plain", b"text/html"])
def test_a_provider_that_repeats_the_key(gateway: Gateway, raw: RawProvider, kind: bytes) -> None:
    said = f"Incorrect API key provided: {KEY}."
    for body in (said, json.dumps({"error": {"message": said, "type": "t", "param": KEY, "code": None}})):
        raw.answers = [response(body.encode(), status=b"401 No", kind=kind)]
        for method, path, more in OPERATIONS:
            answer = ask(gateway, raw.base_url, method, path, {"authorization": f"Bearer {KEY}"}, **more)
            assert answer.status_code == 401
            assert KEY not in answer.text


def test_a_host_that_does_not_answer(gateway: Gateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = f"http://127.0.0.1:{port}/{KEY}/v1"
    for method, path, more in OPERATIONS[-4:]:
        if method == "GET":
            continue  # is tried three times
        answer = ask(gateway, url, method, path, {"authorization": f"Bearer {KEY}"}, **more)
        assert (answer.status_code, answer.json()["error"]["type"]) == (502, "upstream_error")
        assert KEY not in answer.text
