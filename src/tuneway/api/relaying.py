"""Is a request to be relayed, to whom, and with what: read from its headers alone.

A relay names a provider and brings that provider's own credential. `x-portkey-NAME` and `x-tuneway-NAME` mean the same,
so that Portkey's clients work as they are. No header of the gateway and no key of it ever leaves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers

from tuneway.api.context import PROVIDER_HEADERS
from tuneway.errors import InvalidRequest
from tuneway.keys import PREFIX
from tuneway.relay import Kind

FAMILIES = ("x-tuneway-", "x-portkey-")
MODE = "x-tuneway-mode"
PLACEHOLDERS = frozenset({"OPENAI_API_KEY", "dummy", "none", "unused", "X"})
"""What clients that have no key for a provider put in its place; Portkey's sends the first (2.3.4)."""

DEFAULT_SECONDS = 600.0
"""How long a provider may take: as long as OpenAI's clients wait."""

_OWN = frozenset({"provider", "api-key", "config", "mode", "dialect", "request-timeout", "forward-headers", "trace-id"})
_PORTKEYS = frozenset({"mode", "dialect", "metadata"})
"""Names that mean something else in Portkey's family, or nothing."""
_REFUSED = {
    "virtual-key": "keys that are kept for you are accounts here: name one by the header x-tuneway-provider",
    "default-input-guardrails": "guardrails are not applied here",
    "default-output-guardrails": "guardrails are not applied here",
    "guardrails": "guardrails are not applied here",
}
_RENAMED = {"custom-host": "base_url"}
_PORTKEYS_KINDS = {"together-ai": "together", "fireworks-ai": "fireworks"}
"""What Portkey calls providers that have another name here."""
_NO_OPTIONS = frozenset({"metadata"})
"""Options that no header gives: Portkey has a header of that name for something else."""
_NATIVE = {
    "openai-organization": "openai_organization",
    "openai-project": "openai_project",
    "openai-beta": "openai_beta",
}
"""Headers of OpenAI's own clients that say the same as an option."""

_NEVER_FORWARDED = re.compile(
    r"host|connection|keep-alive|proxy-.*|te|trailer|transfer-encoding|upgrade|content-.*|expect|authorization|api-key"
    r"|cookie|origin|referer|forwarded|x-forwarded-.*|x-real-ip|x-portkey-.*|x-tuneway-.*|sec-.*|accept-encoding"
)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_TIMEOUT_MS = re.compile(r"[1-9][0-9]{0,7}")
_CONFIG_OWN = frozenset({"provider", "request_timeout", "forward_headers"})
_GATEWAY_KEY = re.compile(rf"(?<![A-Za-z0-9_-]){PREFIX}")
"""At the beginning of a word: tokens of others may well have these letters inside."""


@dataclass(frozen=True, slots=True)
class Relayed:
    """What the headers say. `given` holds secrets: it is not shown."""

    kind: str
    given: Mapping[str, str] = field(repr=False)
    called: Mapping[str, str]
    forwarded: Mapping[str, str] = field(repr=False)
    seconds: float
    ignored: tuple[str, ...]


def read(
    headers: Headers, kinds: Mapping[str, Kind], *, azure_path: bool, api_version: str | None = None
) -> Relayed | None:
    """None for a request that is the gateway's own. Raises InvalidRequest that names a header.

    `azure_path`: the request came by a path of Azure's, whose clients send an Entra token as `Authorization`;
    `api_version` is the one that it asks for.
    """
    mode = headers.get(MODE)
    if mode not in (None, "relay", "managed"):
        raise InvalidRequest(
            "The header x-tuneway-mode must be 'relay' or 'managed'.", param=MODE, code="invalid_value"
        )
    if mode == "managed":
        return None
    config, config_header = _config(headers)
    named = next(((headers[name], name) for name in PROVIDER_HEADERS if headers.get(name)), None)
    provider, header = named or (config.get("provider"), config_header)
    provider = None if provider is None else provider.removeprefix("@")
    kind = kinds.get(_PORTKEYS_KINDS.get(provider or "", provider or ""))
    if kind is None:
        if mode == "relay":
            raise InvalidRequest(
                "A relay must name its provider in the header x-tuneway-provider: one of " + ", ".join(kinds) + ".",
                param=header or PROVIDER_HEADERS[0],
                code="invalid_value",
            )
        return None
    given, called = _options(headers, kind, config, config_header)
    _add_credential(headers, kind, given, called, azure_path=azure_path)
    if not any(name in given for name in kind.secrets):
        if mode == "relay":
            raise InvalidRequest(
                f"A relay needs the provider's own credential: the key of {kind.name} as 'Authorization: Bearer KEY'.",
                param="authorization",
                code="missing_required_parameter",
            )
        return None
    if api_version is not None and "azure_api_version" in kind.options and "azure_api_version" not in given:
        given["azure_api_version"], called["azure_api_version"] = api_version, "api-version"
    forwarded = _forwarded(headers, config, config_header)
    for name, value in (*((called[name], value) for name, value in given.items()), *forwarded.items()):
        if _GATEWAY_KEY.search(value):
            raise InvalidRequest(
                f"{name} holds a key of this gateway, which never leaves it. Send it as x-tuneway-api-key, and the "
                "provider's own credential as Authorization.",
                param=name,
                code="invalid_value",
            )
    return Relayed(
        kind.name, given, called, forwarded, _seconds(headers, config, config_header), _ignored(headers, kind)
    )


