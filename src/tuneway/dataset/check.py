"""Checks a training or validation file of chat examples line by line, in constant memory, and tokenises it once.

A file is JSON Lines in UTF-8: one example per line, LF or CRLF, with or without a byte order mark. Blank lines are
passed over wherever they stand. Every other line is an example and is either good or an error with its number; none
is left out. Codes and words are OpenAI's where OpenAI's are known.
"""

from __future__ import annotations

import json
import re
from bisect import insort
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, NoReturn

from tuneway.dataset.messages import InvalidMessages, Turn, normalise, quoted
from tuneway.dataset.report import SHOWN, Finding, Report
from tuneway.dataset.template import Piece, Renderer
from tuneway.dataset.tools import InvalidTools, in_text, read_tools
from tuneway.rundir import TokenExample, TokenWriter
from tuneway.types import JobError

Kind = Literal["training", "validation"]

MIN_EXAMPLES = 10
MAX_LINE_BYTES = 2 * 2**20
"""A bound on memory: more text than a context of 128k tokens holds.

The worst such line (all emoji) takes 600 MB while it is tokenised, English a sixth of that.
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

_TOP_LEVEL_KEYS = frozenset({"messages", "tools", "parallel_tool_calls", "functions"})
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
) -> Report:
    """Checks every example of `path` and says all that is wrong with it.

    With a renderer, examples are tokenised, cut to `context_length` tokens from the end (a warning each) and, if the
    file is good, written to `tokens` in the form that `rundir.read_tokens` reads. `min_examples` applies to training
    files; a validation file needs one. Raises OSError when a file cannot be read or written.
    """
    writer = TokenWriter(tokens) if renderer is not None and tokens is not None else None
    run = _Run(kind, renderer, context_length, writer)
    try:
        with path.open("rb") as file:
            for line, raw in _lines(file):
                run.take(line, raw)
        run.flush()
        report = run.report(min_examples if kind == "training" else 1)
        if writer is not None and report.error is None:
            writer.close()
        return report
    finally:
        if writer is not None:
            writer.discard()


class _BadExample(Exception):
    """What is wrong with one example. `mismatch`: the file has the form of another training method."""

    def __init__(self, message: str, *, mismatch: bool = False) -> None:
        self.message = message
        self.mismatch = mismatch
        super().__init__(message)


class _Waiting(NamedTuple):
    """A good example that waits for its batch to be tokenised."""

    example: int
    line: int
    pieces: list[Piece]


class _Run:
    """One pass over one file: what was counted and found so far."""

    def __init__(self, kind: Kind, renderer: Renderer | None, context_length: int, writer: TokenWriter | None) -> None:
        self._kind = kind
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
        self._first: tuple[int, _BadExample] | None = None
        self._names_told = False

    def take(self, line: int, raw: bytes | None) -> None:
        """The next line of the file; None stands for one that is too long to be read."""
        if raw is not None and not raw.strip(_BLANK):
            return
        self._n_examples += 1
        example = self._n_examples
        try:
            value = _parse(raw, example, line)
            turns, tools = _turns(value, example), read_tools(value)
            self._refuse_tokens(in_text(turns, tools), example)
            if self._renderer is None:
                return
            pieces = self._renderer.pieces_of(turns, tools)
        except _BadExample as bad:
            self._bad(example, line, bad)
        except InvalidMessages as invalid:
            self._bad(example, line, _BadExample(_located(invalid, example, line)))
        except InvalidTools as invalid_tools:
            reason = f'Line {line}, key "{invalid_tools.param}": {invalid_tools.reason}'
            self._bad(example, line, _BadExample(reason))
        except RecursionError:
            self._bad(example, line, _BadExample(f"Example {example} is nested too deeply (line {line})"))
        else:
            named = any(turn.name for turn in turns if turn.role != "function")
            if named and not self._names_told and not self._renderer.shows_names:
                self._names_told = True
                text = f"Example {example} names a participant; this base model's chat template shows no names."
                self._warn(example, line, text)
            self._waiting.append(_Waiting(example, line, pieces))
            self._waiting_characters += len(raw or b"")
            if self._waiting_characters >= _BATCH_CHARACTERS:
                self.flush()

    def flush(self) -> None:
        """Tokenises what waits."""
        if self._renderer is not None and self._waiting:
            encoded = self._renderer.encode([waiting.pieces for waiting in self._waiting])
            for waiting, example in zip(self._waiting, encoded, strict=True):
                self._tokenised(waiting.example, waiting.line, example)
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
        )

    def _tokenised(self, number: int, line: int, example: TokenExample) -> None:
        length, limit = len(example.tokens), self._context_length
        if length > limit:
            example = TokenExample(example.tokens[:limit], example.weights[:limit])
            if not any(example.weights):
                text = (
                    f"Example {number} has {length:,} tokens, and no assistant token to learn from lies within the "
                    f"context length of {limit:,}."
                )
                self._bad(number, line, _BadExample(text))
                return
            text = f"Example {number} has {length:,} tokens; the last {length - limit:,} were cut to fit the context "
            self._warn(number, line, text + f"length of {limit:,}.")
        self._tokens += len(example.tokens)
        self._supervised += sum(example.weights)
        self._longest = max(self._longest, len(example.tokens))
        if self._writer is not None:
            self._writer.write(example)

    def _refuse_tokens(self, turns: list[Turn], example: int) -> None:
        for turn in turns:
            found = self._forbidden.search(turn.content) or (turn.name and self._forbidden.search(turn.name))
            if found:
                raise _BadExample(f"Example {example} message contains an invalid token: {found[0]}.")

    def _bad(self, example: int, line: int, bad: _BadExample) -> None:
        self._n_errors += 1
        # By line, since errors of tokenising come a batch late.
        insort(self._errors, Finding(example, line, bad.message), key=lambda finding: finding.line)
        del self._errors[SHOWN:]
        if self._first is None or line < self._first[0]:
            self._first = (line, bad)

    def _warn(self, example: int, line: int, text: str) -> None:
        self._n_warnings += 1
        if len(self._warnings) < SHOWN:
            self._warnings.append(Finding(example, line, text))

    def _error(self, min_examples: int) -> JobError | None:
        param = f"{self._kind}_file"
        if self._first is not None:
            bad = self._first[1]
            if bad.mismatch:
                code, opening = "invalid_training_file", f"an invalid {self._kind} file"
            else:
                code, opening = "invalid_file_format", f"a file format error in the {self._kind} file"
            message = f"The job failed due to {opening}. Invalid file format. {bad.message}"
        elif self._n_examples < min_examples:
            code = "invalid_n_examples"
            has = f"{self._kind.capitalize()} file has {self._n_examples} example(s)"
            message = f"{has}, but must have at least {min_examples} example{'' if min_examples == 1 else 's'}"
        else:
            return None
        return JobError(code if self._kind == "training" else "invalid_validation_file", message, param)


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """The lines with their numbers from 1; None in place of a line longer than MAX_LINE_BYTES."""
    number = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if len(raw) <= MAX_LINE_BYTES or raw.endswith(b"\n"):
            yield number, raw
            continue
        while raw and not raw.endswith(b"\n"):
            raw = file.readline(MAX_LINE_BYTES)
        yield number, None


def _parse(raw: bytes | None, example: int, line: int) -> Mapping[str, Any]:
    """The JSON object on a line, by the letter of JSON."""
    if raw is None:
        reason = f"line is longer than {MAX_LINE_BYTES:,} bytes; shorten or split the example"
        raise _BadExample(f"Example {example} cannot be parsed. Error: {reason} (line {line})")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        reason = f"line is not UTF-8: {error.reason} at byte {error.start}"
        raise _BadExample(f"Example {example} cannot be parsed. Error: {reason} (line {line})") from None
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except ValueError as error:
        reason = f"line contains invalid json: {error}"
        raise _BadExample(f"Example {example} cannot be parsed. Error: {reason} (line {line})") from None
    if not isinstance(value, dict):
        raise _BadExample(
            "Expected file to have JSONL format, where every line is a JSON dictionary. "
            f"Line {line} is not a dictionary (HINT: line starts with: {quoted(text[:4])})."
        )
    return value


def _turns(value: Mapping[str, Any], example: int) -> list[Turn]:
    """The conversation of an example. Raises _BadExample or InvalidMessages."""
    if "messages" not in value:
        _refuse_format(value, example)
    for key in value:
        if key not in _TOP_LEVEL_KEYS:
            raise _BadExample(f"Example {example} contains an extra {quoted(key)}.")
    turns = normalise(value["messages"])
    answers = [turn for turn in turns if turn.role == "assistant"]
    if not answers:
        raise _BadExample(f"Example {example} must have at least one message from the assistant.")
    if not any(turn.weight for turn in answers):
        raise _BadExample(f'Example {example} has nothing to learn from: every assistant message has "weight": 0.')
    return turns


def _refuse_format(value: Mapping[str, Any], example: int) -> NoReturn:
    """An example without `messages`: of another training method, or of none."""
    if "input" in value and any(key.startswith(("preferred_", "non_preferred_")) for key in value):
        raise _BadExample(
            "Input file is in the fine-tune-preference format, but the specified fine-tuning job is not using 'dpo' as "
            "the training method (provided method=supervised).",
            mismatch=True,
        )
    if "prompt" in value and "completion" in value:
        raise _BadExample(
            "Input file is in the fine-tune-completions format, but the base model of the specified fine-tuning job is "
            "a chat model; every line needs 'messages'.",
            mismatch=True,
        )
    raise _BadExample(f"Example {example} is missing key 'messages'")


def _located(invalid: InvalidMessages, example: int, line: int) -> str:
    """In OpenAI's words: an error in a field names the line, any other the example; both count from 1."""
    if invalid.index is None:
        return f'Line {line}, key "messages": {invalid.reason}'
    if invalid.key is None:
        return f"Example {example}, message {invalid.index + 1} {invalid.reason}"
    return f'Line {line}, message {invalid.index + 1}, key "{invalid.key}": {invalid.reason}'


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
