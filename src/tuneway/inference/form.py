"""The form that a request asks of its answer: `response_format`, `tools`, `tool_choice` and their old names.

From them comes what the model sees (`Tools`), the grammar that holds it to the form, and how its text is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from tuneway.dataset.tools import NO_TOOLS, Function, InvalidTools, Tools, read_tools
from tuneway.errors import InvalidRequest
from tuneway.inference.grammar import Trial, calls_grammar, json_grammar
from tuneway.inference.schema import Source, enforceable

FIELDS = frozenset({"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "response_format"})

_FORMAT_KEYS: Mapping[str, frozenset[str]] = {
    "text": frozenset({"type"}),
    "json_object": frozenset({"type"}),
    "json_schema": frozenset({"type", "json_schema"}),
}
_SCHEMA_KEYS = frozenset({"name", "description", "schema", "strict"})
_ANY_OBJECT = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Form:
    """`grammar` None: any text. `finish_reason` is that of an answer which ends after its calls."""

    grammar: str | None = None
    json: bool = False
    """Text, where there is any, is one JSON value."""
    calls: bool = False
    """The answer is read for calls."""
    must_call: bool = False
    legacy: bool = False
    finish_reason: str = "tool_calls"
    trials: tuple[tuple[Source, str], ...] = ()
    """Each schema by itself, so that the one at fault can be named."""

    async def check(self, trial: Trial) -> None:
        """Raises InvalidRequest when the grammar cannot be used."""
        if self.grammar is None:
            return
        fault = await trial.fault([*(grammar for _, grammar in self.trials), self.grammar])
        if fault is None:
            return
        at, reason = fault
        # The compiler's message begins with a place in the grammar and goes on with an excerpt of it.
        detail = re.search(r"^error: (.+)$", reason, re.MULTILINE)
        reason = re.sub(r"^at \d+\(\d+\): (failed to compile JSON schema: )?", "", reason.partition("\n")[0])
        if "oneOf" in reason:
            reason = "'oneOf' needs schemas of which no value fits two; use 'anyOf'"
        reason = (f"{reason} {detail[1]}" if detail else reason)[:300].rstrip(".")
        if at < len(self.trials):
            self.trials[at][0].refuse(f"{reason}.")
        message = f"The schemas cannot be held to together: {reason}. Send fewer or smaller ones."
        param = "tools" if self.calls else "response_format"
        raise InvalidRequest(message, param=param, code="invalid_value")


@dataclass(frozen=True, slots=True)
class _Choice:
    """Which functions may be called; none of them: no call is possible."""

    functions: tuple[Function, ...]
    required: bool = False
    named: bool = False


def read_form(sent: Mapping[str, Any]) -> tuple[Tools, Form, list[str]]:
    """The tools that the model sees, the form, and the paths of what has no effect. `sent` holds fields of `FIELDS`.

    Raises InvalidRequest.
    """
    tools, choice, ignored = _tools_and_choice(sent)
    response = _response_schema(sent.get("response_format"), ignored)
    source, schema = response or (None, None)
    trials = [] if source is None or schema is None else [(source, json_grammar(schema))]
    if not choice.functions:
        form = Form() if schema is None else Form(json_grammar(schema), json=True, trials=tuple(trials))
        return tools, form, ignored
    functions = {}
    for function in choice.functions:
        source, arguments = _arguments(function, ignored)
        functions[function.name] = arguments
        trials.append((source, json_grammar(arguments)))
    grammar = calls_grammar(
        functions, many=tools.parallel and not choice.named, required=choice.required, otherwise=schema
    )
    legacy = bool(sent.get("functions"))
    form = Form(
        grammar,
        json=schema is not None,
        calls=True,
        must_call=choice.required,
        legacy=legacy,
        finish_reason="function_call" if legacy else "stop" if choice.named else "tool_calls",
        trials=tuple(trials),
    )
    return tools, form, ignored


# ------------------------------------------------------------------------------------------------------------- choices


def _tools_and_choice(sent: Mapping[str, Any]) -> tuple[Tools, _Choice, list[str]]:
    ignored = []
    if sent.get("tools") and "functions" in sent:
        if sent.get("tool_choice") != "none" or sent.get("function_call") != "none":
            _refuse("'functions' is the old name of 'tools'; send one of them.", "functions")
        _read(sent, "functions")
        sent = {name: value for name, value in sent.items() if name not in ("functions", "function_call")}
        ignored += ["functions", "function_call"]
    if sent.get("functions") == []:
        _refuse("'functions' is empty; leave it out or give at least one.", "functions", "empty_array")
    tools = _read(sent, "tools", "functions", "parallel_tool_calls")
    legacy = bool(sent.get("functions"))
    for name, belongs in (("tool_choice", tools.functions and not legacy), ("function_call", legacy)):
        if name in sent and not belongs:
            whole = "tools" if name == "tool_choice" else "functions"
            _refuse(f"'{name}' is only allowed when '{whole}' are specified.", name)
    if "parallel_tool_calls" in sent and (legacy or not tools.functions):
        ignored.append("parallel_tool_calls")
    if not tools.functions:
        return NO_TOOLS, _Choice(()), ignored
    choose = _function_call if legacy else _tool_choice
    return tools, choose(sent.get("function_call" if legacy else "tool_choice", "auto"), tools), ignored


def _read(sent: Mapping[str, Any], *names: str) -> Tools:
    try:
        return read_tools({name: sent[name] for name in names if name in sent})
    except InvalidTools as error:
        raise InvalidRequest(str(error), param=error.param, code=error.code) from None


def _tool_choice(choice: Any, tools: Tools) -> _Choice:
    param = "tool_choice"
    match choice:
        case "none":
            return _Choice(())
        case "auto":
            return _Choice(tools.functions)
        case "required":
            return _Choice(tools.functions, required=True)
        case {"type": "function", "function": {"name": str(name), **extra}, **more} if not extra and not more:
            return _Choice((_named(name, tools, param),), required=True, named=True)
        case {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(allowed), **extra}, **more} if (
            mode in ("auto", "required") and not extra and not more
        ):
            names = []
            for tool in allowed:
                match tool:
                    case {"type": "function", "function": {"name": str(name)}}:
                        names.append(_named(name, tools, param).name)
                    case _:
                        _refuse("'tool_choice.allowed_tools.tools' must name tools of type 'function'.", param)
            if not names:
                _refuse("'tool_choice.allowed_tools.tools' is empty; use 'none' to forbid all calls.", param)
            functions = tuple(function for function in tools.functions if function.name in names)
            return _Choice(functions, required=mode == "required")
    _refuse(
        "'tool_choice' must be 'none', 'auto', 'required', {\"type\": \"function\", \"function\": {\"name\": …}} or "
        '{"type": "allowed_tools", "allowed_tools": {"mode": \'auto\' or \'required\', "tools": […]}}.',
        param,
    )


def _function_call(choice: Any, tools: Tools) -> _Choice:
    match choice:
        case "none":
            return _Choice(())
        case "auto":
            return _Choice(tools.functions)
        case {"name": str(name), **extra} if not extra:
            return _Choice((_named(name, tools, "function_call"),), required=True)
    _refuse("'function_call' must be 'none', 'auto' or {\"name\": …}.", "function_call")


def _named(name: str, tools: Tools, param: str) -> Function:
    for function in tools.functions:
        if function.name == name:
            return function
    _refuse(f"'{param}' names {name[:64]!r}, which is none of the tools that were sent.", param)


# ------------------------------------------------------------------------------------------------------------- schemas


def _arguments(function: Function, ignored: list[str]) -> tuple[Source, dict[str, Any]]:
    whose = f"function '{function.name}'"
    source = Source(f"{function.param}.parameters", whose, "invalid_function_parameters", function.strict)
    sent = function.parameters
    if sent is None:
        if function.strict:
            source.refuse("In context=(), 'additionalProperties' is required to be supplied and to be false.")
        return source, {"type": "object", "properties": {}, "additionalProperties": False}
    if sent.get("type", "object") != "object":
        source.refuse(f"schema must be a JSON Schema of 'type: \"object\"', got {str(sent['type'])[:60]!r}.")
    schema, left_out = enforceable({"type": "object", **sent}, source)
    ignored += left_out
    return source, schema


def _response_schema(value: Any, ignored: list[str]) -> tuple[Source, dict[str, Any]] | None:
    param = "response_format"
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(kind, str):
        _refuse("'response_format' must be an object with a 'type'.", param, "invalid_type")
    if kind not in _FORMAT_KEYS:
        _refuse(f"'response_format.type' must be one of {', '.join(_FORMAT_KEYS)}.", f"{param}.type")
    _refuse_extra(value, _FORMAT_KEYS[kind], param)
    if kind == "text":
        return None
    whole = Source(param, "response_format", "invalid_json_schema", strict=False)
    return (whole, _ANY_OBJECT) if kind == "json_object" else _json_schema(value.get("json_schema"), ignored)


def _json_schema(value: Any, ignored: list[str]) -> tuple[Source, dict[str, Any]]:
    param = "response_format.json_schema"
    if not isinstance(value, dict):
        code = "missing_required_parameter" if value is None else "invalid_type"
        _refuse(f"'{param}' must be an object with a 'name' and a 'schema'.", param, code)
    _refuse_extra(value, _SCHEMA_KEYS, param)
    name, description, schema, strict = map(value.get, ("name", "description", "schema", "strict"))
    if name is None:
        _refuse(f"Missing required parameter: '{param}.name'.", f"{param}.name", "missing_required_parameter")
    if not isinstance(name, str) or not re.fullmatch("[a-zA-Z0-9_-]{1,64}", name):
        _refuse(f"'{param}.name' must have 1 to 64 letters, digits, underscores and dashes.", f"{param}.name")
    for key, item, kind in (("description", description, str), ("schema", schema, dict), ("strict", strict, bool)):
        if item is not None and not isinstance(item, kind):
            shown = {str: "a string", dict: "an object", bool: "a boolean"}[kind]
            _refuse(f"Invalid type for '{param}.{key}': expected {shown}.", f"{param}.{key}", "invalid_type")
    if description is not None:
        ignored.append(f"{param}.description")  # no model sees it
    source = Source(f"{param}.schema", f"response_format '{name}'", "invalid_json_schema", bool(strict))
    found, left_out = enforceable(_ANY_OBJECT if schema is None else schema, source)
    ignored += left_out
    return source, found


def _refuse_extra(value: Mapping[str, Any], known: frozenset[str], param: str) -> None:
    for key in value:
        if key not in known:
            _refuse(f"Unknown parameter: '{param}.{key[:60]}'.", f"{param}.{key[:60]}", "unknown_parameter")


def _refuse(message: str, param: str, code: str = "invalid_value") -> NoReturn:
    raise InvalidRequest(message, param=param, code=code)