def require_effect(headers: Headers, kinds: Mapping[str, Kind]) -> None:
    """Raises InvalidRequest for a header that says how to reach a provider, on a request that is none of a relay.

    An account of the gateway is reached as its operator has set it up. Whoever sends such a header believes that it
    goes elsewhere, and must not find out by what it costs.
    """
    options = {name for kind in kinds.values() for name in (*kind.options, *kind.secrets)} - _NO_OPTIONS
    for name, family, short in _ours(headers):
        if not headers[name]:
            continue
        _require_not_refused(name, short)
        if short == "config" or (_is_option(family, short) and _option(short) in options):
            raise InvalidRequest(
                f"The header {name} has no effect here: it is for requests that bring a provider's own credential, and "
                "this one brings none that would be passed on. Remove the header, or send the credential as "
                "Authorization.",
                param=name,
                code="unsupported_parameter",
            )


def _ours(headers: Headers) -> Iterator[tuple[str, str, str]]:
    """Header, family and what follows it, of those that are for gateways."""
    for name in headers:
        for family in FAMILIES:
            if name.startswith(family):
                yield name, family, name.removeprefix(family).replace("_", "-")


def _option(short: str) -> str:
    return _RENAMED.get(short, short.replace("-", "_"))


def _is_option(family: str, short: str) -> bool:
    return short not in _OWN and _option(short) not in _NO_OPTIONS


def _require_not_refused(name: str, short: str) -> None:
    if short in _REFUSED:
        raise InvalidRequest(
            f"The header {name} has no effect here: {_REFUSED[short]}.", param=name, code="unsupported_parameter"
        )


def _config(headers: Headers) -> tuple[dict[str, str], str | None]:
    """Portkey's `config`, as far as it says what the other headers could. Raises InvalidRequest for the rest of it."""
    for family in FAMILIES:
        name = f"{family}config"
        text = headers.get(name)
        if not text:
            continue
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise InvalidRequest(
                f"The header {name} must hold a JSON object; configurations that are stored elsewhere are not known "
                "here.",
                param=name,
                code="invalid_value",
            )
        return {key: _config_value(name, key, value) for key, value in found.items()}, name
    return {}, None


def _config_value(header: str, key: str, value: Any) -> str:
    if key == "forward_headers" and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise InvalidRequest(
            f"'{key[:64]}' of the header {header} is not supported: one provider is named, without strategies.",
            param=f"{header}.{key[:64]}",
            code="unsupported_parameter",
        )
    return str(value)


