"""What a body may hold, as small checks. Each raises `Refused` in OpenAI's words, naming the first wrong thing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.simulators.base import Refused

Check = Callable[[Any, str], None]

NAMES = {
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    str: "a string",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def wrong_type(value: Any, path: str, expected: str) -> Refused:
    message = f"Invalid type for '{path}': expected {expected}, but got {NAMES[type(value)]} instead."
    return Refused(400, message, param=path, code="invalid_type")


def out_of_range(value: Any, path: str, expected: str, code: str) -> Refused:
    return Refused(400, f"Invalid '{path}': expected {expected}, but got {value} instead.", param=path, code=code)


def anything(value: Any, path: str) -> None:
    pass


def text(least: int = 0, most: int | None = None, pattern: str | None = None) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, str):
            raise wrong_type(value, path, "a string")
        if len(value) < least:
            raise out_of_range(len(value), path, f"a length of at least {least}", "string_below_min_length")
        if most is not None and len(value) > most:
            message = f"Invalid '{path}': string too long. Expected a string with maximum length {most}, "
            message += f"but got a string with length {len(value)} instead."
            raise Refused(400, message, param=path, code="string_above_max_length")
        if pattern is not None and not re.fullmatch(pattern, value):
            raise Refused(400, f"Invalid '{path}': must match {pattern}.", param=path, code="invalid_value")

    return check


def choice(*values: str) -> Check:
    def check(value: Any, path: str) -> None:
        if value not in values:
            supported = ", ".join(f"'{value}'" for value in values)
            message = f"Invalid value: '{value}'. Supported values are: {supported}."
            raise Refused(400, message, param=path, code="invalid_value")

    return check


def boolean(value: Any, path: str) -> None:
    if not isinstance(value, bool):
        raise wrong_type(value, path, "a boolean")


def integer(least: int | None = None, most: int | None = None) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            raise wrong_type(value, path, "an integer")
        bounds(value, path, "integer", least, most)

    return check


def number(least: float | None = None, most: float | None = None, above: float | None = None) -> Check:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise wrong_type(value, path, "a decimal")
        if above is not None and value <= above:
            raise out_of_range(value, path, f"a value > {above}", "decimal_below_min_value")
        bounds(value, path, "decimal", least, most)

    return check


def bounds(value: float, path: str, kind: str, least: float | None, most: float | None) -> None:
    if least is not None and value < least:
        raise out_of_range(value, path, f"a value >= {least}", f"{kind}_below_min_value")
    if most is not None and value > most:
        raise out_of_range(value, path, f"a value <= {most}", f"{kind}_above_max_value")


def auto(check: Check) -> Check:
    return lambda value, path: None if value == "auto" else check(value, path)


def nullable(check: Check) -> Check:
    return lambda value, path: None if value is None else check(value, path)


def text_or(check: Check) -> Check:
    return lambda value, path: None if isinstance(value, str) else check(value, path)


def items(check: Check, least: int = 0, most: int | None = None) -> Check:
    def each(value: Any, path: str) -> None:
        if not isinstance(value, list):
            raise wrong_type(value, path, "an array")
        if len(value) < least:
            raise out_of_range(len(value), path, f"at least {least} items", "array_below_min_length")
        if most is not None and len(value) > most:
            raise out_of_range(len(value), path, f"at most {most} items", "array_above_max_length")
        for at, item in enumerate(value):
            check(item, f"{path}[{at}]")

    return each


def mapping(check: Check, most: int | None = None, key: Check = anything) -> Check:
    def each(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise wrong_type(value, path, "an object")
        if most is not None and len(value) > most:
            raise out_of_range(len(value), path, f"at most {most} properties", "object_above_max_properties")
        for name, item in value.items():
            key(name, path)
            check(item, f"{path}.{name}")

    return each


def fields(table: Mapping[str, Check], required: Sequence[str] = (), *, closed: bool = True) -> Check:
    def each(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise wrong_type(value, path, "an object")
        start = f"{path}." if path else ""
        for name in value:
            if name not in table and closed:
                message = f"Unknown parameter: '{start}{name}'."
                if not path:
                    message = f"Unrecognized request argument supplied: {name}"
                raise Refused(400, message, param=f"{path}.{name}" if path else None, code="unknown_parameter")
        for name in required:
            if name not in value:
                message = f"Missing required parameter: '{start}{name}'."
                raise Refused(400, message, param=f"{start}{name}", code="missing_required_parameter")
        for name, item in value.items():
            if name in table:
                table[name](item, f"{start}{name}")

    return each


def tagged(name: str, kinds: Mapping[str, Check]) -> Check:
    """An object whose field `name` says which check is its own."""

    def check(value: Any, path: str) -> None:
        fields({name: choice(*kinds)}, [name], closed=False)(value, path)
        kinds[value[name]](value, path)

    return check
