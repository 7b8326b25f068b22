"""Checks a training or validation file of a method line by line, in constant memory, and tokenises it once.

A file is JSON Lines in UTF-8: one example per line, LF or CRLF, with or without a byte order mark. Blank lines are
passed over wherever they stand. Every other line is an example and is either good or an error with its number; none
is left out. Codes and words are OpenAI's where OpenAI's are known.
"""

from __future__ import annotations

import json
import re
from bisect import insort
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, NoReturn

from tuneway.dataset.convert import BOM, renamed_line
from tuneway.dataset.features import Feature, features_of, refusal
from tuneway.dataset.images import MAX_LINE_DATA, ImageTooLarge, without_data
from tuneway.dataset.messages import InvalidMessages, quoted
from tuneway.dataset.report import SHOWN, Finding, Report
from tuneway.dataset.rows import BadExample, Fault, Place, Row, located, read_row, refuse_images
from tuneway.dataset.template import Piece, Renderer
from tuneway.rundir import TokenExample, TokenWriter
from tuneway.types import JobError, Method

Kind = Literal["training", "validation"]

MIN_EXAMPLES = 10
MAX_LINE_BYTES = 2 * 2**20
"""A bound on memory: more text than a context of 128k tokens holds.

The worst such line (all emoji) takes 600 MB while it is tokenised, English a sixth of that. Without a renderer the
data of images, which is left out as soon as it was read, does not count: a line may have 147 MB of that besides, and
takes twice as much while it is read.
"""

OPENAI_TOKENS = (
    "<|endoftext|>",
    "<|endofprompt|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|im_start|>",
    "<|im_end|>",
)
"""What OpenAI refuses in training data, whatever the base model."""

_TOO_LONG = f"line is longer than {MAX_LINE_BYTES:,} bytes; shorten or split the example"
_BATCH_CHARACTERS = 2**18
_BLANK = b" \t\r\n"


def check(
    path: Path,
    *,
    kind: Kind,
    renderer: Renderer | None,
    context_length: int,
    tokens: Path | None = None,
    min_examples: int = MIN_EXAMPLES,
    method: Method = Method.SUPERVISED,
    refused: Collection[Feature] = (),
) -> Report:
    """Checks every example of `path` and says all that is wrong with it.

    A feature in `refused` is an error, of the first example that uses it. `min_examples` applies to training files; a
    validation file needs one. With a renderer, examples are tokenised, cut to `context_length` tokens from the end (a
    warning each) and, if the file is good, written to `tokens` in the form that `rundir.read_tokens` reads.

    Raises OSError when a file cannot be read or written, and ValueError for a renderer with another method than
    `supervised`: no other has a form in tokens.
    """
    if renderer is not None and method is not Method.SUPERVISED:
        raise ValueError(
            f"examples for '{method.value}' cannot be tokenised; tune at a provider that does it by itself"
        )
    writer = TokenWriter(tokens) if renderer is not None and tokens is not None else None
    run = _Run(kind, renderer, context_length, writer, method, frozenset(refused))
    try:
        with path.open("rb") as file:
            for line, raw in _lines(file, data=0 if renderer is not None else MAX_LINE_DATA):
                run.take(line, raw)
        run.flush()
        report = run.report(min_examples if kind == "training" else 1)
        if writer is not None and report.error is None:
            writer.close()
        return report
    finally:
        if writer is not None:
            writer.discard()


class _Waiting(NamedTuple):
    """A good example that waits for its batch to be tokenised."""

    place: Place
    pieces: list[Piece]


