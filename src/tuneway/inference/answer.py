"""The shapes of OpenAI's chat answers (OPENAI.md 1.6): the completion, the chunks of a stream, the usage."""

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


def choice(index: int, content: str, finish_reason: str, logprobs: Mapping[str, Any] | None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None, "annotations": []}
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
