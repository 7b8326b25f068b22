"""Tools in text: the one form in which a model sees functions, calls and their results, in training and in serving.

No chat template is trusted with tools; what a template has of its own is not used. `in_text` turns a conversation into
turns of plain text: the functions stand at the end of the system turn, a call is a `<tool_call>` block in its
assistant's content, and results that follow one another are `<tool_response>` blocks of one user turn. The inference
engine holds a model to `call_text`, to the letter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuneway.dataset.messages import Turn, json_text, quoted

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_FUNCTIONS = 128

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_FUNCTION_KEYS = frozenset({"name", "description", "parameters", "strict"})


class InvalidTools(ValueError):
    """Tools that cannot be used. `param` is the path of the field at fault, e.g. `tools[0].function.name`."""

    def __init__(self, reason: str, param: str, code: str = "invalid_value") -> None:
        self.reason = reason
        self.param = param
        self.code = code
        super().__init__(f"Invalid value for '{param}': {reason}")


@dataclass(frozen=True, slots=True)
class Function:
    """One function. `shown` is what the model sees of it: JSON on one line. `param` is its path in the request."""

    name: str
    parameters: Mapping[str, Any] | None
    strict: bool
    shown: str
    param: str


@dataclass(frozen=True, slots=True)
class Tools:
    """`parallel` False: a turn has one call at most."""

    functions: tuple[Function, ...] = ()
    parallel: bool = True


NO_TOOLS = Tools()


def read_tools(value: Mapping[str, Any]) -> Tools:
    """The tools of a chat request or of a training row, by its keys `tools`, `parallel_tool_calls` and `functions`.

    A turn has one call at most under `functions`, whose messages hold one. Raises InvalidTools.
    """
    parallel = value.get("parallel_tool_calls")
    if parallel is not None and not isinstance(parallel, bool):
        raise InvalidTools("Input should be a valid boolean", "parallel_tool_calls", "invalid_type")
    tools, functions = (_dictionaries(value.get(key), key) for key in ("tools", "functions"))
    if tools and functions:
        raise InvalidTools("'functions' is the old name of 'tools'; send one of them", "functions")
    found = [_of_tool(tool, f"tools[{at}]") for at, tool in enumerate(tools)]
    found += [_function(one, f"functions[{at}]") for at, one in enumerate(functions)]
    names: set[str] = set()
    for function in found:
        if function.name in names:
            raise InvalidTools(f"{quoted(function.name)} is the name of an earlier function", f"{function.param}.name")
        names.add(function.name)
    return Tools(tuple(found), parallel is not False and not functions)


def in_text(turns: Sequence[Turn], tools: Tools) -> list[Turn]:
    """The conversation as turns of plain text by system, user and assistant."""
    shown: list[Turn] = []
    results: list[Turn] = []
    for turn in turns:
        if turn.role in ("tool", "function"):
            results.append(turn)
            continue
        shown += _results(results)
        results = []
        if turn.calls:
            blocks = [call_text(call.name, call.arguments) for call in turn.calls]
            turn = replace(turn, content="\n".join([*filter(None, [turn.content]), *blocks]), calls=())
        shown.append(turn)
    shown += _results(results)
    if tools.functions:
        if shown[0].role == "system":
            shown[0] = replace(shown[0], content="\n\n".join(filter(None, [shown[0].content, _listed(tools)])))
        else:
            shown.insert(0, Turn("system", _listed(tools)))
    return shown


def call_text(name: str, arguments: str) -> str:
    """One call in the answer of a model. `arguments` is the JSON text of an object."""
    return f'{OPEN}\n{{"name": {json_text(name)}, "arguments": {arguments}}}\n{CLOSE}'


def _listed(tools: Tools) -> str:
    how = "one block for each call" if tools.parallel else "in one block; one call at a time"
    lines = "\n".join(function.shown for function in tools.functions)
    return (
        f"You can call these functions:\n<tools>\n{lines}\n</tools>\n"
        f"To call a function, write its name and its arguments as JSON, {how}:\n"
        f'{OPEN}\n{{"name": "the name", "arguments": {{}}}}\n{CLOSE}'
    )


def _results(turns: Sequence[Turn]) -> list[Turn]:
    """One user turn. Ids mean nothing to a model, so results stand in the order of the calls that they answer."""
    if not turns:
        return []
    ordered = sorted(turns, key=lambda turn: turn.answers)
    return [Turn("user", "\n".join(f"<tool_response>\n{turn.content}\n</tool_response>" for turn in ordered))]


def _dictionaries(value: Any, param: str) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise InvalidTools("Input should be a valid list of dictionaries", param, "invalid_type")
    if len(value) > MAX_FUNCTIONS:
        raise InvalidTools(f"List should have at most {MAX_FUNCTIONS} items", param, "array_above_max_length")
    return value


def _of_tool(tool: Mapping[str, Any], param: str) -> Function:
    kind = tool.get("type")
    if not isinstance(kind, str):
        raise InvalidTools("Input should be 'function'", f"{param}.type", "invalid_type")
    if kind != "function":
        raise InvalidTools("Only tools of type 'function' are supported", f"{param}.type", "unsupported_value")
    _refuse_extra(tool, frozenset({"type", "function"}), param)
    function = tool.get("function")
    if not isinstance(function, dict):
        raise InvalidTools("Input should be a valid dictionary", f"{param}.function", "invalid_type")
    return _function(function, f"{param}.function")


def _function(value: Mapping[str, Any], param: str) -> Function:
    _refuse_extra(value, _FUNCTION_KEYS, param)
    name, description, parameters, strict = map(value.get, ("name", "description", "parameters", "strict"))
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        reason = "Input should be a string of 1 to 64 letters, digits, underscores and dashes"
        raise InvalidTools(reason, f"{param}.name")
    for key, wrong, expected in (
        ("description", description is not None and not isinstance(description, str), "string"),
        ("parameters", parameters is not None and not isinstance(parameters, dict), "dictionary"),
        ("strict", strict is not None and not isinstance(strict, bool), "boolean"),
    ):
        if wrong:
            raise InvalidTools(f"Input should be a valid {expected}", f"{param}.{key}", "invalid_type")
    shown = {"name": name, "description": description, "parameters": parameters}
    try:
        text = json_text({key: item for key, item in shown.items() if item is not None})
    except (ValueError, RecursionError):
        reason = "It holds a lone surrogate, a number that is too large, or too many levels"
        raise InvalidTools(reason, param) from None
    return Function(name, parameters, bool(strict), text, param)


def _refuse_extra(value: Mapping[str, Any], known: frozenset[str], param: str) -> None:
    for key in value:
        if key not in known:
            reason = f"contains an extra {quoted(key)}; known are {', '.join(sorted(known))}"
            raise InvalidTools(reason, param, "unknown_parameter")
