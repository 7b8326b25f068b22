"""What headers say of a relay: to whom, with which credential and options, and what is refused; as a table."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.datastructures import Headers

from tuneway.api.relaying import DEFAULT_SECONDS, FAMILIES, Relayed, parameters, read, require_effect
from tuneway.errors import Forbidden, InvalidRequest
from tuneway.providers.registry import KINDS
from tuneway.relay import Relay

SK = {"authorization": "Bearer sk-1"}
OPENAI = {"x-portkey-provider": "openai"}
AZURE = {"x-portkey-provider": "azure-openai"}
ANY = {"x-portkey-provider": "openai-compatible"}
RELAY = {"x-tuneway-mode": "relay"}
TNW = "tnw_" + "k" * 43
JWT = "eyJhbGciOi.eyJhdWQiOi.c2lnbmF0dXJl"


def found(*headers: Mapping[str, str], azure_path: bool = False, api_version: str | None = None) -> Relayed | None:
    whole = {name: value for each in headers for name, value in each.items()}
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in whole.items()]
    return read(Headers(raw=raw), KINDS, azure_path=azure_path, api_version=api_version)


def relayed(*headers: Mapping[str, str], **more: Any) -> Relayed:
    what = found(*headers, **more)
    assert what is not None
    return what


def config(**values: Any) -> dict[str, str]:
    return {"x-portkey-config": json.dumps(values)}


# ------------------------------------------------------------------------------------------------- is it one, and whose

NONE: list[tuple[Mapping[str, str], ...]] = [
    (),
    (SK,),
    (OPENAI,),
    (OPENAI, {"authorization": f"Bearer {TNW}"}),
    (OPENAI, {"authorization": f"bearer   {TNW}"}),
    (OPENAI, {"api-key": TNW}),
    (OPENAI, {"x-portkey-api-key": "sk-1"}),
    (OPENAI, {"x-tuneway-api-key": TNW}),
    (OPENAI, {"authorization": "Bearer OPENAI_API_KEY", "x-portkey-api-key": TNW}),
    (OPENAI, {"authorization": "Bearer unused"}),
    (OPENAI, {"authorization": "Bearer dummy"}),
    (OPENAI, {"authorization": "Bearer"}),
    (OPENAI, {"authorization": "Bearer "}),
    (OPENAI, {"authorization": "Basic c2stMQ=="}),
    (OPENAI, {"authorization": "sk-1"}),
    (OPENAI, {"api-key": "OPENAI_API_KEY"}),
    (OPENAI, SK, {"x-tuneway-mode": "managed"}),
    ({"x-portkey-provider": "local"}, SK),
    ({"x-portkey-provider": "fake"}, SK),
    ({"x-portkey-provider": "my-account"}, SK),
    ({"x-portkey-provider": ""}, SK),
    (config(provider="openai"),),
    (config(provider="openai", api_key="OPENAI_API_KEY"),),
]


@pytest.mark.parametrize("headers", NONE, ids=str)
def test_what_is_the_gateways_own(headers: tuple[Mapping[str, str], ...]) -> None:
    assert found(*headers) is None


@pytest.mark.parametrize(
    ("headers", "kind", "key", "called"),
    [
        ((OPENAI, SK), "openai", "sk-1", "authorization"),
        (({"x-tuneway-provider": "openai"}, SK), "openai", "sk-1", "authorization"),
        (({"x-portkey-provider": "@openai"}, SK), "openai", "sk-1", "authorization"),
        (({"x-tuneway-provider": "nebius"}, OPENAI, SK), "nebius", "sk-1", "authorization"),
        ((OPENAI, {"api-key": "sk-1"}), "openai", "sk-1", "api-key"),
        ((OPENAI, {"authorization": f"Bearer {TNW}", "api-key": "sk-1"}), "openai", "sk-1", "api-key"),
        ((OPENAI, SK, {"x-portkey-api-key": TNW}), "openai", "sk-1", "authorization"),
        ((OPENAI, {"AUTHORIZATION": "bearer sk-1"}), "openai", "sk-1", "authorization"),
        ((config(provider="openai", api_key="sk-1"),), "openai", "sk-1", "x-portkey-config.api_key"),
        ((config(provider="nebius", api_key="sk-2"), SK), "nebius", "sk-1", "authorization"),
        ((config(provider="nebius", api_key="sk-1"), OPENAI), "openai", "sk-1", "x-portkey-config.api_key"),
        ((OPENAI, SK, RELAY), "openai", "sk-1", "authorization"),
        (({"x-portkey-provider": "together-ai"}, SK), "together", "sk-1", "authorization"),
        (({"x-portkey-provider": "fireworks-ai"}, SK), "fireworks", "sk-1", "authorization"),
    ],
)
def test_whose_it_is(headers: tuple[Mapping[str, str], ...], kind: str, key: str, called: str) -> None:
    what = relayed(*headers)
    assert (what.kind, what.given["api_key"], what.called["api_key"]) == (kind, key, called)
    assert "sk-" not in repr(what)


@pytest.mark.parametrize(
    ("headers", "azure_path", "given"),
    [
        ({"api-key": "k"}, False, {"api_key": "k"}),
        ({"authorization": "Bearer k"}, False, {"api_key": "k"}),
        ({"authorization": f"Bearer {JWT}"}, False, {"azure_ad_token": JWT}),
        ({"authorization": "Bearer opaque"}, True, {"azure_ad_token": "opaque"}),
        ({"authorization": "Bearer OPENAI_API_KEY", "api-key": "k"}, True, {"api_key": "k"}),
        ({"authorization": f"Bearer {TNW}", "api-key": "k"}, True, {"api_key": "k"}),
        ({"authorization": f"Bearer {JWT}", "api-key": "k"}, True, {"azure_ad_token": JWT}),
        ({"x-portkey-azure-ad-token": JWT}, False, {"azure_ad_token": JWT}),
        ({"x-portkey-azure-ad-token": "t", "authorization": f"Bearer {JWT}"}, False, {"azure_ad_token": "t"}),
        ({"x-portkey-azure-ad-token": "t", "api-key": "k"}, False, {"azure_ad_token": "t"}),
        ({"x-portkey-azure-entra-client-secret": "s", "api-key": "k"}, False, {"azure_entra_client_secret": "s"}),
    ],
)
def test_azures_credentials(headers: dict[str, str], azure_path: bool, given: dict[str, str]) -> None:
    assert relayed(AZURE, headers, azure_path=azure_path).given == given


@pytest.mark.parametrize(
    ("headers", "asked", "version"),
    [
        ({}, "2025-04-01-preview", "2025-04-01-preview"),
        ({}, None, None),
        ({"x-portkey-azure-api-version": "v1"}, "2024-10-21", "v1"),
    ],
)
def test_azures_version_is_the_paths_unless_a_header_says_it(
    headers: dict[str, str], asked: str | None, version: str | None
) -> None:
    what = relayed(AZURE, SK, headers, azure_path=True, api_version=asked)
    assert what.given.get("azure_api_version") == version
    assert "azure_api_version" not in relayed(OPENAI, SK, azure_path=True, api_version=asked).given


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("headers", "given"),
    [
        ({"x-portkey-custom-host": "https://a/v1"}, {"base_url": "https://a/v1"}),
        ({"x-tuneway-custom-host": "https://a/v1"}, {"base_url": "https://a/v1"}),
        ({"x-tuneway-base-url": "https://a/v1"}, {"base_url": "https://a/v1"}),
        ({"x-portkey-base_url": "https://a/v1"}, {"base_url": "https://a/v1"}),
        (
            {"x-portkey-custom-host": "https://a/v1", "x-tuneway-custom-host": "https://b/v1"},
            {"base_url": "https://b/v1"},
        ),
        ({"x-portkey-custom-host": ""}, {}),
        (config(custom_host="https://a/v1"), {"base_url": "https://a/v1"}),
        (config(custom_host="https://a/v1") | {"x-portkey-custom-host": "https://b/v1"}, {"base_url": "https://b/v1"}),
        ({"x-portkey-openai-organization": "org"}, {"openai_organization": "org"}),
        ({"openai-organization": "org", "openai-project": "p"}, {"openai_organization": "org", "openai_project": "p"}),
        ({"openai-beta": "a", "x-portkey-openai-beta": "b"}, {"openai_beta": "b"}),
    ],
)
def test_options(headers: dict[str, str], given: dict[str, str]) -> None:
    assert dict(relayed(OPENAI, SK, headers).given) == {"api_key": "sk-1"} | given


def test_portkeys_metadata_is_no_option_of_anybody() -> None:
    what = relayed(ANY, SK, {"x-portkey-metadata": '{"a": "b"}', "x-tuneway-metadata": "yes"})
    assert "metadata" not in what.given
    assert what.ignored == ("x-portkey-metadata", "x-tuneway-metadata")


@pytest.mark.parametrize("short", ["api-key", "api_key", "provider", "mode", "dialect", "config", "trace-id"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_header_of_the_gateways_own_is_an_option(family: str, short: str) -> None:
    value = {"provider": "openai", "config": "{}", "mode": "relay"}.get(short, TNW)
    what = relayed(OPENAI, SK, {f"{family}{short}": value})
    assert dict(what.given) == {"api_key": "sk-1"}
    assert what.ignored == ((f"{family}{short}",) if family == "x-portkey-" and short in ("mode", "dialect") else ())


def test_what_has_no_effect_is_named() -> None:
    names = ("x-portkey-cache", "x-portkey-azure-resource-name", "x-tuneway-anything", "x-portkey-mode")
    assert relayed(OPENAI, SK, dict.fromkeys(names, "proxy")).ignored == tuple(sorted(names))
    assert relayed(OPENAI, SK, {"x-stainless-os": "Linux", "x-request-id": "r"}).ignored == ()


@pytest.mark.parametrize(
    ("headers", "names"),
    [
        ({"x-portkey-forward-headers": "x-a, x-b"}, {"x-a", "x-b"}),
        ({"x-tuneway-forward-headers": "x-a"}, {"x-a"}),
        ({"x-portkey-forward-headers": "['X-A','X-B']"}, {"x-a", "x-b"}),
        ({"x-portkey-forward-headers": '["X-A", "x-c"]'}, {"x-a"}),
        ({"x-portkey-forward-headers": "[]"}, set()),
        ({"x-portkey-forward-headers": " , x-a,,"}, {"x-a"}),
        (config(forward_headers=["X-A", "x-b"]), {"x-a", "x-b"}),
        (config(forward_headers="x-a"), {"x-a"}),
        ({"x-portkey-forward-headers": "x-c"}, set()),
    ],
)
def test_headers_that_go_along(headers: dict[str, str], names: set[str]) -> None:
    assert dict(relayed(OPENAI, SK, headers, {"x-a": "1", "x-b": "1"}).forwarded) == dict.fromkeys(names, "1")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, DEFAULT_SECONDS),
        ({"x-portkey-request-timeout": "1500"}, 1.5),
        ({"x-portkey-request-timeout": "1500", "x-tuneway-request-timeout": "2000"}, 2.0),
        (config(request_timeout=250), 0.25),
        (config(request_timeout=250) | {"x-portkey-request-timeout": "1500"}, 1.5),
    ],
)
def test_time_outs(headers: dict[str, str], seconds: float) -> None:
    assert relayed(OPENAI, SK, headers).seconds == seconds


# ------------------------------------------------------------------------------------------------------ what is refused

NEVER = [
    *("authorization", "Authorization", "api-key", "cookie", "host", "connection", "content-length", "content-type"),
    *("transfer-encoding", "te", "upgrade", "expect", "proxy-authorization", "origin", "sec-fetch-site", "referer"),
    *(
        "x-portkey-api-key",
        "x-portkey-provider",
        "x-tuneway-api-key",
        "x-forwarded-for",
        "forwarded",
        "accept-encoding",
    ),
    *("a b", "a:b", "x\u00e9", "a" * 101, "(x)"),
]


@pytest.mark.parametrize("name", NEVER)
def test_headers_that_never_go_along(name: str) -> None:
    for headers in ({"x-portkey-forward-headers": f"x-a,{name}"}, config(forward_headers=[name])):
        with pytest.raises(InvalidRequest) as raised:
            found(OPENAI, SK, headers)
        assert raised.value.param in ("x-portkey-forward-headers", "x-portkey-config.forward_headers")


@pytest.mark.parametrize(
    ("headers", "param"),
    [
        ({"x-tuneway-mode": "both"}, "x-tuneway-mode"),
        (RELAY, "x-tuneway-provider"),
        (RELAY | {"x-portkey-provider": "local"}, "x-portkey-provider"),
        (RELAY | {"x-tuneway-provider": "nobody"}, "x-tuneway-provider"),
        (RELAY | OPENAI, "authorization"),
        (RELAY | OPENAI | {"authorization": f"Bearer {TNW}"}, "authorization"),
        (OPENAI | SK | {"x-portkey-virtual-key": "v"}, "x-portkey-virtual-key"),
        (OPENAI | SK | {"x-tuneway-guardrails": "v"}, "x-tuneway-guardrails"),
        (OPENAI | SK | {"x-portkey-request-timeout": "soon"}, "x-portkey-request-timeout"),
        (OPENAI | SK | config(request_timeout="soon"), "x-portkey-config.request_timeout"),
        (OPENAI | SK | config(strategy={"mode": "loadbalance"}), "x-portkey-config.strategy"),
        (OPENAI | SK | config(retry={}), "x-portkey-config.retry"),
        (OPENAI | SK | config(cache=True), "x-portkey-config.cache"),
        (OPENAI | SK | config(weight=None), "x-portkey-config.weight"),
        (OPENAI | SK | config(virtual_key="v"), "x-portkey-config.virtual_key"),
        (OPENAI | SK | config(azure_resource_name="acme"), "x-portkey-config.azure_resource_name"),
        (OPENAI | SK | config(metadata="yes"), "x-portkey-config.metadata"),
        ({"x-portkey-config": "pc-1"}, "x-portkey-config"),
        ({"x-tuneway-config": "[" * 60_000}, "x-tuneway-config"),
        # Keys of the gateway, wherever a value would leave it.
        (OPENAI | SK | {"x-portkey-openai-organization": TNW}, "x-portkey-openai-organization"),
        (OPENAI | SK | {"openai-project": f"a {TNW}"}, "openai-project"),
        (OPENAI | SK | {"x-portkey-custom-host": f"https://a/{TNW}/v1"}, "x-portkey-custom-host"),
        (OPENAI | config(api_key=TNW), "x-portkey-config.api_key"),
        (OPENAI | SK | {"x-tuneway-forward-headers": "x-a", "x-a": f"Bearer {TNW}"}, "x-a"),
        (AZURE | {"x-portkey-azure-ad-token": f"Bearer {TNW}"}, "x-portkey-azure-ad-token"),
        (AZURE | {"x-portkey-azure-entra-client-secret": TNW}, "x-portkey-azure-entra-client-secret"),
    ],
)
def test_what_is_refused_is_named(headers: dict[str, str], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        found(headers)
    assert raised.value.param == param
    assert TNW not in raised.value.message


def test_letters_inside_of_a_token_are_no_key_of_ours() -> None:
    token = "eyJhbGci-tnw_iOi.eyJh_tnw_YXVkIjo.atnw_"
    assert relayed(AZURE, {"authorization": f"Bearer {token}"}).given == {"azure_ad_token": token}


# ------------------------------------------------------------------------------------ what only a relay has a use of


@pytest.mark.parametrize(
    "name",
    [
        *("custom-host", "base-url", "azure-resource-name", "azure-ad-token", "openai-organization", "aws-region"),
        *("azure-entra-client-secret", "config", "virtual-key", "guardrails", "login-url", "custom_host"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_refused_on_other_requests(family: str, name: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        require_effect(Headers({f"{family}{name}": "x"}), KINDS)
    assert raised.value.param == f"{family}{name}"


def test_what_is_not() -> None:
    names = (
        "provider",
        "api-key",
        "mode",
        "dialect",
        "metadata",
        "trace-id",
        "cache",
        "request-timeout",
        "custom-host",
    )
    values = {f"{family}{name}": "" if name == "custom-host" else "x" for family in FAMILIES for name in names}
    require_effect(Headers(values | {"openai-organization": "org", "x-stainless-lang": "python"}), KINDS)


# ---------------------------------------------------------------------------------------------------- lists' parameters


@pytest.mark.parametrize("limit", ["x", "-1", "1.5", "100000", "٣", "", " 1"])
def test_a_limit_is_a_number(limit: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parameters({"limit": limit})
    assert raised.value.param == "limit"


def test_other_parameters_are_the_providers() -> None:
    query = {"limit": "7", "after": "x", "metadata[k]": "v", "new": "1"}
    assert parameters(query | {"api-version": "2024-10-21"}) == query


# ---------------------------------------------------------------------------------------------------------- the vendor


class FakeDial:
    """Notes every request and answers a token where one is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Mapping[str, str]]] = []

    @asynccontextmanager
    async def __call__(self, method: str, url: str, *, headers: Mapping[str, str], **more: Any) -> AsyncIterator[Any]:
        self.asked.append((url, headers))
        body = b'{"access_token": "entra", "expires_in": 3599}' if url.endswith("/token") else b'{"data": []}'
        yield FakeReply(body)


