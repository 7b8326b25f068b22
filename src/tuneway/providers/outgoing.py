"""A checked file on its way to a vendor, in the form that it takes: no row changes, but a dpo row's old spelling.

Read in pieces and off the event loop: it may have half a gigabyte.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator

from tuneway.dataset.convert import (
    BOM,
    renamed_outputs,
    with_bom,
    with_bom_size,
    without_bom,
    without_bom_size,
)
from tuneway.types import DataFile, Method

PIECE = 256 * 1024


class Outgoing:
    """`bom`: whether it begins with a byte order mark, or has none."""

    def __init__(self, file: DataFile, *, bom: bool) -> None:
        self._file = file
        self._bom = bom

    def size(self) -> int:
        """In bytes; of a dpo file it is counted, of others known."""
        if self._file.method is Method.DPO:
            return sum(map(len, self._converted()))
        with self._file.path.open("rb") as file:
            marked = file.read(len(BOM)) == BOM
        resized = with_bom_size if self._bom else without_bom_size
        return resized(self._file.bytes, bom=marked)

    def rows(self) -> int:
        """How many examples there are."""
        with self._file.path.open("rb") as file:
            return sum(not line.isspace() for line in file)

    async def pieces(self) -> AsyncIterator[bytes]:
        pieces = self._converted()
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield piece

    def _converted(self) -> Iterator[bytes]:
        with self._file.path.open("rb") as file:
            chunks: Iterable[bytes] = iter(lambda: file.read(PIECE), b"")
            if self._file.method is Method.DPO:
                chunks = renamed_outputs(file)
            yield from (with_bom if self._bom else without_bom)(chunks)