class _Run:
    """One pass over one file: what was counted and found so far."""

    def __init__(
        self,
        kind: Kind,
        renderer: Renderer | None,
        context_length: int,
        writer: TokenWriter | None,
        method: Method,
        refused: frozenset[Feature],
    ) -> None:
        self._kind = kind
        self._method = method
        self._refused = refused
        self._renderer = renderer
        self._context_length = context_length
        self._writer = writer
        literals = {*OPENAI_TOKENS, *(renderer.forbidden if renderer else ())}
        self._forbidden = re.compile("|".join(map(re.escape, sorted(literals, key=len, reverse=True))))
        self._waiting: list[_Waiting] = []
        self._waiting_characters = 0
        self._n_examples = self._tokens = self._supervised = self._longest = 0
        self._errors: list[Finding] = []
        self._warnings: list[Finding] = []
        self._n_errors = self._n_warnings = 0
        self._first: tuple[int, BadExample] | None = None
        self._features: set[Feature] = set()
        self._bom = False
        self._old_outputs = 0
        self._names_told = False

    def take(self, line: int, raw: bytes | str) -> None:
        """The next line of the file; a text instead of its bytes says why it cannot be read."""
        if isinstance(raw, bytes):
            if line == 1 and raw.startswith(BOM):
                self._bom = True
                raw = raw.removeprefix(BOM)
            if not raw.strip(_BLANK):
                return
        self._n_examples += 1
        place = Place(self._n_examples, line)
        try:
            value = _parse(raw, place)
            row = read_row(value, self._method, place)
            self._refuse_tokens(row, place)
            features = self._note(row, place)
            if row.old_outputs and isinstance(raw, bytes):
                self._old_outputs += len(raw) - len(renamed_line(raw))
            if self._renderer is None:
                refuse_images(row, place)
                return
            pieces = self._renderer.pieces_of(row.conversation.turns, row.tools)
        except BadExample as bad:
            self._bad(place, bad)
        except InvalidMessages as invalid:
            self._bad(place, BadExample(located(invalid, place)))
        except RecursionError:
            self._bad(place, BadExample(f"Example {place.example} is nested too deeply (line {line})"))
        else:
            named = Feature.NAMES in features
            if named and not self._names_told and not self._renderer.shows_names:
                self._names_told = True
                text = f"Example {place.example} names a participant; this base model's chat template shows no names."
                self._warn(place, text)
            self._waiting.append(_Waiting(place, pieces))
            self._waiting_characters += len(raw)
            if self._waiting_characters >= _BATCH_CHARACTERS:
                self.flush()

    def flush(self) -> None:
        """Tokenises what waits."""
        if self._renderer is not None and self._waiting:
            encoded = self._renderer.encode([waiting.pieces for waiting in self._waiting])
            for waiting, example in zip(self._waiting, encoded, strict=True):
                self._tokenised(waiting.place, example)
        self._waiting.clear()
        self._waiting_characters = 0

    def report(self, min_examples: int) -> Report:
        counted = self._renderer is not None
        return Report(
            n_examples=self._n_examples,
            tokens=self._tokens if counted else None,
            supervised_tokens=self._supervised if counted else None,
            longest=self._longest if counted else None,
            error=self._error(min_examples),
            errors=tuple(self._errors),
            n_errors=self._n_errors,
            warnings=tuple(self._warnings),
            n_warnings=self._n_warnings,
            features=tuple(feature for feature in Feature if feature in self._features),
            bom=self._bom,
            old_outputs=self._old_outputs,
        )

    def _note(self, row: Row, place: Place) -> set[Feature]:
        """The features that the row uses; the first use of one that the provider does not take is an error."""
        found = features_of(row)
        new = found - self._features
        if new:
            self._features |= new
            for feature in Feature:
                if feature in new and feature in self._refused:
                    self._bad(place, refusal(feature, place))
        return found

    def _tokenised(self, place: Place, example: TokenExample) -> None:
        length, limit = len(example.tokens), self._context_length
        if length > limit:
            has = f"Example {place.example} has {length:,} tokens"
            example = TokenExample(example.tokens[:limit], example.weights[:limit])
            if not any(example.weights):
                text = f"{has}, and no assistant token to learn from lies within the context length of {limit:,}."
                self._bad(place, BadExample(text))
                return
            self._warn(place, f"{has}; the last {length - limit:,} were cut to fit the context length of {limit:,}.")
        self._tokens += len(example.tokens)
        self._supervised += sum(example.weights)
        self._longest = max(self._longest, len(example.tokens))
        if self._writer is not None:
            self._writer.write(example)

    def _refuse_tokens(self, row: Row, place: Place) -> None:
        for turn in row.shown():
            found = self._forbidden.search(turn.content) or (turn.name and self._forbidden.search(turn.name))
            if found:
                raise BadExample(f"Example {place.example} message contains an invalid token: {found[0]}.")

    def _bad(self, place: Place, bad: BadExample) -> None:
        self._n_errors += 1
        # By line, since errors of tokenising come a batch late.
        insort(self._errors, Finding(place.example, place.line, bad.message), key=lambda finding: finding.line)
        del self._errors[SHOWN:]
        if self._first is None or place.line < self._first[0]:
            self._first = (place.line, bad)

    def _warn(self, place: Place, text: str) -> None:
        self._n_warnings += 1
        if len(self._warnings) < SHOWN:
            self._warnings.append(Finding(place.example, place.line, text))

    def _error(self, min_examples: int) -> JobError | None:
        param = f"{self._kind}_file"
        if self._first is not None:
            bad = self._first[1]
            code, opening = "invalid_training_file", f"an invalid {self._kind} file. Invalid file format"
            if bad.fault is Fault.PROVIDER:
                opening = f"an invalid {self._kind} file"
            elif bad.fault is Fault.FORMAT:
                code = "invalid_file_format"
                opening = f"a file format error in the {self._kind} file. Invalid file format"
            message = f"The job failed due to {opening}. {bad.message}"
        elif self._n_examples < min_examples:
            code = "invalid_n_examples"
            has = f"{self._kind.capitalize()} file has {self._n_examples} example(s)"
            message = f"{has}, but must have at least {min_examples} example{'' if min_examples == 1 else 's'}"
        else:
            return None
        return JobError(code if self._kind == "training" else "invalid_validation_file", message, param)


