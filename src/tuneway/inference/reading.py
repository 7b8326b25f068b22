"""From the pieces of an engine to the parts of an answer: text, calls with their arguments, and the end.

A streamed and a whole answer are made of the same parts. Text that may be the beginning of a call, or of a stop string,
is held back until it is known. Where calls are possible the stop strings are looked for here, in the text before the
first call: inside a call they mean nothing, so that none is cut off.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass

from tuneway.dataset.tools import OPEN
from tuneway.errors import InternalError
from tuneway.inference.engine import Piece, TokenLogprob
from tuneway.inference.form import Form

_HEAD = re.compile(r'\n\{"name": "([a-zA-Z0-9_-]+)", "arguments": ')


@dataclass(frozen=True, slots=True)
class Text:
    """Text of the content, and the log-probabilities of tokens that are now wholly in it. Either may be empty."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class CallStart:
    """Call `index` (from 0) begins."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the arguments' JSON text of call `index`."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class End:
    """The end of an answer; `last` holds the counts."""

    finish_reason: str
    last: Piece


Part = Text | CallStart | Arguments | End


async def read(pieces: AsyncGenerator[Piece], form: Form, stop: tuple[str, ...]) -> AsyncGenerator[Part]:
    """The parts of one answer; a Text comes first, when the engine has taken the prompt on. Closes `pieces`.

    `stop`: the engine looks for them, or `read` does where calls are possible. Raises InternalError when the answer
    breaks the form.
    """
    reader = _Calls(stop) if form.calls else None
    text = ""
    async with aclosing(pieces):
        async for piece in pieces:
            parts = iter([Text(piece.text, piece.logprobs)]) if reader is None else reader.feed(piece)
            for part in parts:
                text += part.text if isinstance(part, Text) and form.json else ""
                yield part
            if reader is not None and reader.stopped:
                yield End("stop", piece)
                return
            if piece.finish_reason is None:
                continue
            for part in reader.end() if reader is not None else ():
                text += part.text if form.json else ""
                yield part
            _check(form, reader, text, piece.finish_reason, stop)
            called = reader is not None and reader.n_calls
            yield End(form.finish_reason if called and piece.finish_reason == "stop" else piece.finish_reason, piece)
            return


def _check(form: Form, reader: _Calls | None, text: str, finish_reason: str, stop: tuple[str, ...]) -> None:
    """llama.cpp goes on without a grammar that fails in the midst of an answer; nobody says so but the text."""
    if finish_reason != "stop":
        return
    called = reader is not None and reader.n_calls
    if reader is not None and (reader.unfinished or (form.must_call and not called)):
        raise InternalError("The engine lost the form of a call. Send the request again, with simpler parameters.")
    if form.json and not called and not stop:
        try:
            json.loads(text)
        except ValueError:
            raise InternalError("The engine lost the form of the JSON. Send the request again.") from None


class _Calls:
    """Reads text in the form of `dataset.tools.call_text`, to the letter: a grammar holds the model to it."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.n_calls = 0
        self.stopped = False
        self._marks = (*stop, "\n" + OPEN, OPEN)
        self._state = self._text
        self._held = ""
        self._waiting: list[TokenLogprob] = []
        self._uncovered = 0
        self._depth = 0
        self._in_string = self._escaped = False

    @property
    def unfinished(self) -> bool:
        return self._state in (self._head, self._arguments)

    def feed(self, piece: Piece) -> Iterator[Part]:
        self._held += piece.text
        self._waiting += piece.logprobs
        if self._state == self._text and not piece.text:
            yield Text("")
        before = None
        while before != (self._state, self._held) and not self.stopped:
            before = self._state, self._held
            yield from self._state()

    def end(self) -> Iterator[Text]:
        """What was held back in vain."""
        if self._state == self._text and not self.stopped:
            yield self._shown(self._held)

    def _text(self) -> Iterator[Part]:
        found = [(at, number) for number, mark in enumerate(self._marks) if (at := self._held.find(mark)) >= 0]
        if not found:
            keep = self._pending()
            text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
            if text:
                yield self._shown(text)
            return
        at, number = min(found)
        if at:
            yield self._shown(self._held[:at])
        mark = self._marks[number]
        self._held = self._held[at + len(mark) :]
        if mark.endswith(OPEN) and number >= len(self._marks) - 2:
            self._state = self._head
        else:
            self.stopped = True

    def _pending(self) -> int:
        """Characters at the end of what is held that may be the beginning of a mark."""
        for length in range(min(len(self._held), max(map(len, self._marks)) - 1), 0, -1):
            if any(mark.startswith(self._held[-length:]) for mark in self._marks):
                return length
        return 0

    def _shown(self, text: str) -> Text:
        self._uncovered += len(text)
        covered = []
        while self._waiting and len(self._waiting[0].token) <= self._uncovered:
            self._uncovered -= len(self._waiting[0].token)
            covered.append(self._waiting.pop(0))
        return Text(text, tuple(covered))

    def _head(self) -> Iterator[Part]:
        if head := _HEAD.match(self._held):
            self._held = self._held[head.end() :]
            self._state = self._arguments
            self.n_calls += 1
            yield CallStart(self.n_calls - 1, head[1])

    def _arguments(self) -> Iterator[Part]:
        for at, letter in enumerate(self._held):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = letter == "\\"
                self._in_string = letter != '"'
            elif letter == '"':
                self._in_string = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if not self._depth:
                    yield Arguments(self.n_calls - 1, self._held[: at + 1])
                    self._held = self._held[at + 1 :]
                    self._state = self._between
                    return
        if self._held:
            yield Arguments(self.n_calls - 1, self._held)
            self._held = ""

    def _between(self) -> Iterator[Part]:
        at = self._held.find(OPEN)
        if at >= 0:
            self._held = self._held[at + len(OPEN) :]
            self._state = self._head
        yield from ()
