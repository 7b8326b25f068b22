"""The engine behind the provider `fake`: no model, but the whole of the chat endpoint around it.

It answers with the words of the last user message turned round, one token a word. Where a grammar leaves no such
answer (JSON, calls), it gives a short one that the grammar allows.

`python -m tuneway.inference.echo` reads one line of JSON, {"socket", "token"}, and serves as the other engines do.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import Any

from tuneway.dataset.messages import normalise
from tuneway.dataset.tools import NO_TOOLS, Tools
from tuneway.inference.child import read_spec, serve
from tuneway.inference.engine import Piece, Sampling, TokenLogprob
from tuneway.inference.grammar import ending
from tuneway.inference.server import build_app

CONTEXT_LENGTH = 1 << 20
_LONGEST = 2000
"""Bytes of an answer by grammar."""


class Characters:
    """A renderer for which every character is a token. The prompt is the last user message; nothing else matters."""

    eos_ids: frozenset[int] = frozenset()
    vocab_size = 0x110000

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: Tools = NO_TOOLS) -> list[int]:
        """Raises InvalidMessages."""
        said = [turn.content for turn in normalise(messages) if turn.role == "user"]
        return [ord(character) for character in said[-1]] if said else []

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


class Echo:
    """See the module. Samples nothing, so that every answer is the same whatever the parameters."""

    fingerprint = "fp_echo"

    async def generate(
        self, prompt: Sequence[int], adapter: str | None, max_tokens: int, sampling: Sampling
    ) -> AsyncGenerator[Piece]:
        """As of Engine."""
        yield Piece("")
        text = " ".join(reversed("".join(map(chr, prompt)).split()))
        if sampling.grammar is not None:
            text = _allowed(ending(sampling.grammar, ()), text)
        for stop in sampling.stop:
            text = text.partition(stop)[0]
        words = re.findall(r"\s*\S+|\s+$", text)
        for word in words[:max_tokens]:
            yield Piece(word, () if sampling.top_logprobs is None else (_certain(word),))
        count = min(len(words), max_tokens)
        yield Piece("", finish_reason="stop" if count == len(words) else "length", completion_tokens=count)


def _certain(word: str) -> TokenLogprob:
    return TokenLogprob(word, 0.0, (TokenLogprob(word, 0.0),))


def _allowed(grammar: str, text: str) -> str:
    """`text` where the grammar takes it, else a short text that it takes (or, where there is none, its beginning)."""
    from llguidance import LLMatcher, LLTokenizer

    tokenizer = LLTokenizer("byte")
    matcher, said = LLMatcher(tokenizer, grammar, log_level=0), list(text.encode())
    if matcher.try_consume_tokens(said) == len(said) and matcher.is_accepting():
        return text
    # A new one: after a refusal the first is of no use any more.
    return bytes(_shortest(LLMatcher(tokenizer, grammar, log_level=0))).decode(errors="ignore")


def _shortest(matcher: Any) -> Iterator[int]:
    """One byte after the other, always the one that ends something soonest."""
    inside = False
    for _ in range(_LONGEST):
        if matcher.is_accepting() or matcher.is_stopped() or matcher.is_error():
            return
        mask = matcher.compute_bitmask()
        possible = [byte for byte in (*range(0x20, 0x7F), 0x0A) if mask[byte // 8] >> byte % 8 & 1]
        if not possible:
            return
        ends = b'"' if inside else b'}]"0'
        byte = next((end for end in ends if end in possible), possible[-1] if inside else possible[0])
        inside ^= byte == ord('"')
        matcher.consume_token(byte)
        yield byte


def main() -> None:
    spec = read_spec()
    if spec is not None:
        app = build_app(Echo(), Characters(), (), context_length=CONTEXT_LENGTH, token=spec["token"])
        serve(app, spec["socket"], {"ready": True})


if __name__ == "__main__":
    main()