def _lines(file: IO[bytes], *, data: int) -> Iterator[tuple[int, bytes | str]]:
    """The lines with their numbers from 1; a text in place of a line says why it cannot be read.

    With `data`, a line longer than MAX_LINE_BYTES comes without that of its images, of which it has so many bytes;
    columns in what is said of it are those that it has then.
    """
    number = 0
    longest = MAX_LINE_BYTES + data
    while raw := file.readline(longest + 1):
        number += 1
        if len(raw) > longest and not raw.endswith(b"\n"):
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(MAX_LINE_BYTES)
            yield number, _TOO_LONG
        elif len(raw) > MAX_LINE_BYTES + 1:
            try:
                raw = without_data(raw)
            except ImageTooLarge as error:
                yield number, str(error)
            else:
                yield number, raw if len(raw) <= MAX_LINE_BYTES + 1 else _TOO_LONG
        else:
            yield number, raw


def _parse(raw: bytes | str, place: Place) -> Mapping[str, Any]:
    """The JSON object on a line, by the letter of JSON. Raises BadExample."""
    if isinstance(raw, str):
        raise _unreadable(raw, place)
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise _unreadable(f"line is not UTF-8: {error.reason} at byte {error.start}", place) from None
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except ValueError as error:
        raise _unreadable(f"line contains invalid json: {error}", place) from None
    if not isinstance(value, dict):
        raise BadExample(
            "Expected file to have JSONL format, where every line is a JSON dictionary. "
            f"Line {place.line} is not a dictionary (HINT: line starts with: {quoted(text[:4])})."
        )
    return value


def _unreadable(reason: str, place: Place) -> BadExample:
    return BadExample(f"Example {place.example} cannot be parsed. Error: {reason} (line {place.line})")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"Duplicate key {quoted(key)}")
            seen.add(key)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")
