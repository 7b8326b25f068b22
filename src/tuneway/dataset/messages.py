"""Chat messages as OpenAI's API defines them: checked and brought to one form, before any template sees them.

Chat requests and training files go through the same function, so what is accepted in one is accepted in the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
class Turn:
    """One message in the one form. `beyond_text` names what of it no text template can show (`tool calls`, …)."""

    role: str
    content: str
    name: str | None = None
    weight: int = 1
    beyond_text: str | None = None


def normalise(messages: Any) -> list[Turn]:
    """The turns of a conversation. Raises InvalidMessages for the first message that OpenAI's schema refuses.

    `developer` becomes `system`; the text parts of a content are joined by newlines; an assistant's `refusal` stands in
    for a null content. Optional keys may be null, which is how table tools write "absent".
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise InvalidMessages("Input should be a valid list")
    if not messages:
        raise InvalidMessages("List should have at least 1 item")
    return [_turn(message, index) for index, message in enumerate(messages)]


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
    if role == "assistant":
        weight = _weight(message.get("weight"), index)
        content, beyond = _answer(message, index, content, beyond)
    elif content is None:
        raise InvalidMessages("Input should be a valid string", index, "content")
    elif role in ("tool", "function"):
        beyond = "tool calls"
    return Turn("system" if role == "developer" else role, content, name, weight, beyond)


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


def _answer(message: Mapping[str, Any], index: int, content: str | None, beyond: str | None) -> tuple[str, str | None]:
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
    if message.get("function_call") is not None:
        _call(message["function_call"], index, "function_call")
        beyond = "tool calls"
    if message.get("tool_calls"):
        calls = message["tool_calls"]
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise InvalidMessages("Input should be a valid list", index, "tool_calls")
        for at, call in enumerate(calls):
            key = f"tool_calls[{at}]"
            if not isinstance(call, Mapping) or call.get("type") != "function":
                raise InvalidMessages("Input should be a call of type 'function'", index, key)
            _text(call.get("id"), index, f"{key}.id")
            _call(call.get("function"), index, f"{key}.function")
        beyond = "tool calls"
    if content is None and beyond is None:
        raise InvalidMessages("Input should be a valid string", index, "content")
    return content or "", beyond


def _call(call: Any, index: int, key: str) -> None:
    if not isinstance(call, Mapping):
        raise InvalidMessages("Input should be a valid dictionary", index, key)
    _text(call.get("name"), index, f"{key}.name")
    _text(call.get("arguments"), index, f"{key}.arguments")


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
