"""Grammars (llguidance's Lark) that hold a model to JSON and to calls; and the trial that every one of them has first.

llama.cpp generates without any constraint when a grammar does not compile, and all its streams wait while one does. So
`Trial` compiles and follows each grammar before, in a child process that may use little time and memory:
`python -m tuneway.inference.grammar` reads a list of grammars as JSON and prints the index and the fault of the first
that cannot be used, or null. The byte for a token is enough there: what is compiled does not depend on the vocabulary.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import resource
import sys
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from tuneway.dataset.tools import CLOSE, OPEN
from tuneway.errors import InternalError

_CPU_SECONDS = 2
"""The start of a child takes a tenth of one. The clock of this limit ticks in whole seconds."""
_MEMORY_BYTES = 2**30
_WALL_SECONDS = 60
_REMEMBERED = 512
_WALKS, _STEPS = 4, 100

log = logging.getLogger(__name__)

MAX_CALLS = 32
"""In one answer; a small model that must call may not find an end."""

_HEAD = "%llguidance {}"
_END, _NOTHING = "end", '""'
# White space is fixed, for small models like to write it for ever: llguidance has a pattern for it, which the version
# in llama.cpp lets match again and again.
_COMPACT = {"whitespace_flexible": False}
_SPACED = {**_COMPACT, "item_separator": ", ", "key_separator": ": "}


def json_grammar(schema: Mapping[str, Any]) -> str:
    """One JSON value that is valid for `schema`, on one line: compact, or spaced as most training data has it."""
    return "\n".join([_HEAD, *_either("json", schema), f"start: json {_END}"])


def ending(grammar: str, eos_ids: Collection[int]) -> str:
    """The grammar for one vocabulary: an answer ends with one of these tokens, or just ends where there are none.

    The llguidance inside llama.cpp (November 2026) does not offer the end of a turn where a text may go on, unless the
    grammar itself has it: a model that was shown tools talked for ever.
    """
    return f"{grammar}\n{_END}: {' | '.join(f'<[{number}]>' for number in sorted(eos_ids)) or _NOTHING}"


def calls_grammar(
    functions: Mapping[str, Mapping[str, Any]], *, many: bool, required: bool, otherwise: Mapping[str, Any] | None
) -> str:
    """Calls of `functions` (names and schemas of their arguments) in the form of `dataset.tools.call_text`.

    Unless `required`, any text may stand before the first call or without one; or, where `otherwise` is a schema, the
    answer is either calls or JSON.
    """
    lines = [_HEAD]
    for at, (name, schema) in enumerate(functions.items()):
        head = f'{{"name": "{name}", "arguments": '
        lines.append(f'call{at}: {json.dumps(head)} arguments{at} "}}"')
        lines.append(f"arguments{at}: {_json(schema, _COMPACT)}")
    lines.append("call: " + " | ".join(f"call{at}" for at in range(len(functions))))
    before, after = json.dumps(OPEN + "\n"), json.dumps("\n" + CLOSE)
    block = f"{before} call {after}"
    more = f' ("\\n" {block}){{0,{MAX_CALLS - 1}}}' if many else ""
    if required:
        lines.append(f"start: {block}{more} {_END}")
    elif otherwise is not None:
        lines += _either("json", otherwise)
        lines.append(f"start: json {_END} | {block}{more} {_END}")
    else:
        # One token of the grammar: what stands before a call ends where the call begins.
        lines.append(f"TEXT: /(?s:.*)/ & ~/(?s:.*{OPEN}.*)/")
        lines.append(f"BEFORE: TEXT {before}")
        lines.append(f"start: TEXT {_END} | BEFORE call {after}{more} {_END}")
    return "\n".join(lines)


def _either(rule: str, schema: Mapping[str, Any]) -> list[str]:
    spaced, compact = _json(schema, _SPACED), _json(schema, _COMPACT)
    return [f"{rule}: spaced | compact", f"spaced: {spaced}", f"compact: {compact}"]


def _json(schema: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({**schema, "x-guidance": options})


class Trial:
    """Tries grammars, one list at a time, and remembers the verdicts."""

    def __init__(self) -> None:
        self._verdicts: OrderedDict[bytes, tuple[int, str] | None] = OrderedDict()
        self._lock = asyncio.Lock()

    async def fault(self, grammars: Sequence[str]) -> tuple[int, str] | None:
        """The index of the first grammar that cannot be used and what is wrong with it; None when all can.

        Raises InternalError when there is no child to ask.
        """
        request = json.dumps([ending(grammar, ()) for grammar in grammars]).encode()
        key = hashlib.sha256(request).digest()
        async with self._lock:
            if key not in self._verdicts:
                self._verdicts[key] = await _try(request, len(grammars))
            self._verdicts.move_to_end(key)
            if len(self._verdicts) > _REMEMBERED:
                self._verdicts.popitem(last=False)
            return self._verdicts[key]


async def _try(request: bytes, count: int) -> tuple[int, str] | None:
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "tuneway.inference.grammar")
    child = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    out, err = b"", b""
    try:
        out, err = await asyncio.wait_for(child.communicate(request), _WALL_SECONDS)
    except TimeoutError:
        pass  # killed below, as by a limit
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    lines = out.decode().splitlines()
    if child.returncode == 0:
        found = json.loads(lines[-1])
        return None if found is None else (int(found[0]), str(found[1]))
    if child.returncode is not None and child.returncode > 0:
        log.error("the trial of a grammar failed: %s", err.decode(errors="replace")[-2000:])
        raise InternalError("The engine could not try the schema; its log says why.")
    # A limit or a crash ended it. Each line stands for a grammar that was good.
    return min(len(lines), count - 1), "it takes too much time or memory to compile. Make it smaller"


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    with suppress(ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for at, grammar in enumerate(json.load(sys.stdin)):
        fault = _fault(grammar)
        if fault:
            sys.stdout.write(json.dumps([at, fault]) + "\n")
            return
        sys.stdout.write("good\n")
        sys.stdout.flush()
    sys.stdout.write("null\n")


def _fault(grammar: str) -> str:
    """Compiles and follows the grammar on ways drawn by chance, within somewhat less than llama.cpp's own limits."""
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    limits = LLParserLimits(max_items_in_row=1_800, step_max_items=25_000, step_lexer_fuel=100_000)
    tokenizer = LLTokenizer("byte")
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    chance = random.Random(0)  # noqa: S311  # the same ways each time
    for _ in range(_WALKS):
        for _ in range(_STEPS):
            mask = matcher.compute_bitmask()
            possible = [byte for byte in range(0x20, 0x7F) if mask[byte // 8] >> byte % 8 & 1]
            if not possible or matcher.is_stopped():
                break
            # Quotes and brackets end what else would go on for the whole of the way.
            ends = [byte for byte in possible if byte in b'"]}:,']
            matcher.consume_token(chance.choice(ends if ends and chance.random() < 0.5 else possible))
        if matcher.is_error():
            return str(matcher.get_error())
        matcher.reset()
    return ""


if __name__ == "__main__":
    main()
