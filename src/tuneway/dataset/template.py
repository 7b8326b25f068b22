"""The one renderer: messages → text by a base model's chat template → token ids, for training, serving and counting.

Two rules hold for every base that a `Renderer` accepts:

* **A prompt is a prefix of its example.** Text is cut where an assistant's content begins and at special tokens, and
  the pieces are tokenised one by one, in prompts and examples alike; so the ids that the model sees before its answer
  are those it was trained on, whatever the tokeniser would have merged across a cut.
* **No content becomes a special token.** `<|im_end|>` inside a message is the text of ten characters, never the token.

Both rest on two marks, characters that occur in no message of the conversation: `cut` stands before each assistant
content, `guard` inside each special token's literal. They are in the text that the template returns and in no piece.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from tuneway.dataset.messages import InvalidMessages, Turn, normalise
from tuneway.dataset.tools import NO_TOOLS, Tools, in_text
from tuneway.rundir import TokenExample

__all__ = ["InvalidMessages", "Piece", "Renderer"]

NONCHARACTERS = [chr(point) for point in range(0xFDD0, 0xFDF0)]
"""Code points that Unicode keeps free for use inside a program; a conversation that holds 31 of the 32 is refused."""


class Piece(NamedTuple):
    """A text to be tokenised by itself, or the id of a special token; and the weight of all its tokens (0 or 1)."""

    text: str | int
    weight: int


class _Marks(NamedTuple):
    guard: str
    cut: str


class Renderer:
    """Renders for one base model, read from its prepared folder (`tokenizer.json`, `template.jinja`, `base.json`).

    Raises ValueError for a base whose template or tokeniser cannot keep the two rules of this module.
    """

    eos_ids: frozenset[int]
    """The tokens that end an answer."""
    vocab_size: int
    context_length: int
    forbidden: tuple[str, ...]
    """Literals that training data must not hold: the special tokens that give a conversation its form."""
    shows_names: bool
    """Whether the template renders a message's `name`."""

    def __init__(self, folder: Path) -> None:
        base = json.loads((folder / "base.json").read_text(encoding="utf-8"))
        source = (folder / "template.jinja").read_text(encoding="utf-8")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # From here on the tokeniser sees plain text only; special tokens are placed by this class.
        self._tokenizer.encode_special_tokens = True
        self._special = {literal: self._special_id(literal, folder) for literal in base["special"]}
        longest_first = sorted(self._special, key=len, reverse=True)
        self._specials = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise ValueError(f"the chat template of {base['name']} cannot be used for tuning: {error}") from error
        self._variables = {"bos_token": base["bos"] or "", "eos_token": base["eos"][0], "tools": None}
        self.eos_ids = frozenset(self._special[literal] for literal in base["eos"])
        self.vocab_size = self._tokenizer.get_vocab_size()
        self.context_length = int(base["context_length"])
        # Others, such as <filename> in a code model's vocabulary, are words that people write; they stay plain text.
        formal = {base["bos"], *base["eos"]}
        self.forbidden = tuple(s for s in base["special"] if s in formal or s in source or s.startswith("<|"))
        self._trims = False
        self.shows_names = False
        self._probe(base["name"])

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: Tools = NO_TOOLS) -> list[int]:
        """The ids that the model answers: the conversation and the opening of an assistant's turn.

        Raises InvalidMessages.
        """
        return self._encode_one(self._pieces(_in_text(normalise(messages), tools), generation=True))

    def example(self, messages: Sequence[Mapping[str, Any]], tools: Tools = NO_TOOLS) -> TokenExample:
        """A whole conversation with its loss mask, not cut to any length.

        Weight 1 on the tokens of every assistant content and of the token that ends its turn, unless that message has
        `weight: 0`; weight 0 on all else. Raises InvalidMessages.
        """
        pieces = self.pieces(messages, tools)
        weights = [piece.weight for piece in pieces for _ in self._encode_one([piece])]
        return TokenExample(self._encode_one(pieces), weights)

    def count(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """Tokens of the whole conversation, as `example` gives them."""
        return len(self._encode_one(self.pieces(messages)))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def pieces(self, messages: Sequence[Mapping[str, Any]], tools: Tools = NO_TOOLS) -> list[Piece]:
        """The pieces of one example, for `encode`. Raises InvalidMessages."""
        return self.pieces_of(normalise(messages), tools)

    def pieces_of(self, turns: Sequence[Turn], tools: Tools = NO_TOOLS) -> list[Piece]:
        """As `pieces`, of messages that were normalised already."""
        return self._pieces(_in_text(turns, tools), generation=False)

    def encode(self, examples: Sequence[Sequence[Piece]]) -> list[TokenExample]:
        """Tokenises many examples at once, on all CPUs, each distinct piece once (a shared system prompt, say)."""
        texts = list({piece.text: None for pieces in examples for piece in pieces if isinstance(piece.text, str)})
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ids = {text: encoding.ids for text, encoding in zip(texts, encodings, strict=True)}
        encoded = []
        for pieces in examples:
            tokens: list[int] = []
            weights = bytearray()
            for text, weight in pieces:
                found = [text] if isinstance(text, int) else ids[text]
                tokens += found
                weights += bytes((weight,)) * len(found)
            encoded.append(TokenExample(tokens, weights))
        return encoded

    def _encode_one(self, pieces: Iterable[Piece]) -> list[int]:
        """As `encode`, on the calling thread alone: a chat request must not take all CPUs from the engine."""
        ids: list[int] = []
        for text, _ in pieces:
            if isinstance(text, int):
                ids.append(text)
            else:
                ids += self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _pieces(self, turns: Sequence[Turn], *, generation: bool) -> list[Piece]:
        marks = self._marks(turns)
        text = self._render(turns, marks, generation=generation)
        answers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
        parts = text.split(marks.cut)
        if len(parts) != len(answers) + 1:
            raise InvalidMessages("This base model's chat template cannot show these messages in this order")
        if answers and not generation:
            # The template was probed on short conversations; one look here finds a template that renders the same
            # messages differently for what they say. All answers would cost a rendering each.
            before = self._render(turns[: answers[-1]], marks, generation=True)
            if before != marks.cut.join(parts[:-1]):
                raise InvalidMessages("This base model's chat template changes earlier messages when an answer follows")
        pieces = self._split(parts[0], marks, 0)
        for index, part in zip(answers, parts[1:], strict=True):
            pieces += self._split(part, marks, turns[index].weight)
        return pieces

    def _split(self, part: str, marks: _Marks, weight: int) -> list[Piece]:
        """`part` at its special tokens; `weight` holds up to the first of them, which ends the turn."""
        pieces = []
        for at, text in enumerate(self._specials.split(part)):
            if at % 2:
                pieces.append(Piece(self._special[text], weight))
                weight = 0
            elif text:
                pieces.append(Piece(text.replace(marks.guard, ""), weight))
        return pieces

    def _render(self, turns: Sequence[Turn], marks: _Marks, *, generation: bool) -> str:
        shown = []
        for turn in turns:
            content = self._guarded(turn.content, marks)
            if turn.role == "assistant":
                content = marks.cut + (content.strip() if self._trims else content)
            message = {"role": turn.role, "content": content}
            if turn.name is not None:
                message["name"] = self._guarded(turn.name, marks)
            shown.append(message)
        try:
            return self._template.render(messages=shown, add_generation_prompt=generation, **self._variables)
        except TemplateError as error:
            raise InvalidMessages(f"This base model's chat template refuses them: {error}") from error

    def _guarded(self, text: str, marks: _Marks) -> str:
        return self._specials.sub(lambda found: found[0][0] + marks.guard + found[0][1:], text)

    def _marks(self, turns: Sequence[Turn]) -> _Marks:
        texts = [text for turn in turns for text in (turn.content, turn.name) if text and not text.isascii()]
        free = (mark for mark in NONCHARACTERS if not any(mark in text for text in texts))
        marks = tuple(islice(free, 2))
        if len(marks) < 2:
            raise InvalidMessages("They hold every noncharacter U+FDD0…U+FDEF of Unicode; remove these")
        return _Marks(*marks)

    def _special_id(self, literal: str, folder: Path) -> int:
        number = self._tokenizer.token_to_id(literal)
        plain = self._tokenizer.encode(literal, add_special_tokens=False).ids
        if number is None or number in plain or len(literal) < 2:
            raise ValueError(f"{folder}: tokenizer.json does not know {literal!r} as a special token; prepare it again")
        return int(number)

    def _probe(self, name: str) -> None:
        """Finds out what the template does, and refuses one that cannot keep the rules."""
        marks = _Marks(*NONCHARACTERS[:2])
        talk = [Turn("user", "a"), Turn("assistant", " b "), Turn("user", "c"), Turn("assistant", "d", weight=0)]
        try:
            # Rendered without marks: the stripping of a template is not to meet one.
            plain = self._template.render(
                messages=[{"role": turn.role, "content": turn.content} for turn in talk[:2]],
                add_generation_prompt=False,
                **self._variables,
            )
            self._trims = " b " not in plain
            named = [Turn("user", "a", name="\N{SNOWMAN}"), *talk[1:]]
            self.shows_names = "\N{SNOWMAN}" in self._render(named, marks, generation=False)
            self._probe_answers(talk, marks)
        except (TemplateError, InvalidMessages, ValueError) as error:
            raise ValueError(f"the chat template of {name} cannot be used for tuning: {error}") from error

    def _probe_answers(self, talk: Sequence[Turn], marks: _Marks) -> None:
        text = self._render(talk, marks, generation=False)
        for index, turn in enumerate(talk):
            if turn.role != "assistant":
                continue
            before = self._render(talk[:index], marks, generation=True)
            if not text.startswith(before + marks.cut):
                raise ValueError("a prompt is not the beginning of the text that it is answered in")
            end = self._specials.search(text, len(before))
            if end is None or self._special[end[0]] not in self.eos_ids:
                raise ValueError("an answer does not end in an end-of-turn token")


def _in_text(turns: Sequence[Turn], tools: Tools) -> list[Turn]:
    for index, turn in enumerate(turns):
        if turn.beyond_text is not None:
            raise InvalidMessages(f"This base model's chat template has no {turn.beyond_text}.", index)
    return in_text(turns, tools)


def _environment() -> ImmutableSandboxedEnvironment:
    """The dialect of Jinja in which chat templates are published (that of transformers), sandboxed."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = time.strftime
    return environment


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
