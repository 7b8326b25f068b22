"""The shapes of OpenAI's chat answers: the completion, the chunks of a stream, the usage."""

from __future__ import annotations

import json
import secrets
import string
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneway.errors import TunewayError
from tuneway.inference.engine import TokenLogprob
from tuneway.inference.reading import Arguments, CallStart, Text

_BASE62 = string.digits + string.ascii_letters
DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """What all parts of one answer say of it. `model` is the name that the client knows."""

    model: str
    fingerprint: str
    id: str = field(default_factory=lambda: "chatcmpl-" + "".join(secrets.choice(_BASE62) for _ in range(29)))
    created: int = field(default_factory=lambda: int(time.time()))

    def completion(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, Any]) -> dict[str, Any]:
        return self._head("chat.completion") | {"choices": choices, "usage": usage}

    def chunk(
        self,
        index: int,
        delta: Mapping[str, Any],
        *,
        finish_reason: str | None = None,
        logprobs: Mapping[str, Any] | None = None,
        include_usage: bool = False,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if include_usage else {}
        return event(self._head("chat.completion.chunk") | {"choices": [choice]} | usage)

    def usage_chunk(self, usage: Mapping[str, Any]) -> bytes:
        return event(self._head("chat.completion.chunk") | {"choices": [], "usage": usage})

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "service_tier": "default",
            "system_fingerprint": self.fingerprint,
        }


class Message:
    """The assistant's message of one choice, as its parts come; `delta` is what a stream says of a part.

    `legacy`: a call is OpenAI's old `function_call`.
    """

    def __init__(self, *, can_call: bool, legacy: bool) -> None:
        self._can_call = can_call
        self._legacy = legacy
        self._content = ""
        self._calls: list[dict[str, Any]] = []
        self._logprobs: list[TokenLogprob] = []

    def opening(self) -> dict[str, Any]:
        """The delta that a stream begins with."""
        return {"role": "assistant", "content": None if self._can_call else "", "refusal": None}

    def delta(self, part: Text | CallStart | Arguments) -> dict[str, Any]:
        """Takes the part on."""
        match part:
            case Text():
                self._content += part.text
                self._logprobs += part.logprobs
                return {"content": part.text}
            case CallStart():
                id_ = "call_" + "".join(secrets.choice(_BASE62) for _ in range(24))
                function = {"name": part.name, "arguments": ""}
                self._calls.append({"id": id_, "type": "function", "function": function})
                if self._legacy:
                    return {"function_call": dict(function)}
                return {"tool_calls": [{"index": part.index, **self._calls[-1], "function": dict(function)}]}
            case Arguments():
                self._calls[part.index]["function"]["arguments"] += part.text
                more = {"arguments": part.text}
                return (
                    {"function_call": more}
                    if self._legacy
                    else {"tool_calls": [{"index": part.index, "function": more}]}
                )

    def choice(self, index: int, finish_reason: str, top_logprobs: int | None) -> dict[str, Any]:
        """The whole, for an answer that is not streamed."""
        content = None if self._calls and not self._content else self._content
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None, "annotations": []}
        if self._calls and self._legacy:
            message["function_call"] = self._calls[0]["function"]
        elif self._calls:
            message["tool_calls"] = self._calls
        logprobs = None if top_logprobs is None else logprobs_object(self._logprobs, top_logprobs)
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason}


def logprobs_object(tokens: Iterable[TokenLogprob], top: int) -> dict[str, Any]:
    """`top` alternatives each, 0 for none."""
    content = [_token(token) | {"top_logprobs": [_token(other) for other in token.top[:top]]} for token in tokens]
    return {"content": content, "refusal": None}


def usage_object(prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def event(value: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def error_event(error: TunewayError) -> bytes:
    """What a stream that breaks ends with; OpenAI's clients raise it."""
    return event(error.envelope())


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.token.encode())}
