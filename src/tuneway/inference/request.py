"""A chat request: OpenAI's fields, checked one by one (OPENAI.md 1.6). Nothing is dropped in silence.

A field is done, refused by name with a 400, or accepted without effect and then listed in `ChatRequest.ignored`.
Messages are checked by the renderer. null means "not set" for every optional field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from tuneway.errors import InvalidRequest, UnknownField


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """`max_tokens` None: as many as the context has room for. `top_logprobs` None: no log-probabilities at all."""

    messages: Sequence[Any]
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    n: int
    max_tokens: int | None
    stop: tuple[str, ...]
    top_logprobs: int | None
    stream: bool
    include_usage: bool
    ignored: tuple[str, ...]


def parse(body: bytes, vocab_size: int) -> ChatRequest:
    """Raises InvalidRequest or UnknownField, naming the field at fault."""
    sent = {name: value for name, value in _json_object(body).items() if value is not None}
    for name in ("messages", "model"):
        if name not in sent:
            raise InvalidRequest(
                f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
            )
    values: dict[str, Any] = {}
    ignored = []
    for name, value in sent.items():
        if name in _UNSUPPORTED:
            _unsupported(name)
        elif name in _IGNORED:
            ignored.append(name)
        elif name in _FIELDS:
            values[name] = _FIELDS[name](value, name)
        else:
            raise UnknownField(f"Unknown parameter: '{name}'. Remove it and send the request again.", param=name)
    if "audio" in values.get("modalities", ()):
        _unsupported("modalities")
    if values.get("response_format", "text") != "text":
        _unsupported("response_format")
    if values.get("store"):
        ignored.append("store")
    ignored += [name for name in ("modalities",) if name in values]
    options = values.get("stream_options", {})
    ignored += [f"stream_options.{name}" for name in options if name != "include_usage"]
    return ChatRequest(
        messages=sent["messages"],
        temperature=values.get("temperature", 1.0),
        top_p=values.get("top_p", 1.0),
        presence_penalty=values.get("presence_penalty", 0.0),
        frequency_penalty=values.get("frequency_penalty", 0.0),
        logit_bias=_token_bias(values.get("logit_bias", {}), vocab_size),
        seed=values.get("seed"),
        n=values.get("n", 1),
        max_tokens=values.get("max_completion_tokens") or values.get("max_tokens") or None,
        stop=values.get("stop", ()),
        top_logprobs=_top_logprobs(values),
        stream=values.get("stream", False),
        include_usage=options.get("include_usage", False),
        ignored=tuple(ignored),
    )


# --------------------------------------------------------------------------------------------------- one field each

Check = Callable[[Any, str], Any]


def _number(low: float, high: float) -> Check:
    def check(value: Any, param: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            _wrong_type(param, "a number", value)
        if not low <= value <= high:
            raise InvalidRequest(
                f"Invalid '{param}': expected a number from {low} to {high}, but got {value} instead.",
                param=param,
                code="number_above_max_value" if value > high else "number_below_min_value",
            )
        return float(value)

    return check


def _integer(low: int, high: int) -> Check:
    def check(value: Any, param: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            _wrong_type(param, "an integer", value)
        if not low <= value <= high:
            raise InvalidRequest(
                f"Invalid '{param}': expected an integer from {low} to {high}, but got {value} instead.",
                param=param,
                code="integer_above_max_value" if value > high else "integer_below_min_value",
            )
        return value

    return check


def _boolean(value: Any, param: str) -> bool:
    if not isinstance(value, bool):
        _wrong_type(param, "a boolean", value)
    return value


def _string(value: Any, param: str) -> str:
    if not isinstance(value, str):
        _wrong_type(param, "a string", value)
    return value


def _list(value: Any, param: str) -> list[Any]:
    if not isinstance(value, list):
        _wrong_type(param, "a list", value)
    return value


def _object(value: Any, param: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _wrong_type(param, "an object", value)
    return value


def _stop(value: Any, param: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        _wrong_type(param, "a string or a list of strings", value)
    if len(value) > 4:
        raise InvalidRequest(
            f"Invalid '{param}': at most 4 sequences are possible.", param=param, code="array_too_long"
        )
    stops = tuple(_string(stop, f"{param}[{at}]") for at, stop in enumerate(value))
    for at, stop in enumerate(stops):
        if not stop.isascii() and any("\ud800" <= letter <= "\udfff" for letter in stop):
            raise InvalidRequest(
                f"'{param}[{at}]' holds a lone surrogate, which is no character.", param=f"{param}[{at}]"
            )
    return tuple(filter(None, stops))


def _strings(value: Any, param: str) -> tuple[str, ...]:
    return tuple(_string(item, f"{param}[{at}]") for at, item in enumerate(_list(value, param)))


def _metadata(value: Any, param: str) -> dict[str, str]:
    if len(_object(value, param)) > 16:
        raise InvalidRequest(f"'{param}' can have at most 16 pairs.", param=param, code="object_above_max_properties")
    return {key: _string(item, f"{param}.{key}") for key, item in value.items()}


def _stream_options(value: Any, param: str) -> dict[str, bool]:
    for name in _object(value, param):
        if name not in ("include_usage", "include_obfuscation"):
            raise UnknownField(f"Unknown parameter: '{param}.{name}'.", param=f"{param}.{name}")
    return {name: _boolean(item, f"{param}.{name}") for name, item in value.items() if item is not None}


def _format(value: Any, param: str) -> str:
    return _string(_object(value, param).get("type"), f"{param}.type")


def _logit_bias(value: Any, param: str) -> dict[str, float]:
    return {token: _number(-100, 100)(bias, f"{param}.{token}") for token, bias in _object(value, param).items()}


_FIELDS: Mapping[str, Check] = {
    "model": _string,
    "messages": _list,
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "logit_bias": _logit_bias,
    "seed": _integer(-(2**63), 2**63 - 1),
    "n": _integer(1, 128),
    "max_tokens": _integer(0, 2**31 - 1),
    "max_completion_tokens": _integer(0, 2**31 - 1),
    "stop": _stop,
    "logprobs": _boolean,
    "top_logprobs": _integer(0, 20),
    "stream": _boolean,
    "stream_options": _stream_options,
    "response_format": _format,
    "modalities": _strings,
    "user": _string,
    "safety_identifier": _string,
    "metadata": _metadata,
    "store": _boolean,
}
_IGNORED = frozenset(
    {
        "service_tier",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "verbosity",
        "reasoning_effort",
        "moderation",
        "web_search_options",
        "audio",
    }
)
_UNSUPPORTED = frozenset({"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"})


# ------------------------------------------------------------------------------------------------ fields in relation


def _top_logprobs(values: Mapping[str, Any]) -> int | None:
    wanted: int = values.get("top_logprobs", 0)
    if values.get("logprobs"):
        return wanted
    if wanted:
        raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", param="top_logprobs", code="unsupported_value")
    return None


def _token_bias(biases: Mapping[str, float], vocab_size: int) -> dict[int, float]:
    found = {}
    for token, bias in biases.items():
        if bias == 0:
            continue
        if not (token.isascii() and token.isdigit() and int(token) < vocab_size):
            raise InvalidRequest(
                f"Invalid key in 'logit_bias': {token[:40]!r} is no token id of this model (0 to {vocab_size - 1}).",
                param="logit_bias",
                code="invalid_value",
            )
        found[int(token)] = bias
    return found


def _wrong_type(param: str, expected: str, value: Any) -> NoReturn:
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a number",
    }
    got = names.get(type(value), "null")
    raise InvalidRequest(
        f"Invalid type for '{param}': expected {expected}, but got {got} instead.", param=param, code="invalid_type"
    )


def _unsupported(param: str) -> NoReturn:
    raise InvalidRequest(
        f"Unsupported parameter: '{param}' has an effect that this model's engine cannot give yet. Leave it out.",
        param=param,
        code="unsupported_parameter",
    )


# ------------------------------------------------------------------------------------------------------------- JSON


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidRequest("The JSON body is nested too deeply.") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both
        raise InvalidRequest(f"We could not parse the JSON body of your request: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"The key {twice[:60]!r} stands twice in one object of the JSON body.", param=twice[:60])
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
