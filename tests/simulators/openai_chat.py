"""Chat answers that are right and look odd: they show a proxy that writes anew, or waits for whole events."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from itertools import cycle
from typing import Any

ENDS = ("\n\n", "\r\n\r\n", "\n\n")
SIZES = (1, 17, 3, 64, 5, 250, 2)
"""Sizes of the chunks of a stream: they cut events, lines and characters."""


def said(body: dict[str, Any]) -> str:
    """The text of the last user message."""
    content = next((m["content"] for m in reversed(body["messages"]) if m["role"] == "user"), "")
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def usage(body: dict[str, Any], reply: str) -> dict[str, Any]:
    asked, answered = len(json.dumps(body["messages"]).split()), len(reply.split())
    return {
        "prompt_tokens": asked,
        "completion_tokens": answered,
        "total_tokens": asked + answered,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    }


def head(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(14)}",
        "object": kind,
        "created": int(time.time()),
        "model": body["model"],
        "service_tier": "default",
        "system_fingerprint": "fp_é",
    }


def odd(value: Any, **layout: Any) -> str:
    """JSON that any parser reads and no serializer writes: raw and escaped characters mixed, and spaces."""
    return (
        json.dumps(value, ensure_ascii=False, **layout)
        .replace("fp_é", "fp_\\u00E9")
        .replace("chatcmpl", "\\u0063hatcmpl")
    )


def whole(body: dict[str, Any], reply: str) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": reply, "refusal": None, "annotations": []}
    choices = [
        {"index": at, "message": message, "logprobs": None, "finish_reason": "stop"} for at in range(body.get("n") or 1)
    ]
    answer = head(body, "chat.completion") | {"choices": choices, "usage": usage(body, reply)}
    return ("\n" + odd(answer, indent="\t", separators=(" ,", " :  ")) + " \n\n").encode()


def stream(body: dict[str, Any], reply: str, **before: Any) -> list[bytes]:
    """The chunks of a stream, which begins with an event without choices if a vendor has something to say `before`."""
    written = ": odd on purpose ☂\n\n".encode() + b"".join(
        f"{start}{event}{end}".encode()
        for event, start, end in zip(events(body, reply, before), cycle(("data: ", "data:")), cycle(ENDS), strict=False)
    )
    chunks: list[bytes] = []
    at = 0
    for size in cycle(SIZES):
        if at >= len(written):
            return chunks
        chunks.append(written[at : at + size])
        at += size
    raise AssertionError


def events(body: dict[str, Any], reply: str, before: dict[str, Any]) -> Iterator[str]:
    first = head(body, "chat.completion.chunk")
    if before:
        yield odd(first | {"choices": []} | before)
    counted = bool((body.get("stream_options") or {}).get("include_usage"))
    also: dict[str, Any] = {"usage": None} if counted else {}

    def event(delta: dict[str, Any], at: int, reason: str | None = None) -> str:
        choice = {"index": at, "delta": delta, "logprobs": None, "finish_reason": reason}
        return odd(first | {"choices": [choice], "obfuscation": "x" * (at + 3)} | also, separators=(", ", " :"))

    for at in range(body.get("n") or 1):
        yield event({"role": "assistant", "content": "", "refusal": None}, at)
        for start in range(0, len(reply), 4):
            yield event({"content": reply[start : start + 4]}, at)
        yield event({}, at, "stop")
    if counted:
        yield odd(first | {"choices": [], "usage": usage(body, reply)})
    yield "[DONE]"
