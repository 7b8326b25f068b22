"""A chat completion that was served, as an example of a training file: a line that `check` accepts, or why not."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tuneway.dataset.check import MAX_LINE_BYTES, OPENAI_TOKENS
from tuneway.dataset.messages import InvalidMessages, normalise
from tuneway.dataset.tools import InvalidTools, in_text, read_tools

FINISHED = frozenset({"stop", "tool_calls", "function_call"})
"""Reasons to finish that leave a whole answer."""

_FORBIDDEN = re.compile("|".join(map(re.escape, OPENAI_TOKENS)))
_SHARED = ("tools", "parallel_tool_calls", "functions")


class NoExample(Exception):
    """The completion cannot be an example. `reason` is one word of a few, for counting."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def example_line(request: Mapping[str, Any], response: Mapping[str, Any], choice: int) -> bytes:
    """The line of JSON, with its end: the request's messages, then the answer numbered `choice`. Raises NoExample."""
    found = next((one for one in response["choices"] if one["index"] == choice), None)
    if found is None:
        raise NoExample("no_such_choice")
    if found["finish_reason"] not in FINISHED:
        raise NoExample(f"finish_reason_{found['finish_reason']}")
    example: dict[str, Any] = {"messages": [*request["messages"], _answer(found["message"])]}
    example |= {name: request[name] for name in _SHARED if request.get(name) is not None}
    try:
        turns = normalise(example["messages"])
        shown = in_text(turns, read_tools(example))
    except InvalidMessages:
        raise NoExample("invalid_messages") from None
    except InvalidTools:
        raise NoExample("invalid_tools") from None
    for turn in turns:
        if turn.beyond_text is not None:
            raise NoExample(turn.beyond_text)
    if any(_FORBIDDEN.search(turn.content) or (turn.name and _FORBIDDEN.search(turn.name)) for turn in shown):
        raise NoExample("special_token")
    line = json.dumps(example, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise NoExample("too_long")
    return line


def _answer(message: Mapping[str, Any]) -> dict[str, Any]:
    """An assistant's message without what an answer has besides (annotations, reasoning, audio). Raises NoExample."""
    kept: dict[str, Any] = {"role": "assistant", "content": message.get("content")}
    for name in ("refusal", "tool_calls", "function_call"):
        if message.get(name):
            kept[name] = message[name]
    if message.get("audio"):
        raise NoExample("audio")
    if kept == {"role": "assistant", "content": None}:
        raise NoExample("no_content")
    return kept
