"""Errors on the wire: the one envelope, and the words for what pydantic and the router find wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from tuneway.api.dialect import DIALECT, OPENAI, ORIGINAL_PATH
from tuneway.errors import InvalidRequest, MethodNotAllowed, TunewayError, UnknownField, UnknownRoute, UpstreamError

_SHOWN = 100
"""Characters of a client's value that a message repeats."""

_NO_RETRY = (500, 507)
"""Statuses that would be the same, or worse, after another try; the SDKs retry every other one from 500 on."""

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

_TYPES = {
    "bool_type": "a boolean",
    "dict_type": "an object",
    "float_type": "a number",
    "int_from_float": "an integer",
    "int_parsing": "an integer",
    "int_type": "an integer",
    "list_type": "an array",
    "model_type": "an object",
    "string_type": "a string",
}


def render(error: TunewayError, scope: Scope, headers: Mapping[str, str] | None = None) -> Response:
    """The envelope, all four keys, in the request's dialect."""
    dialect = scope.get(DIALECT, OPENAI)
    body = error.envelope()
    body["error"]["code"] = dialect.code(error)
    ours = error.status in _NO_RETRY and not isinstance(error, UpstreamError)
    retry = {"x-should-retry": "false"} if ours else {}
    return JSONResponse(body, error.status, {**retry, **error.headers(), **(headers or {})})


async def on_http_exception(request: Request, error: HTTPException) -> Response:
    """What the router refuses: unknown paths, and methods that a path does not take."""
    line = f"{request.method} {request.scope.get(ORIGINAL_PATH, request.url.path)[:500]}"
    if error.status_code == 405:
        allowed = ", ".join(_allowed(request.app.routes, request.scope))
        return render(
            MethodNotAllowed(f"Invalid method for URL ({line}). Allowed: {allowed}."), request.scope, {"allow": allowed}
        )
    if error.status_code == 404:
        return render(UnknownRoute(f"Invalid URL ({line})"), request.scope)
    raise error


async def on_invalid_parameters(request: Request, error: RequestValidationError) -> Response:
    """Query parameters of a wrong form."""
    return render(explain([{**found, "loc": found["loc"][1:]} for found in error.errors()]), request.scope)


def _allowed(routes: Sequence[BaseRoute], scope: Scope) -> list[str]:
    """The methods that the path takes, of all routes together: the router asks only the first route that fits."""
    return [
        method
        for method in METHODS
        if any(
            route.matches({"type": "http", "path": scope["path"], "method": method, "headers": []})[0] is Match.FULL
            for route in routes
        )
    ]


def explain(errors: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """The first of pydantic's errors in OpenAI's words, naming the field by its dotted path."""
    first = errors[0]
    param = _path(first)
    kind, given, context = first["type"], first.get("input"), first.get("ctx", {})
    if kind == "missing":
        return InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if kind == "extra_forbidden":
        return UnknownField(
            f"Unknown parameter: '{param}'. Remove it; extensions go in the object 'tuneway'.", param=param
        )
    if kind in _TYPES:
        message = f"Invalid type for '{param}': expected {_TYPES[kind]}, but got {_kind(given)} instead."
        return InvalidRequest(message, param=param, code="invalid_type")
    if kind == "literal_error":
        message = f"Invalid value: {_shown(given)}. Supported values are: {context['expected']}."
        return InvalidRequest(message, param=param, code="invalid_value")
    said, code = _beyond(kind, given, context)
    return InvalidRequest(f"Invalid '{param}': {said or first['msg']}.", param=param, code=code)


def _beyond(kind: str, given: Any, context: Mapping[str, Any]) -> tuple[str, str]:
    """The sentence and the code for a value of the right type that is too small, too large or badly formed."""
    whole = isinstance(given, int) or (isinstance(given, str) and given.lstrip("-").isdecimal())  # a query's is text
    number = "integer" if whole else "decimal"
    match kind:
        case "greater_than_equal" | "greater_than":
            sign, bound = (">=", context["ge"]) if "ge" in context else (">", context["gt"])
            below = f"{number} below minimum value. Expected a value {sign} {bound}, but got {_shown(given)} instead"
            return below, f"{number}_below_min_value"
        case "less_than_equal":
            above = (
                f"{number} above maximum value. Expected a value <= {context['le']}, but got {_shown(given)} instead"
            )
            return above, f"{number}_above_max_value"
        case "string_too_short":
            return "empty string. Expected a string with at least 1 character", "empty_string"
        case "string_too_long":
            return (
                f"string too long. Expected a string with maximum length {context['max_length']}, "
                f"but got a string with length {len(given)} instead",
                "string_above_max_length",
            )
        case "too_long":
            return (
                f"too many properties. Expected an object with at most {context['max_length']} properties, "
                f"but got {len(given)} instead",
                "object_above_max_properties",
            )
        case "string_pattern_mismatch":
            return (
                f"string does not match pattern. Expected a string that matches the pattern '{context['pattern']}'",
                "invalid_value",
            )
    return "", "invalid_value"


def _path(error: Mapping[str, Any]) -> str:
    """`method.supervised.hyperparameters.n_epochs`: without pydantic's own marks for union members and keys."""
    parts = [str(part) for part in error["loc"] if part != "[key]"]
    if "hyperparameters" in parts and parts[-1] in ("auto", "number"):
        parts.pop()
    return ".".join(parts)


def _kind(value: Any) -> str:
    """What JSON calls the value."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a decimal"
        case str():
            return "a string"
        case list():
            return "an array"
    return "an object"


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f"'{value}'" if len(value) <= _SHOWN else f"'{value[:_SHOWN]}…'"
    return str(value) if isinstance(value, int | float) else _kind(value)
