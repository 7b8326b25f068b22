"""A client's file that waits on the gateway's disk, for vendors that must know its size and rows before it comes.

In a temporary file without a name, which is gone when it is closed or the gateway ends, however that comes about.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO

from tuneway.errors import InvalidRequest, OutOfSpace, PayloadTooLarge
from tuneway.providers.vendor import Form

MOST_BYTES = 8 * 2**30
PIECE = 2**20


@dataclass
class Spooled:
    """`rows` are the lines that are not blank."""

    file: IO[bytes]
    size: int = 0
    rows: int = 0

    async def pieces(self) -> AsyncIterator[bytes]:
        self.file.seek(0)
        while piece := await asyncio.to_thread(self.file.read, PIECE):
            yield piece


@asynccontextmanager
async def spooled(form: Form) -> AsyncIterator[Spooled]:
    """The form's file, whole. Raises PayloadTooLarge, OutOfSpace, and InvalidRequest for one without a row."""
    if (form.length or 0) > MOST_BYTES:
        raise _too_large()
    with TemporaryFile() as file:
        found = Spooled(file)
        waiting = bytearray()
        has_text = False
        async for piece in form.content():
            found.size += len(piece)
            if found.size > MOST_BYTES:
                raise _too_large()
            first, *others = piece.split(b"\n")
            has_text = has_text or bool(first.strip())
            for line in others:
                found.rows += has_text
                has_text = bool(line.strip())
            waiting += piece
            if len(waiting) >= PIECE:
                await _write(file, waiting)
        await _write(file, waiting)
        found.rows += has_text
        if not found.rows:
            raise InvalidRequest("The file has no rows.", param="file", code="invalid_file")
        yield found


async def _write(file: IO[bytes], waiting: bytearray) -> None:
    try:
        await asyncio.to_thread(file.write, bytes(waiting))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutOfSpace("The gateway's folder for temporary files is full; nothing was sent.") from error
    waiting.clear()


def _too_large() -> PayloadTooLarge:
    return PayloadTooLarge(f"The file is larger than the {MOST_BYTES} bytes that are passed on.", param="file")