def _options(
    headers: Headers, kind: Kind, config: Mapping[str, str], config_header: str | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Options and secrets of the kind, and where each was said."""
    given: dict[str, str] = {}
    called: dict[str, str] = {}
    known = {*kind.options, *kind.secrets}
    for key, value in config.items():
        option = _option(key.replace("_", "-"))
        if key == "api_key" and value in PLACEHOLDERS:
            continue
        if option in known and option not in _NO_OPTIONS:
            given[option], called[option] = value, f"{config_header}.{key}"
        elif key not in _CONFIG_OWN:
            raise InvalidRequest(
                f"'{key[:64]}' of the header {config_header} is no option of '{kind.name}'.",
                param=f"{config_header}.{key[:64]}",
                code="unsupported_parameter",
            )
    for name, option in _NATIVE.items():
        if option in known and headers.get(name):
            given[option], called[option] = headers[name], name
    # The gateway's own family weighs more, and comes last.
    for name, family, short in sorted(_ours(headers), key=lambda found: found[1] == FAMILIES[0]):
        if not headers[name]:
            continue
        _require_not_refused(name, short)
        if _is_option(family, short) and _option(short) in known:
            given[_option(short)], called[_option(short)] = headers[name], name
    return given, called


def _add_credential(
    headers: Headers, kind: Kind, given: dict[str, str], called: dict[str, str], *, azure_path: bool
) -> None:
    """The key in `Authorization` or `api-key`, unless it is the gateway's own or nobody's.

    Azure takes both a key and an Entra token. Its own clients send a key as `api-key`; Portkey's send one as a bearer;
    an Entra token is a JSON web token.
    """
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    bearer = _somebodys(bearer) if scheme.lower() == "bearer" else ""
    key = _somebodys(headers.get("api-key", ""))
    if kind.path_of_keys == "azure":
        token = bearer if azure_path or _is_web_token(bearer) else ""
        if token and "azure_ad_token" not in given:
            given["azure_ad_token"], called["azure_ad_token"] = token, "authorization"
        own, where = (key, "api-key") if key else ("" if token else bearer, "authorization")
        if own and not ({"azure_ad_token", "azure_entra_client_secret"} & given.keys()):
            given["api_key"], called["api_key"] = own, where
    elif bearer or key:
        given["api_key"], called["api_key"] = bearer or key, "authorization" if bearer else "api-key"


def _somebodys(credential: str) -> str:
    """Empty for a key of the gateway, and for what stands in place of one."""
    credential = credential.strip()
    return "" if credential.startswith(PREFIX) or credential in PLACEHOLDERS else credential


def _is_web_token(bearer: str) -> bool:
    return bearer.startswith("eyJ") and bearer.count(".") == 2


def _said(headers: Headers, short: str, config: Mapping[str, str], config_header: str | None) -> tuple[str | None, str]:
    """What a header of either family says, or else the configuration; and what messages call it."""
    for family in FAMILIES:
        name = f"{family}{short}"
        if headers.get(name):
            return headers[name], name
    key = short.replace("-", "_")
    return config.get(key), f"{config_header}.{key}"


def _forwarded(headers: Headers, config: Mapping[str, str], config_header: str | None) -> dict[str, str]:
    """The headers that the caller names to go along. Raises InvalidRequest for one that must not."""
    found: dict[str, str] = {}
    text, where = _said(headers, "forward-headers", config, config_header)
    # Portkey's documentation writes the list both bare and as ['A','B'].
    for raw in (text or "").strip().strip("[]").split(","):
        header = raw.strip().strip("'\"").lower()
        if not header:
            continue
        if not _HEADER_NAME.fullmatch(header) or _NEVER_FORWARDED.fullmatch(header):
            raise InvalidRequest(f"The header {header[:64]!r} cannot be passed on.", param=where, code="invalid_value")
        if header in headers:
            found[header] = _utf8(headers[header], header)
    return found


def _utf8(value: str, header: str) -> str:
    """The value as it will be written again: byte for byte the same. Raises InvalidRequest where it could not be."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(
            f"The header {header} cannot be passed on: it is not valid UTF-8.", param=header, code="invalid_value"
        ) from None


def _seconds(headers: Headers, config: Mapping[str, str], config_header: str | None) -> float:
    """Raises InvalidRequest."""
    text, where = _said(headers, "request-timeout", config, config_header)
    if text is None:
        return DEFAULT_SECONDS
    if not _TIMEOUT_MS.fullmatch(text):
        raise InvalidRequest(f"{where} must be a whole number of milliseconds.", param=where, code="invalid_value")
    return int(text) / 1000


def _ignored(headers: Headers, kind: Kind) -> tuple[str, ...]:
    """Headers of the two families without effect on this request."""
    known = {*kind.options, *kind.secrets}
    found = {
        name
        for name, family, short in _ours(headers)
        if (family == "x-portkey-" and short in _PORTKEYS)
        or (short not in _OWN and not (_is_option(family, short) and _option(short) in known))
    }
    return tuple(sorted(found))


def parameters(query: Mapping[str, Any]) -> dict[str, str]:
    """Of a list: `limit` checked, the others as they are. Raises InvalidRequest."""
    found = {str(name): str(value) for name, value in query.items()}
    limit = found.get("limit")
    if limit is not None and not re.fullmatch("[0-9]{1,5}", limit):
        raise InvalidRequest(
            f"Invalid type for 'limit': expected an integer, but got '{limit[:20]}' instead.",
            param="limit",
            code="invalid_type",
        )
    return {name: value for name, value in found.items() if name != "api-version"}
