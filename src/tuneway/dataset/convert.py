"""A checked file in the form that a provider wants: bytes in, bytes out, a piece at a time, and its size beforehand.

Nothing else of a file changes: each row stays the row that was checked, byte for byte. The conversions can follow one
another: `with_bom(renamed_outputs(file))`. What their sizes need to know is in the check's `Report`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator

BOM = codecs.BOM_UTF8

PIECE = 2**20
"""Bytes that `renamed_outputs` gives at a time, at least, so that short lines cost no call each."""

_RENAMED = {"preferred_completion": b'"preferred_output"', "non_preferred_completion": b'"non_preferred_output"'}
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]]', re.DOTALL)
_COLON = re.compile(rb"[ \t\r\n]*:")


def with_bom(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The file with its byte order mark in front, the one that it had or a new one."""
    yield BOM
    yield from without_bom(chunks)


def with_bom_size(size: int, *, bom: bool) -> int:
    """The size of what `with_bom` makes of `size` bytes; `bom`: they begin with the mark already."""
    return size if bom else size + len(BOM)


def without_bom(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The file without its byte order mark, if it has one."""
    chunks = iter(chunks)
    start = b""
    for chunk in chunks:
        start += chunk
        if len(start) >= len(BOM):
            break
    start = start.removeprefix(BOM)
    if start:
        yield start
    yield from chunks


def without_bom_size(size: int, *, bom: bool) -> int:
    """The size of what `without_bom` makes of `size` bytes; `bom`: they begin with the mark."""
    return size - len(BOM) if bom else size


def renamed_outputs(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The rows of a dpo file in the spelling `_output`, whichever they had. An open file gives its `lines`."""
    waiting: list[bytes] = []
    size = 0
    for line in lines:
        renamed = renamed_line(line)
        waiting.append(renamed)
        size += len(renamed)
        if size >= PIECE:
            yield b"".join(waiting)
            waiting.clear()
            size = 0
    if waiting:
        yield b"".join(waiting)


def renamed_outputs_size(size: int, *, old_outputs: int) -> int:
    """The size of what `renamed_outputs` makes of `size` bytes; `old_outputs` is the report's."""
    return size - old_outputs


def renamed_line(line: bytes) -> bytes:
    """One row; whatever holds no such key comes back as it is."""
    if b"preferred_completion" not in line and b"\\u" not in line:
        return line
    pieces = []
    depth = done = 0
    for found in _STRING_OR_BRACKET.finditer(line):
        token = found[0]
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
        elif depth == 1 and _COLON.match(line, found.end()):
            name = _RENAMED.get(json.loads(token.decode()))
            if name is not None:
                pieces += [line[done : found.start()], name]
                done = found.end()
    pieces.append(line[done:])
    return b"".join(pieces)
