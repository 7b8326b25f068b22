"""The engine seam: token ids in, text out.

An engine knows no chat, no template and no HTTP. `generate` is all that is asked of one: `llama.py` has llama.cpp,
`echo.py` the one that only pretends; the exact, slower engine for bases without a GGUF will be another file.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Sampling:
    """OpenAI's parameters. `seed` is a whole number of any size; `top_logprobs` None asks for no log-probabilities."""

    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    cache_key: str = ""
    """A prompt is taken from the cache of requests with the same key only: how long an answer takes, and how much of
    its prompt was cached, would tell one project what another one has asked."""
    grammar: str | None = None
    """In llguidance's Lark, and tried (`grammar.Trial`): llama.cpp generates without any when it does not compile."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithm of the probability of `token` before sampling, and of the likeliest tokens in its place."""

    token: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What came since the last piece; whole characters only. The last piece has a `finish_reason`.

    The counts are those of the answer so far.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: Literal["stop", "length"] | None = None
    completion_tokens: int = 0
    cached_tokens: int = 0


class Engine(Protocol):
    fingerprint: str
    """Changes when answers to the same seed may."""

    def generate(
        self, prompt: Sequence[int], adapter: str | None, max_tokens: int, sampling: Sampling
    ) -> AsyncGenerator[Piece]:
        """The answer to `prompt` by the base (None) or a named adapter. Closing the iterator stops generation.

        An empty piece comes first, when the engine has taken the prompt on. Raises InternalError when it fails.
        """
        ...


class Tokens(Protocol):
    """What an engine needs of the renderer."""

    eos_ids: frozenset[int]

    def decode(self, ids: Sequence[int]) -> str: ...
