"""JSON Schemas of clients: bounded, cut down to what a grammar enforces, and what was cut is said.

The grammars are those of llguidance, which xllamacpp's llama.cpp is built with. It takes no notice of a keyword that
it does not know, refuses some that it does, and lets `x-guidance` change how it works; so it gets only what is listed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from tuneway.errors import InvalidRequest

MAX_CHARACTERS = 100_000
MAX_DEPTH = 32
MAX_NODES = 2_000
"""Schemas within one schema. The time to compile a grammar grows with the square of an object's properties."""
_MAX_NAMED = 20

_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_ONES = frozenset({"items", "additionalProperties"})
_VALUES = frozenset({"type", "enum", "const", "required", "pattern", "minLength", "maxLength", "minItems", "maxItems"})
_VALUES |= {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_VALUES |= {"minProperties", "maxProperties"}
_COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
MAX_COUNT = 10_000
"""llama.cpp built an array of 10**9 items in memory, all 22 GB that there were, for a grammar that compiles at once."""
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
_ANNOTATIONS = frozenset(
    {"title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly"}
)
_ANNOTATIONS |= {"$schema", "$id", "$comment", "discriminator"}


@dataclass(frozen=True, slots=True)
class Source:
    """Whose schema it is. `param` is its path in the request and `whose` its name in messages: `function 'f'`."""

    param: str
    whose: str
    code: str
    strict: bool

    def refuse(self, reason: str) -> NoReturn:
        raise InvalidRequest(f"Invalid schema for {self.whose}: {reason}", param=self.param, code=self.code)


def enforceable(schema: Mapping[str, Any], source: Source) -> tuple[dict[str, Any], list[str]]:
    """`schema` without what a grammar cannot enforce, and the paths of the keywords that were left out.

    Annotations are left out silently: they say nothing of what is valid. A strict schema must follow OpenAI's rules
    for strict schemas. Raises InvalidRequest.
    """
    try:
        size = len(json.dumps(schema, allow_nan=False))
    except (ValueError, RecursionError):
        source.refuse("it has too many levels, or a number that is too large.")
    if size > MAX_CHARACTERS:
        source.refuse(f"it has {size:,} characters; at most {MAX_CHARACTERS:,} are possible.")
    walk = _Walk(source)
    found = walk.object(schema, ())
    if source.strict and found.get("type") != "object":
        source.refuse(f"schema must be a JSON Schema of 'type: \"object\"', got {json.dumps(found.get('type'))[:60]}.")
    named = [f"{source.param}.{json.dumps(keyword)[1:-1][:60]}" for keyword in walk.left_out]
    return found, named[:_MAX_NAMED] + [f"{source.param}.*"] * (len(named) > _MAX_NAMED)


class _Walk:
    def __init__(self, source: Source) -> None:
        self.left_out: dict[str, None] = {}
        self._source = source
        self._nodes = 0

    def object(self, schema: Mapping[str, Any], at: tuple[str, ...]) -> dict[str, Any]:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._source.refuse(f"it holds more than {MAX_NODES:,} schemas.")
        if len(at) > 2 * MAX_DEPTH:
            self._source.refuse(f"it has more than {MAX_DEPTH} levels.")
        if self._source.strict:
            self._check_strict(schema, at)
        found: dict[str, Any] = {}
        for keyword, value in schema.items():
            if keyword in _COUNTS and isinstance(value, int | float) and value > MAX_COUNT:
                self._refuse(at, f"{keyword!r} is {value}, and at most {MAX_COUNT:,} is possible")
            if keyword in _MAPS:
                found[keyword] = self._map(value, (*at, keyword))
            elif keyword in _LISTS or (keyword == "items" and isinstance(value, list)):
                # A list of `items` is how drafts before 2020 wrote `prefixItems`.
                found["prefixItems" if keyword == "items" else keyword] = self._list(value, (*at, keyword))
            elif keyword in _ONES:
                found[keyword] = self._one(value, (*at, keyword))
            elif keyword in _VALUES or (keyword == "format" and isinstance(value, str) and value in _FORMATS):
                found[keyword] = value
            elif keyword == "$ref":
                if not isinstance(value, str) or not value.startswith("#"):
                    self._refuse(at, "'$ref' must point into the schema itself ('#/$defs/…')")
                found[keyword] = value
            elif keyword not in _ANNOTATIONS:
                if self._source.strict:
                    self._refuse(at, f"{json.dumps(keyword)[1:-1][:60]!r} is not permitted")
                self.left_out[keyword] = None
        return found

    def _one(self, value: Any, at: tuple[str, ...]) -> Any:
        if isinstance(value, bool):
            return value
        if not isinstance(value, dict):
            self._refuse(at, "a schema must be an object or a boolean")
        return self.object(value, at)

    def _map(self, value: Any, at: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._refuse(at, "it must be an object")
        return {name: self._one(item, (*at, name)) for name, item in value.items()}

    def _list(self, value: Any, at: tuple[str, ...]) -> list[Any]:
        if not isinstance(value, list):
            self._refuse(at, "it must be a list")
        return [self._one(item, (*at, str(number))) for number, item in enumerate(value)]

    def _check_strict(self, schema: Mapping[str, Any], at: tuple[str, ...]) -> None:
        kind, properties = schema.get("type"), schema.get("properties")
        if kind != "object" and not (isinstance(kind, list) and "object" in kind) and properties is None:
            return
        if schema.get("additionalProperties") is not False:
            self._refuse(at, "'additionalProperties' is required to be supplied and to be false")
        required = schema.get("required") or []
        for name in properties if isinstance(properties, dict) else ():
            if not isinstance(required, list) or name not in required:
                complaint = "'required' is required to be supplied and to be an array including every key in properties"
                self._refuse(at, f"{complaint}. Missing {name[:60]!r}")

    def _refuse(self, at: tuple[str, ...], reason: str) -> NoReturn:
        self._source.refuse(f"In context={str(at)[:200]}, {reason}.")