class FakeReply:
    status = 200
    headers: Mapping[str, str] = {}

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._body


ENTRA = {
    "azure_resource_name": "acme",
    "azure_entra_tenant_id": "tenant",
    "azure_entra_client_id": "client",
    "azure_entra_client_secret": "secret",
}


def test_what_goes_along_goes_where_the_credential_goes() -> None:
    """The login is another host: it gets neither the headers nor the token."""
    dial = FakeDial()
    relay = Relay(KINDS, dial, allowed=True)
    vendor = relay.vendor("azure-openai", ENTRA, {}, {"x-team": "search", "authorization": "no"}, 5)
    asyncio.run(vendor.list_models())
    (login, first), (models, second) = dial.asked
    assert login == "https://login.microsoftonline.com/tenant/oauth2/v2.0/token"
    assert first == {"content-type": "application/x-www-form-urlencoded"}
    assert models == "https://acme.openai.azure.com/openai/models?api-version=2024-10-21"
    assert second == {"x-team": "search", "authorization": "Bearer entra"}


@pytest.mark.parametrize("name", sorted(KINDS["azure-openai"].not_relayed))
def test_what_only_accounts_have_is_refused(name: str) -> None:
    header = f"x-tuneway-{name.replace('_', '-')}"
    with pytest.raises(InvalidRequest) as raised:
        Relay(KINDS, FakeDial(), allowed=True).vendor("azure-openai", ENTRA | {name: "x"}, {name: header}, {}, 5)
    assert raised.value.param == header


def test_a_gateway_may_be_closed_to_relays() -> None:
    with pytest.raises(Forbidden):
        Relay(KINDS, FakeDial(), allowed=False).vendor("openai", {"api_key": "sk-1"}, {}, {}, 5)
