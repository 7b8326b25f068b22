"""A chat request: OpenAI's fields, checked one by one. Nothing is dropped in silence.

A field is done, refused by name with a 400, or accepted without effect and then listed in `ChatRequest.ignored`.
Messages are checked by the renderer. null means "not set" where OpenAI's description has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from tuneway.dataset.tools import Tools
from tuneway.errors import InvalidRequest, UnknownField
from tuneway.inference import form
from tuneway.inference.fields import (
    Check,
    array,
    boolean,
    either,
    fields,
    integer,
    json_object,
    number,
    one_of,
    optional,
    string,
    wrong_type,
)


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
    tools: Tools
    form: form.Form
    ignored: tuple[str, ...]


def parse(body: bytes, vocab_size: int) -> ChatRequest:
    """Raises InvalidRequest or UnknownField, naming the field at fault."""
    given = _json_object(body)
    for name in _NEVER_NULL:
        if given.get(name, ...) is None:
            wrong_type(name, "a value", None)
    for name in given:
        if name not in _FIELDS and name not in _IGNORED and name not in form.FIELDS:
            raise UnknownField(f"Unknown parameter: '{name}'. Remove it and send the request again.", param=name)
    sent = {name: value for name, value in given.items() if value is not None}
    for name in ("messages", "model"):
        if name not in sent:
            raise InvalidRequest(
                f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
            )
    values: dict[str, Any] = {}
    ignored = []
    for name, value in sent.items():
        if name in _IGNORED:
            _IGNORED[name](value, name)
            ignored.append(name)
        elif name in _FIELDS:
            values[name] = _FIELDS[name](value, name)
    if set(values.get("modalities", ())) - {"text"}:
        _unsupported("modalities")
    ignored += [name for name in ("modalities",) if name in values]
    # Kept with a stored completion, which is the gateway's to do; otherwise nobody sees it.
    ignored += ["metadata"] * bool(values.get("metadata") and not values.get("store"))
    options = values.get("stream_options", {})
    ignored += ["stream_options.include_obfuscation"] * options.get("include_obfuscation", False)
    tools, answer_form, without_effect = form.read_form({name: sent[name] for name in form.FIELDS if name in sent})
    ignored += without_effect
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
        tools=tools,
        form=answer_form,
        ignored=tuple(ignored),
    )


# --------------------------------------------------------------------------------------------------- one field each


def _stop(value: Any, param: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        wrong_type(param, "a string or a list of strings", value)
    array(value, param, at_least=1)
    if len(value) > 4:
        raise InvalidRequest(
            f"Invalid '{param}': at most 4 sequences are possible.", param=param, code="array_too_long"
        )
    stops = tuple(string(stop, f"{param}[{at}]") for at, stop in enumerate(value))
    for at, stop in enumerate(stops):
        if not stop.isascii() and any("\ud800" <= letter <= "\udfff" for letter in stop):
            raise InvalidRequest(
                f"'{param}[{at}]' holds a lone surrogate, which is no character.", param=f"{param}[{at}]"
            )
    return tuple(filter(None, stops))


def _modalities(value: Any, param: str) -> tuple[str, ...]:
    return tuple(one_of("text", "audio")(item, f"{param}[{at}]") for at, item in enumerate(array(value, param)))


def _text_parts(value: Any, param: str) -> list[Any]:
    part = fields(("type", "text"), type=one_of("text"), text=string)
    return [part(item, f"{param}[{at}]") for at, item in enumerate(array(value, param, at_least=1))]


def _safety_identifier(value: Any, param: str) -> str:
    if len(string(value, param)) > 64:
        raise InvalidRequest(
            f"Invalid '{param}': at most 64 characters are possible.", param=param, code="string_above_max_length"
        )
    return str(value)


def _metadata(value: Any, param: str) -> dict[str, str]:
    if len(json_object(value, param)) > 16:
        raise InvalidRequest(f"'{param}' can have at most 16 pairs.", param=param, code="object_above_max_properties")
    return {key: string(item, f"{param}.{key}") for key, item in value.items()}


def _stream_options(value: Any, param: str) -> dict[str, bool]:
    for name in json_object(value, param):
        if name not in ("include_usage", "include_obfuscation"):
            raise UnknownField(f"Unknown parameter: '{param}.{name}'.", param=f"{param}.{name}")
    return {name: boolean(item, f"{param}.{name}") for name, item in value.items()}


def _logit_bias(value: Any, param: str) -> dict[str, int]:
    return {token: integer(-100, 100)(bias, f"{param}.{token}") for token, bias in json_object(value, param).items()}


_FIELDS: Mapping[str, Check] = {
    "model": string,
    "messages": array,
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "logit_bias": _logit_bias,
    "seed": integer(-(2**63), 2**63 - 1),
    "n": integer(1, 128),
    "max_tokens": integer(0, 2**31 - 1),
    "max_completion_tokens": integer(0, 2**31 - 1),
    "stop": _stop,
    "logprobs": boolean,
    "top_logprobs": integer(0, 20),
    "stream": boolean,
    "stream_options": _stream_options,
    "modalities": _modalities,
    "user": string,
    "safety_identifier": _safety_identifier,
    "metadata": _metadata,
    "store": boolean,
}
# Checked all the same: what OpenAI would refuse is a mistake here as well.
_IGNORED: Mapping[str, Check] = {
    "service_tier": one_of("auto", "default", "flex", "scale", "priority", "fast"),
    "prediction": fields(
        ("type", "content"), type=one_of("content"), content=either((list, _text_parts), (str, string))
    ),
    "prompt_cache_key": string,
    "prompt_cache_options": fields(ttl=one_of("30m"), mode=one_of("implicit", "explicit")),
    "prompt_cache_retention": one_of("in_memory", "24h"),
    "verbosity": one_of("low", "medium", "high"),
    "reasoning_effort": one_of("none", "minimal", "low", "medium", "high", "xhigh", "max"),
    "moderation": fields(("model",), model=string, policy=optional(json_object)),
    "web_search_options": fields(
        search_context_size=one_of("low", "medium", "high"),
        user_location=optional(
            fields(
                ("type", "approximate"),
                type=one_of("approximate"),
                approximate=fields(country=string, region=string, city=string, timezone=string),
            )
        ),
    ),
    "audio": fields(
        ("voice", "format"),
        voice=either((dict, fields(("id",), id=string)), (str, string)),
        format=one_of("wav", "aac", "mp3", "flac", "opus", "pcm16"),
    ),
}
_NEVER_NULL = ("model", "messages", "user", "prompt_cache_options", "web_search_options", *form.FIELDS)


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
        if not (token.isascii() and token.isdigit() and len(token) <= 10 and int(token) < vocab_size):
            raise InvalidRequest(
                f"Invalid key in 'logit_bias': {token[:40]!r} is no token id of this model (0 to {vocab_size - 1}).",
                param="logit_bias",
                code="invalid_value",
            )
        found[int(token)] = bias
    return found


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
