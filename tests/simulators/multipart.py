"""Reads `multipart/form-data` as it comes: every part is counted and hashed, and only a small one is kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

KEPT = 8 * 1024 * 1024
"""A content beyond this is only counted and hashed: tests send files of hundreds of megabytes."""


@dataclass
class Part:
    """One part. `content` is None when it was too large to keep."""

    name: str
    filename: str | None
    kind: str | None
    size: int = 0
    lines: int = 0
    content: bytearray | None = field(default_factory=bytearray)
    sha256: Any = field(default_factory=hashlib.sha256)
    last: bytes = b"\n"

    def add(self, data: bytes) -> None:
        if not data:
            return
        self.size += len(data)
        self.lines += data.count(b"\n")
        self.last = data[-1:]
        self.sha256.update(data)
        if self.content is not None:
            self.content += data
            if self.size > KEPT:
                self.content = None

    @property
    def rows(self) -> int:
        """Lines, counting a last one without its newline."""
        return self.lines + (self.last != b"\n")

    @property
    def text(self) -> str:
        return bytes(self.content or b"").decode("utf-8", "replace")


class Form:
    """The parts read so far; `whole` when the closing boundary came."""

    def __init__(self, content_type: str) -> None:
        self.parts: list[Part] = []
        self.whole = False
        self.broken = False
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        _, options = parse_options_header(content_type)
        self._parser = MultipartParser(
            options.get(b"boundary", b"-"),
            {
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._begin,
                "on_part_data": self._data,
                "on_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        if not self.broken:
            try:
                self._parser.write(data)
            except FormParserError:
                self.broken = True

    def part(self, name: str) -> Part | None:
        return next((part for part in self.parts if part.name == name), None)

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _begin(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        filename = options.get(b"filename")
        kind = self._headers.get(b"content-type")
        self.parts.append(
            Part(
                options.get(b"name", b"").decode("utf-8", "replace"),
                None if filename is None else filename.decode("utf-8", "replace"),
                None if kind is None else kind.decode("latin-1"),
            )
        )
        self._headers = {}

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].add(data[start:end])

    def _end(self) -> None:
        self.whole = True
