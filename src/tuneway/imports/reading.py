"""An account that is only read: whole lists, and files as they stream, with patience.

Sends GETs alone. Knows nothing of projects and of what is here already.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar

from tuneway.blobs import Receiving
from tuneway.errors import ProviderError, ProviderResting, ProviderSilent
from tuneway.providers.line import retry_after_seconds
from tuneway.providers.vendor import Json, Vendor

T = TypeVar("T")

PATIENCE_SECONDS = 600
"""How long one request waits for a rate limit, or for an account that rests, before the import gives up."""
TRIES = 3
"""Of a request that the vendor fails at or does not answer, each of them `line.TRIES` of a GET."""
FIRST_WAIT_SECONDS = 2.0
LONGEST_WAIT_SECONDS = 60.0
"""Between two tries, where the vendor does not say how long."""
PAGE = 100
_MAY_PASS = (408, 409, 425)
_HEAD = 200
"""Bytes of a result file by which its encoding is told."""
_BLANKS = b" \t\r\n"


class GaveUp(Exception):
    """The account could not be read within `PATIENCE_SECONDS`; the text says why."""


class Account:
    """`name` is how messages call the account."""

    def __init__(self, name: str, vendor: Vendor) -> None:
        self.name = name
        self._vendor = vendor
        self._resumes_at = 0.0
        """When a rate limit is over, by the monotonic clock: of one account, so whoever asks next waits too."""

    async def jobs(self) -> list[Json]:
        """Newest first."""
        return await self._whole(self._vendor.list_jobs, {})

    async def events(self, job_id: str) -> list[Json]:
        """Newest first."""
        return await self._whole(lambda query: self._vendor.events(job_id, query), {})

    async def checkpoints(self, job_id: str) -> list[Json]:
        return await self._whole(lambda query: self._vendor.checkpoints(job_id, query), {})

    async def files(self, purpose: str) -> list[Json]:
        """Newest first; of this purpose only, whether or not the vendor knows the filter."""
        found = await self._whole(self._vendor.list_files, {"purpose": purpose})
        return [file for file in found if file.get("purpose") == purpose]

    async def file(self, file_id: str) -> Json:
        return await self._asked(lambda: self._vendor.file(file_id))

    async def models(self) -> list[Json]:
        found = await self._asked(self._vendor.list_models)
        return _named(found)

    async def download(self, file_id: str, receive: Callable[[], Receiving], *, table: bool) -> Receiving:
        """The file's bytes, on the disk; those of a `table`, a job's result file, as plain CSV.

        Whoever gets them publishes or discards them. Raises ValueError for a table that cannot be decoded.
        """

        async def once() -> Receiving:
            receiving = receive()
            try:
                async with self._vendor.content(file_id) as reply:
                    pieces = plain(reply.chunks()) if table else reply.chunks()
                    async for piece in pieces:
                        await receiving.write(piece)
                await receiving.sync()
            except BaseException:
                await receiving.discard()
                raise
            return receiving

        return await self._asked(once)

    # ----------------------------------------------------------------------------------------------------- details

    async def _whole(self, ask: Callable[[Mapping[str, str]], Awaitable[Json]], query: Mapping[str, str]) -> list[Json]:
        """All pages of a list. Ends as well where a vendor gives the same page again, as one without `after` does."""
        found: dict[str, Json] = {}
        query = {"limit": str(PAGE), **query}
        while True:
            asked = dict(query)
            page = await self._asked(lambda asked=asked: ask(asked))  # type: ignore[misc]  # bound per turn
            items = {str(item["id"]): item for item in _named(page)}
            fresh = items.keys() - found.keys()
            found |= items
            if not page["has_more"] or not fresh:
                return list(found.values())
            query = {**query, "after": next(reversed(items))}

    async def _asked(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` gives, tried again where that may help. Raises what the last try raised, and GaveUp."""
        waited, tries, limits = 0.0, 0, 0
        while True:
            await asyncio.sleep(max(0.0, self._resumes_at - time.monotonic()))
            try:
                return await ask()
            except ProviderResting as resting:
                wait, why = float(resting.seconds), resting.message
            except ProviderSilent as silent:
                tries += 1
                if tries == TRIES:
                    raise
                wait, why = _pause(tries), silent.message
            except ProviderError as refused:
                wait, why = _pause(tries + limits + 1), refused.message
                if refused.status == 429:
                    limits += 1
                    asked = retry_after_seconds(refused.retry_after)
                    wait = wait if asked is None else asked
                    self._resumes_at = max(self._resumes_at, time.monotonic() + min(wait, PATIENCE_SECONDS))
                elif refused.status in _MAY_PASS or refused.status >= 500:
                    tries += 1
                    if tries == TRIES:
                        raise
                else:
                    raise
            waited += wait
            if waited > PATIENCE_SECONDS:
                raise GaveUp(f"{self.name} could not be read within {PATIENCE_SECONDS // 60} minutes: {why}")
            await asyncio.sleep(wait)


async def plain(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """A result file as CSV. OpenAI has served its own in base64 (its guide decodes them), and in plain text.

    Raises ValueError for one that begins as base64 and does not go on so.
    """
    head, pieces = b"", aiter(chunks)
    async for chunk in pieces:
        head += chunk
        if len(head) >= _HEAD:
            break
    encoded = _is_encoded(head[:_HEAD])
    rest = b""
    async for chunk in _with_first(head, pieces):
        if not encoded:
            yield chunk
            continue
        rest += chunk.translate(None, _BLANKS)
        whole = len(rest) // 4 * 4
        yield base64.b64decode(rest[:whole], validate=True)
        rest = rest[whole:]
    if rest:
        raise ValueError("the base64 text of the file is not whole")


def _is_encoded(head: bytes) -> bool:
    """Whether this is base64 of a text with a comma, as every line of such a file has one."""
    text = head.translate(None, _BLANKS)
    try:
        decoded = base64.b64decode(text[: len(text) // 4 * 4], validate=True)
    except binascii.Error:
        return False
    return b"," in decoded and decoded.isascii()


async def _with_first(first: bytes, others: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for other in others:
        yield other


def _named(page: Json) -> list[Json]:
    """The items that have an id, without which nothing can be kept of them."""
    return [item for item in page["data"] if item.get("id")]


def _pause(tries: int) -> float:
    wait: float = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** (tries - 1)) * random.uniform(0.75, 1.25)  # noqa: S311
    return wait
