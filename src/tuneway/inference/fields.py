"""Checks of single values in a request, in OpenAI's words: each takes the value and its name and gives the value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from tuneway.errors import InvalidRequest

Check = Callable[[Any, str], Any]


def number(low: float, high: float) -> Check:
    def check(value: Any, param: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            wrong_type(param, "a number", value)
        if not low <= value <= high:
            raise InvalidRequest(
                f"Invalid '{param}': expected a number from {low} to {high}, but got {value} instead.",
                param=param,
                code="number_above_max_value" if value > high else "number_below_min_value",
            )
        return float(value)

    return check


def integer(low: int, high: int) -> Check:
    def check(value: Any, param: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            wrong_type(param, "an integer", value)
        if not low <= value <= high:
            raise InvalidRequest(
                f"Invalid '{param}': expected an integer from {low} to {high}, but got {value} instead.",
                param=param,
                code="integer_above_max_value" if value > high else "integer_below_min_value",
            )
        return value

    return check


def boolean(value: Any, param: str) -> bool:
    if not isinstance(value, bool):
        wrong_type(param, "a boolean", value)
    return value


def string(value: Any, param: str) -> str:
    if not isinstance(value, str):
        wrong_type(param, "a string", value)
    return value


def array(value: Any, param: str, *, at_least: int = 0) -> list[Any]:
    if not isinstance(value, list):
        wrong_type(param, "a list", value)
    if len(value) < at_least:
        raise InvalidRequest(f"Invalid '{param}': an empty list.", param=param, code="empty_array")
    return value


def json_object(value: Any, param: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        wrong_type(param, "an object", value)
    return value


def one_of(*values: str) -> Check:
    def check(value: Any, param: str) -> str:
        if value not in values:
            known = ", ".join(f"'{each}'" for each in values)
            raise InvalidRequest(
                f"Invalid value for '{param}'. Supported values are: {known}.", param=param, code="invalid_value"
            )
        return str(value)

    return check


def either(*kinds: tuple[type, Check]) -> Check:
    """The check of the first kind that the value is; that of the last for any other value."""

    def check(value: Any, param: str) -> Any:
        chosen = next((check for kind, check in kinds if isinstance(value, kind)), kinds[-1][1])
        return chosen(value, param)

    return check


def fields(required: tuple[str, ...] = (), /, **known: Check) -> Check:
    """An object with these fields; others are as they are."""

    def check(value: Any, param: str) -> dict[str, Any]:
        for name in required:
            if name not in json_object(value, param):
                raise InvalidRequest(
                    f"Missing required parameter: '{param}.{name}'.",
                    param=f"{param}.{name}",
                    code="missing_required_parameter",
                )
        given = json_object(value, param).items()
        return {name: known[name](item, f"{param}.{name}") if name in known else item for name, item in given}

    return check


def optional(check: Check) -> Check:
    return lambda value, param: None if value is None else check(value, param)


def wrong_type(param: str, expected: str, value: Any) -> NoReturn:
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
