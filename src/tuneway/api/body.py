"""JSON bodies, read strictly: one value means one thing, whoever parses it next."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request

from tuneway.errors import InvalidRequest, PayloadTooLarge, UnknownField, UnsupportedMediaType

MAX_DEPTH = 64
"""Objects and arrays inside each other; no request of this API comes near it."""


async def read_json(request: Request, limit: int) -> dict[str, Any]:
    """The object in the body, of at most `limit` bytes.

    Raises InvalidRequest for what is not one JSON object in UTF-8 without duplicate keys, PayloadTooLarge and
    UnsupportedMediaType.
    """
    return parse_object(await read_bytes(request, limit))


async def read_nothing(request: Request, limit: int) -> None:
    """Reads the body of a request that has no parameters: none at all, or `{}`. Raises as `read_json` does."""
    raw = await read(request, limit)
    if raw.strip():
        require_json(request)
        for name in parse_object(raw):
            raise UnknownField(f"Unknown parameter: '{name}'. This request takes none.", param=name)


async def read_bytes(request: Request, limit: int) -> bytes:
    """The body of a request that must be sent as JSON, unparsed."""
    raw = await read(request, limit)
    require_json(request)
    return raw


async def read(request: Request, limit: int) -> bytes:
    """The whole body. Raises PayloadTooLarge beyond `limit` bytes, before reading it where the length was declared."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def require_json(request: Request) -> None:
    """Raises UnsupportedMediaType unless the body is declared to be JSON.

    A web page can send any other type to any server without asking it first.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMediaType(
            f"The body must be sent with 'Content-Type: application/json', not '{kind}'." if kind else None
        )


def parse_object(raw: bytes) -> dict[str, Any]:
    """Raises InvalidRequest."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not valid UTF-8 (byte {error.start}).") from None
    except ValueError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    for text in _texts(value):
        # Half of a surrogate pair has no UTF-8 form, and PostgreSQL stores no NUL.
        if "\0" in text or not _encodes(text):
            raise InvalidRequest("The body has a string with a NUL or with half of a surrogate pair. Remove it.")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InvalidRequest(f"The body has the key '{name[:100]}' more than once in one object.", param=name[:100])
        found[name] = value
    return found


def _constant(name: str) -> Any:
    raise InvalidRequest(f"The body is not valid JSON: it has no {name}.")


def _texts(value: Any) -> Iterator[str]:
    """Every string in the value, keys included. Raises InvalidRequest beyond MAX_DEPTH."""
    waiting = [(value, 0)]
    while waiting:
        found, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise _too_deep()
        if isinstance(found, str):
            yield found
        elif isinstance(found, list):
            waiting.extend((item, depth + 1) for item in found)
        elif isinstance(found, dict):
            yield from found
            waiting.extend((item, depth + 1) for item in found.values())


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"The body is nested too deeply: at most {MAX_DEPTH} objects or arrays inside each other.")


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request body is larger than the {limit} bytes that this URL accepts. Send less.")
