"""Chat messages as OpenAI's API defines them: checked and brought to one form, before any template sees them.

Chat requests and training files go through the same function, so what is accepted in one is accepted in the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool", "function")

_COMMON = frozenset({"role", "content", "name"})
_KEYS: Mapping[str, frozenset[str]] = {
    "system": _COMMON,
    "developer": _COMMON,
    "user": _COMMON,
    # `audio` and `annotations` come back in a chat answer, empty; clients append that answer to the next request.
    "assistant": _COMMON | {"weight", "refusal", "tool_calls", "function_call", "audio", "annotations"},
    "tool": _COMMON | {"tool_call_id"},
    "function": _COMMON,
}


class InvalidMessages(ValueError):
    """Messages that cannot be used. `reason` says why; `index` is the message's position from 0, `key` its field.

    `message` is a whole sentence for a chat client and `param` the field's path, e.g. `messages[2].content`.
    """

    def __init__(self, reason: str, index: int | None = None, key: str | None = None) -> None:
        self.reason = reason
        self.index = index
        self.key = key
        self.param = "messages" + ("" if index is None else f"[{index}]") + ("" if key is None else f".{key}")
        self.message = f"Invalid value for '{self.param}': {reason}"
        super().__init__(self.message)


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a function. `arguments` is the JSON text of an object, as `json_text` writes it."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One message in the one form. `beyond_text` names what of it no text template can show (`images`)."""

    role: str
    content: str
    name: str | None = None
    weight: int = 1
    beyond_text: str | None = None
    calls: tuple[Call, ...] = ()
    answers: int = 0
    """Of a tool's result: the position of the call that it answers among all calls of the conversation."""


def normalise(messages: Any) -> list[Turn]:
    """The turns of a conversation. Raises InvalidMessages for the first message that OpenAI's schema refuses.

    `developer` becomes `system`; the text parts of a content are joined by newlines; an assistant's `refusal` stands in
    for a null content. Optional keys may be null, which is how table tools write "absent".
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise InvalidMessages("Input should be a valid list")
    if not messages:
        raise InvalidMessages("List should have at least 1 item")
    turns: list[Turn] = []
    calls: dict[str, int] = {}
    n_calls = 0
    for index, message in enumerate(messages):
        turn = _turn(message, index)
        if turn.role == "tool":
            if message["tool_call_id"] not in calls:
                reason = f"{quoted(message['tool_call_id'])} is the id of no call in an earlier message"
                raise InvalidMessages(reason, index, "tool_call_id")
            turn = replace(turn, answers=calls[message["tool_call_id"]])
        elif turn.role == "function":
            turn = replace(turn, answers=n_calls)
        if turn.calls:
            ids = [call["id"] for call in message.get("tool_calls") or ()]
            calls |= {id_: n_calls + at for at, id_ in enumerate(ids)}
            n_calls += len(ids)
        turns.append(turn)
    return turns


def _turn(message: Any, index: int) -> Turn:
    if not isinstance(message, Mapping):
        raise InvalidMessages("Input should be a valid dictionary", index)
    if "role" not in message:
        raise InvalidMessages("Discriminator 'role' is missing in value", index)
    role = message["role"]
    if not isinstance(role, str) or role not in _KEYS:
        shown = quoted(role) if isinstance(role, str) else "no string"
        raise InvalidMessages(f"Discriminator 'role' is {shown}, expected one of: {', '.join(ROLES)}", index)
    if not message.keys() <= _KEYS[role]:
        extra = next(key for key in message if key not in _KEYS[role])
        raise InvalidMessages(f"contains an extra {quoted(extra)}.", index)
    name = message.get("name")
    if name is not None or role == "function":
        _text(name, index, "name")
    if role == "tool":
        _text(message.get("tool_call_id"), index, "tool_call_id")
    content, beyond = _content(message.get("content"), index, role)
    weight = 1
    calls: tuple[Call, ...] = ()
    if role == "assistant":
        weight = _weight(message.get("weight"), index)
        calls = _calls(message, index)
        content = _answer(message, index, content, has_calls=bool(calls))
    elif content is None and role != "function":
        raise InvalidMessages("Input should be a valid string", index, "content")
    return Turn("system" if role == "developer" else role, content or "", name, weight, beyond, calls)


def _content(content: Any, index: int, role: str) -> tuple[str | None, str | None]:
    """The text of a content (None for null), and what else is in it."""
    if content is None or isinstance(content, str):
        return None if content is None else _text(content, index, "content"), None
    if not isinstance(content, Sequence) or not content:
        raise InvalidMessages("Input should be a valid string", index, "content")
    texts, beyond = [], None
    for at, part in enumerate(content):
        key = f"content[{at}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" or (kind == "refusal" and role == "assistant"):
            texts.append(_text(part.get(kind), index, f"{key}.{kind}"))
        elif kind == "image_url" and role == "user":
            beyond = "images"
        else:
            raise InvalidMessages("Input should be a part of type 'text'", index, key)
    return "\n".join(texts), beyond


def _answer(message: Mapping[str, Any], index: int, content: str | None, *, has_calls: bool) -> str:
    """The text of an assistant's message, whose content may be null when something else stands in for it."""
    for key in ("audio", "annotations"):
        if message.get(key):
            raise InvalidMessages("Only text can be used; leave this out", index, key)
    refusal = message.get("refusal")
    if refusal is not None:
        _text(refusal, index, "refusal")
        if content:
            raise InvalidMessages("A message has either a content or a refusal, not both", index, "refusal")
        content = refusal
    if content is None and not has_calls:
        raise InvalidMessages("Input should be a valid string", index, "content")
    return content or ""


