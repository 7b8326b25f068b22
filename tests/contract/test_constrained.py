"""Tools and structured output as llama.cpp is held to them, with a model that knows nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer

from tests.contract.test_inference import MESSAGES, Child, start, stop
from tests.contract.test_tool_calls import G_CALL, NAMED, PARAMETERS, F, G, calls_of
from tests.tiny_prepared import prepare_tiny
from tuneway.dataset.tools import call_text
from tuneway.inference.form import read_form
from tuneway.inference.grammar import MAX_CALLS, ending


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    child = start(prepare_tiny(tmp_path_factory.mktemp("base")), {})
    yield child
    stop(child)


def json_schema(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}


def closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SHORT = {"type": "string", "maxLength": 4}
SCHEMAS: dict[str, Any] = {
    "nested": closed(a=closed(b={"type": "boolean"}, c={"type": "null"}), d={"const": [1, "é"]}),
    "enum": {"enum": ["red", 2, None, {"x": [1]}]},
    "array": {
        "type": "array",
        "items": {"type": "integer", "minimum": -5, "maximum": 17},
        "minItems": 1,
        "maxItems": 4,
    },
    "number": {"type": "integer", "minimum": 0, "maximum": 1000, "multipleOf": 7},
    "required": {
        "type": "object",
        "properties": {"b": {"type": "boolean"}, "a": {"type": "null"}},
        "required": ["a"],
        "additionalProperties": False,
    },
    "anyOf": closed(v={"anyOf": [{"type": "boolean"}, {"type": "number", "exclusiveMinimum": 2, "maximum": 3}]}),
    "recursive": {
        "$ref": "#/$defs/n",
        "$defs": {"n": closed(k={"enum": ["x", "y"]}, n={"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]})},
    },
    "unicode": closed(**{'größe "ü"\n': {"type": "boolean"}, "🧿": {"const": "é"}}),
    "strings": closed(s=SHORT, p={"type": "string", "pattern": "^[a-c]{2,4}$"}, d={"type": "string", "format": "date"}),
    "tagged": {"oneOf": [closed(t={"const": "a"}), closed(t={"const": "b"}, n={"type": "integer", "maximum": 9})]},
}


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_an_answer_is_valid_for_its_schema(child: Child, schema: Any) -> None:
    complete = 0
    for seed in range(6):
        form = json_schema(schema)
        answer = child.post(response_format=form, temperature=1, seed=seed, max_tokens=150).json()["choices"][0]
        if answer["finish_reason"] == "stop":
            complete += 1
            value = json.loads(answer["message"]["content"])
            jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())
            if isinstance(value, dict) and "properties" in schema:
                assert list(value) == [name for name in schema["properties"] if name in value]
    assert complete


def test_json_object(child: Child) -> None:
    form = {"type": "json_object"}
    for seed in range(6):
        answer = child.post(response_format=form, temperature=1, seed=seed, max_tokens=100).json()["choices"][0]
        assert answer["message"]["content"].startswith("{")
        if answer["finish_reason"] == "stop":
            assert isinstance(json.loads(answer["message"]["content"]), dict)


@pytest.mark.parametrize(
    ("choice", "possible"),
    [
        ("required", {"f", "g"}),
        (NAMED, {"f"}),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [G]}}, {"g"}),
    ],
    ids=["required", "named", "allowed"],
)
def test_calls_are_valid_and_a_stream_has_the_same(child: Child, choice: Any, possible: set[str]) -> None:
    called = set()
    for seed in range(4):
        fields: dict[str, Any] = {"tools": [F, G], "tool_choice": choice, "parallel_tool_calls": False}
        fields |= {"temperature": 1, "seed": seed, "max_tokens": 100}
        answer = child.post(**fields).json()["choices"][0]
        assert answer["finish_reason"] == ("stop" if choice is NAMED else "tool_calls")
        ((name, arguments),) = calls_of(answer["message"])
        jsonschema.validate(json.loads(arguments), PARAMETERS if name == "f" else {"const": {}})
        deltas = [event["choices"][0]["delta"] for event in child.events(**fields)]
        streamed = [delta["tool_calls"][0]["function"] for delta in deltas if "tool_calls" in delta]
        assert streamed[0]["name"] == name
        assert "".join(function["arguments"] for function in streamed) == arguments
        called.add(name)
    assert called <= possible


def accepts(grammar: str, text: str) -> bool:
    """Whether `text` may be a whole answer, said by the compiler that llama.cpp has inside."""
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, ending(grammar, ()), log_level=0)
    return matcher.try_consume_tokens(list(text.encode())) == len(text.encode()) and bool(matcher.is_accepting())


def test_a_call_that_was_begun_becomes_a_valid_one() -> None:
    _, form, _ = read_form({"tools": [F, G]})
    assert form.grammar is not None
    f_call = call_text("f", '{"q":"}{","n":1}')
    for good in ("", "any <text> <tool_cal", f_call, f"text\n{f_call}\n{G_CALL}"):
        assert accepts(form.grammar, good), good
    for bad in (
        "<tool_call>",
        "<tool_call> no",
        G_CALL.replace('"g"', '"h"'),
        G_CALL + "\ntext",
        G_CALL.replace("g", "f"),
    ):
        assert not accepts(form.grammar, bad), bad
    _, form, _ = read_form({"tools": [F, G], "parallel_tool_calls": False, "response_format": {"type": "json_object"}})
    assert form.grammar is not None
    assert [accepts(form.grammar, text) for text in ('{"a": 1}', G_CALL, "text", f"{G_CALL}\n{G_CALL}")] == [
        True,
        True,
        False,
        False,
    ]


HOSTILE: dict[str, Any] = {
    "unknown reference": {"$ref": "#/$defs/q"},
    "reference to itself": {"$ref": "#"},
    "reference to elsewhere": {"$ref": "https://example.com/schema"},
    "impossible pattern": {"type": "string", "pattern": "(?=a)b"},
    "impossible": {"type": "integer", "minimum": 2, "maximum": 1},
    "too slow": {"type": "integer", "multipleOf": 1_000_003},
    "too many ways": {"type": "object", "properties": {f"p{at}": SHORT for at in range(1500)}},
    "too many": {"anyOf": [{"const": at} for at in range(3000)]},
    "a huge array": {"type": "array", "items": {"type": "string"}, "minItems": 1_000_000_000},
    "too long": {"enum": ["x" * 100_001]},
    "no type": {"type": "thing"},
    "overlapping": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "no schema": {"properties": {"a": 1}},
    "an infinite number": {"maximum": float("1e999")},
}


@pytest.mark.parametrize("schema", HOSTILE.values(), ids=HOSTILE)
def test_a_schema_that_cannot_be_held_to_is_refused(child: Child, schema: Any) -> None:
    body = json.dumps({"model": "any", "messages": MESSAGES, "response_format": json_schema(schema)})
    response = child.post(body=body.replace("Infinity", "1e999").encode())
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("response_format.json_schema.schema", "invalid_json_schema")


def test_the_tool_with_the_bad_schema_is_named(child: Child) -> None:
    bad = {"type": "function", "function": {"name": "h", "parameters": {"$ref": "#/$defs/q"}}}
    assert child.post(tools=[G, bad]).json()["error"]["param"] == "tools[1].function.parameters"


def test_a_deep_schema_is_refused(child: Child) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(200):
        schema = {"type": "array", "items": schema}
    assert child.post(response_format=json_schema(schema)).json()["error"]["code"] == "invalid_json_schema"


def test_a_keyword_that_cannot_be_enforced_is_named_or_refused(child: Child) -> None:
    schema = {**closed(a={"type": "array", "items": SHORT, "uniqueItems": True}), "title": "t", "x-\n\u2028": 1}
    response = child.post(response_format=json_schema(schema))
    path = "response_format.json_schema.schema"
    assert response.headers["x-tuneway-ignored"] == f"{path}.uniqueItems, {path}.x-\\n\\u2028"
    error = child.post(response_format=json_schema(schema, strict=True)).json()["error"]
    assert error["param"] == path
    assert "In context=('properties', 'a'), 'uniqueItems' is not permitted." in error["message"]
    open_schema = {"type": "object", "properties": {"a": {"type": "object"}}, "required": ["a"]}
    error = child.post(response_format=json_schema(open_schema, strict=True)).json()["error"]
    assert error["message"] == (
        "Invalid schema for response_format 'x': In context=(), 'additionalProperties' is required to be supplied and "
        "to be false."
    )


def test_a_strict_function_must_be_closed(child: Child) -> None:
    function = {"name": "x", "parameters": {"type": "object", "properties": {}}, "strict": True}
    error = child.post(tools=[{"type": "function", "function": function}]).json()["error"]
    assert error == {
        "message": "Invalid schema for function 'x': In context=(), 'additionalProperties' is required to be supplied "
        "and to be false.",
        "type": "invalid_request_error",
        "param": "tools[0].function.parameters",
        "code": "invalid_function_parameters",
    }


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].type"),
    ({"tools": [F, {"type": "function", "function": {"name": "a b"}}]}, "tools[1].function.name"),
    ({"tools": [F, F]}, "tools[1].function.name"),
    ({"tools": [G] * 129}, "tools"),
    ({"tools": [{**F, "extra": 1}]}, "tools[0]"),
    ({"tools": [F], "functions": [{"name": "g"}]}, "functions"),
    ({"functions": []}, "functions"),
    ({"tools": [F], "tool_choice": "sometimes"}, "tool_choice"),
    ({"tools": [F], "tool_choice": {"type": "function", "function": {"name": "q"}}}, "tool_choice"),
    ({"tools": [F], "parallel_tool_calls": 1}, "parallel_tool_calls"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tools": [F], "function_call": "auto"}, "function_call"),
    ({"functions": [{"name": "g"}], "function_call": {"name": "q"}}, "function_call"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
    ({"response_format": json_schema([])}, "response_format.json_schema.schema"),
    ({"modalities": ["video"]}, "modalities[0]"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"messages": [*MESSAGES, {"role": "tool", "tool_call_id": "1", "content": ""}]}, "messages[1].tool_call_id"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_FIELDS)
def test_a_bad_field_is_named(child: Child, fields: dict[str, Any], param: str) -> None:
    response = child.post(**fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_what_generated_tests_send(child: Child) -> None:
    """Every parameter of the official client's own test at once."""
    response = child.post(
        audio={"format": "wav", "voice": "alloy"},
        frequency_penalty=-2,
        function_call="none",
        functions=[{"name": "name", "description": "description", "parameters": {"foo": "bar"}}],
        logit_bias={"foo": 0},
        logprobs=True,
        max_completion_tokens=0,
        max_tokens=0,
        metadata={"foo": "string"},
        modalities=["text"],
        n=1,
        parallel_tool_calls=True,
        prediction={"content": "string", "type": "content"},
        presence_penalty=-2,
        prompt_cache_key="key",
        reasoning_effort="none",
        response_format={"type": "text"},
        safety_identifier="me",
        seed=-9007199254740991,
        service_tier="auto",
        stop="\n",
        store=True,
        stream=False,
        stream_options={"include_obfuscation": True, "include_usage": True},
        temperature=1,
        tool_choice="none",
        tools=[
            {
                "type": "function",
                "function": {"name": "name", "description": "d", "parameters": {"foo": "bar"}, "strict": True},
            }
        ],
        top_logprobs=0,
        top_p=1,
        user="user-1234",
        verbosity="low",
        web_search_options={"search_context_size": "low"},
    )
    assert response.status_code == 200, response.text
    ignored = set(response.headers["x-tuneway-ignored"].split(", "))
    assert {"functions", "function_call", "stream_options.include_obfuscation", "audio"} <= ignored
    assert not ignored & {"store", "metadata", "tools", "tool_choice", "parallel_tool_calls", "response_format"}


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [F]},
        {"tools": [F], "parallel_tool_calls": False},
        {"tools": [F], "response_format": {"type": "text"}},
        {"functions": [F["function"]]},
    ],
    ids=["auto", "one call", "text", "functions"],
)
def test_an_answer_in_text_may_end_where_calls_are_possible(child: Child, fields: dict[str, Any]) -> None:
    """The end of the turn must be open to the model at every place of the text, also to one that may call."""
    answer = child.post(**fields, logit_bias={"2": 100}, max_tokens=30).json()["choices"][0]
    assert (answer["message"]["content"], answer["finish_reason"]) == ("", "stop")
    assert not answer["message"].get("tool_calls")


def test_who_must_call_comes_to_an_end() -> None:
    _, form, _ = read_form({"tools": [F, G], "tool_choice": "required"})
    assert form.grammar is not None
    assert accepts(form.grammar, "\n".join([G_CALL] * MAX_CALLS))
    assert not accepts(form.grammar, "\n".join([G_CALL] * (MAX_CALLS + 1)))
