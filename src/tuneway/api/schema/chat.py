"""Chat completions in the API description. The requests themselves are read by the model's upstream, not here.

Written out as JSON schemas, as nothing is converted from or to them.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

REQUEST = "CreateChatCompletionRequest"
RESPONSE = "CreateChatCompletionResponse"
CHUNK = "CreateChatCompletionStreamResponse"


def reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: list[str], closed: bool = True, /, **properties: Schema) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = required
    return schema | {"additionalProperties": False} if closed else schema


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _enum(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


_STRING: Schema = {"type": "string"}
_BOOLEAN: Schema = {"type": "boolean"}
_INTEGER: Schema = {"type": "integer"}
_OBJECT: Schema = {"type": "object"}
SERVER_SENT: Schema = {
    "description": "One server-sent event; its data is JSON, or `[DONE]` at the end.",
    "type": "object",
    "required": ["data"],
    "properties": {"id": {"type": "string"}, "data": {"type": "string"}},
}
_NAME: Schema = {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}


def _number(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


_TEXT_PART = _object(["type", "text"], type=_enum("text"), text=_STRING)
_CONTENT = {"anyOf": [_STRING, _list(_TEXT_PART, minItems=1)]}
_CALL = _object(["name", "arguments"], name=_STRING, arguments=_STRING)
_TOOL_CALL = _object(["id", "type", "function"], id=_STRING, type=_enum("function"), function=_CALL)
_MESSAGES = {
    "anyOf": [
        _object(["role", "content"], role=_enum("system", "developer", "user"), content=_CONTENT, name=_STRING),
        _object(
            ["role"],
            role=_enum("assistant"),
            content=_null(_CONTENT),
            refusal=_null(_STRING),
            name=_STRING,
            tool_calls=_list(_TOOL_CALL, minItems=1),
            function_call=_null(_CALL),
        ),
        _object(["role", "content", "tool_call_id"], role=_enum("tool"), content=_CONTENT, tool_call_id=_STRING),
        _object(["role", "content", "name"], role=_enum("function"), content=_null(_STRING), name=_STRING),
    ]
}
_FUNCTION = _object(["name"], name=_NAME, description=_STRING, parameters=_OBJECT, strict=_null(_BOOLEAN))
_TOOL = _object(["type", "function"], type=_enum("function"), function=_FUNCTION)
_NAMED_TOOL = _object(["type", "function"], type=_enum("function"), function=_object(["name"], name=_STRING))
_ALLOWED_TOOLS = _object(
    ["type", "allowed_tools"],
    type=_enum("allowed_tools"),
    allowed_tools=_object(["mode", "tools"], mode=_enum("auto", "required"), tools=_list(_OBJECT)),
)
_JSON_SCHEMA = _object(["name"], name=_NAME, description=_STRING, schema=_OBJECT, strict=_null(_BOOLEAN))

_WITHOUT_EFFECT = "Accepted without effect, and then named in the response header `x-tuneway-ignored`."

_request = _object(
    ["model", "messages"],
    model=_STRING,
    messages=_list(_MESSAGES, minItems=1),
    temperature=_null(_number(0, 2)),
    top_p=_null(_number(0, 1)),
    n=_null({"type": "integer", "minimum": 1, "maximum": 128}),
    max_completion_tokens=_null({"type": "integer", "minimum": 0}),
    max_tokens=_null({"type": "integer", "minimum": 0}),
    stop=_null({"anyOf": [_STRING, _list(_STRING, minItems=1, maxItems=4)]}),
    seed=_null(_INTEGER),
    frequency_penalty=_null(_number(-2, 2)),
    presence_penalty=_null(_number(-2, 2)),
    logit_bias=_null({"type": "object", "additionalProperties": _number(-100, 100)}),
    logprobs=_null(_BOOLEAN),
    top_logprobs=_null({"type": "integer", "minimum": 0, "maximum": 20}),
    stream=_null(_BOOLEAN),
    stream_options=_null(_object([], include_usage=_BOOLEAN, include_obfuscation=_BOOLEAN)),
    response_format={
        "anyOf": [
            _object(["type"], type=_enum("text", "json_object")),
            _object(["type", "json_schema"], type=_enum("json_schema"), json_schema=_JSON_SCHEMA),
        ]
    },
    tools=_list(_TOOL, maxItems=128),
    tool_choice={"anyOf": [_enum("none", "auto", "required"), _NAMED_TOOL, _ALLOWED_TOOLS]},
    parallel_tool_calls=_BOOLEAN,
    functions=_list(_object(["name"], name=_NAME, description=_STRING, parameters=_OBJECT), minItems=1, maxItems=128),
    function_call={"anyOf": [_enum("none", "auto"), _object(["name"], name=_STRING)]},
    store=_null(_BOOLEAN),
    metadata=_null({"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 16}),
    user=_STRING,
    safety_identifier=_null({"type": "string", "maxLength": 64}),
    modalities=_null(_list(_enum("text"))),
    service_tier=_null(_enum("auto", "default", "flex", "scale", "priority", "fast")),
    prediction=_null(_object(["type", "content"], type=_enum("content"), content=_CONTENT)),
    prompt_cache_key=_null(_STRING),
    prompt_cache_retention=_null(_enum("in_memory", "24h")),
    prompt_cache_options=_OBJECT,
    verbosity=_null(_enum("low", "medium", "high")),
    reasoning_effort=_null(_enum("none", "minimal", "low", "medium", "high", "xhigh", "max")),
    moderation=_null(_OBJECT),
    web_search_options=_OBJECT,
    audio=_null(_OBJECT),
)
for _name in (
    "user",
    "safety_identifier",
    "modalities",
    "service_tier",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "verbosity",
    "reasoning_effort",
    "moderation",
    "web_search_options",
    "audio",
):
    _request["properties"][_name]["description"] = _WITHOUT_EFFECT

_LOGPROB = _object(
    ["token", "logprob", "bytes"],
    False,
    token=_STRING,
    logprob={"type": "number"},
    bytes=_null(_list(_INTEGER)),
    top_logprobs=_list(_OBJECT),
)
_LOGPROBS = _null(_object(["content", "refusal"], content=_null(_list(_LOGPROB)), refusal=_null(_list(_LOGPROB))))
_USAGE = _object(
    ["prompt_tokens", "completion_tokens", "total_tokens"],
    False,
    prompt_tokens=_INTEGER,
    completion_tokens=_INTEGER,
    total_tokens=_INTEGER,
    prompt_tokens_details=_OBJECT,
    completion_tokens_details=_OBJECT,
)
_FINISH = _enum("stop", "length", "tool_calls", "content_filter", "function_call")
_ANSWER = _object(
    ["role", "content", "refusal"],
    False,
    role=_enum("assistant"),
    content=_null(_STRING),
    refusal=_null(_STRING),
    tool_calls=_list(_TOOL_CALL),
    function_call=_CALL,
    annotations=_list(_OBJECT),
)


def _head(kind: str, choice: Schema, usage: Schema) -> Schema:
    return _object(
        ["id", "object", "created", "model", "choices"],
        False,
        id=_STRING,
        object=_enum(kind),
        created=_INTEGER,
        model=_STRING,
        service_tier=_null(_STRING),
        system_fingerprint=_STRING,
        choices=_list(choice),
        usage=usage,
    )


def definitions() -> dict[str, Schema]:
    """The schemas by name, for the description's components."""
    choice = _object(
        ["index", "message", "logprobs", "finish_reason"],
        False,
        index=_INTEGER,
        message=_ANSWER,
        logprobs=_LOGPROBS,
        finish_reason=_FINISH,
    )
    piece = _object(
        ["index", "delta", "finish_reason"],
        False,
        index=_INTEGER,
        delta=_OBJECT,
        logprobs=_LOGPROBS,
        finish_reason=_null(_FINISH),
    )
    return {
        REQUEST: _request,
        RESPONSE: _head("chat.completion", choice, _USAGE),
        CHUNK: _head("chat.completion.chunk", piece, _null(_USAGE)),
    }


def operation(errors: Schema) -> Schema:
    """`POST /v1/chat/completions`; `errors` are the responses that every operation may have."""
    return {
        "tags": ["Chat"],
        "summary": "Create Chat Completion",
        "operationId": "create_chat_completion",
        "requestBody": {"required": True, "content": {"application/json": {"schema": reference(REQUEST)}}},
        "responses": {
            "200": {
                "description": "The answer, or with `stream` its server-sent events, the last of them `[DONE]`.",
                "headers": {
                    "x-tuneway-ignored": {
                        "description": "Parameters that had no effect, separated by commas.",
                        "schema": _STRING,
                    }
                },
                "content": {
                    "application/json": {"schema": reference(RESPONSE)},
                    "text/event-stream": {"schema": SERVER_SENT | {"x-data": reference(CHUNK)}},
                },
            },
            **errors,
        },
    }