def _calls(message: Mapping[str, Any], index: int) -> tuple[Call, ...]:
    found = []
    if message.get("tool_calls"):
        calls = message["tool_calls"]
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise InvalidMessages("Input should be a valid list", index, "tool_calls")
        for at, call in enumerate(calls):
            key = f"tool_calls[{at}]"
            if not isinstance(call, Mapping) or call.get("type") != "function":
                raise InvalidMessages("Input should be a call of type 'function'", index, key)
            _text(call.get("id"), index, f"{key}.id")
            found.append(_call(call.get("function"), index, f"{key}.function"))
    if message.get("function_call") is not None:
        if found:
            raise InvalidMessages("A message has either tool calls or a function call", index, "function_call")
        found.append(_call(message["function_call"], index, "function_call"))
    return tuple(found)


def _call(call: Any, index: int, key: str) -> Call:
    if not isinstance(call, Mapping):
        raise InvalidMessages("Input should be a valid dictionary", index, key)
    name = _text(call.get("name"), index, f"{key}.name")
    arguments = _text(call.get("arguments"), index, f"{key}.arguments")
    try:
        value = json.loads(arguments)
        if isinstance(value, dict):
            return Call(name, json_text(value))
    except (ValueError, RecursionError):
        pass
    raise InvalidMessages("Input should be a string that holds a JSON object", index, f"{key}.arguments")


def _weight(weight: Any, index: int) -> int:
    if weight is None:
        return 1
    if isinstance(weight, bool) or weight not in (0, 1):
        raise InvalidMessages("Input should be 0 or 1", index, "weight")
    return int(weight)


def _text(value: Any, index: int, key: str) -> str:
    if not isinstance(value, str):
        raise InvalidMessages("Input should be a valid string", index, key)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            lone = f"\\u{ord(value[error.start]):04x}"
            raise InvalidMessages(f"Input holds a lone surrogate ({lone}), which is no character", index, key) from None
    return value


def quoted(text: str) -> str:
    """Someone's text inside a message of ours: in double quotes, on one line, short, and always encodable."""
    shown = text if len(text) <= 60 else text[:60] + "…"
    return json.dumps(shown.encode(errors="backslashreplace").decode(), ensure_ascii=False)


def json_text(value: Any) -> str:
    """`value` as compact JSON in the order of its keys: the one way in which JSON is shown to a model.

    Raises ValueError for what is no JSON: an infinite number, half a character.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text.encode()
    return text
