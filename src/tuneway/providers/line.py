"""The HTTP line to one provider: time-outs, a bound on requests at once, careful retries, and a circuit.

Only a GET is ever sent twice. What fails says whether the provider may have done what it was asked for: `ProviderError`
has the provider's status, `ProviderSilent` says that there was no answer.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import monotonic
from typing import Any, Protocol

from tuneway.errors import OutboundFailed, ProviderError, ProviderResting, ProviderSilent, ProviderTimedOut
from tuneway.types import CircuitState, LineState

TRIES = 3
"""Of a GET."""
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 8.0
"""Between two tries of one GET; what asks for a longer wait is told to whoever asked."""
MAX_JSON_BYTES = 32 * 2**20
SHORTEST_SECRET = 8
"""Characters. What is shorter is a word that stands in other texts as well."""
CREDENTIALS = ("authorization", "api-key", "x-api-key")
"""Headers that hold one, in lower case."""
REDIRECTED = "redirected"
MAX_SHOWN = 2000
"""Characters of an error that is not JSON which are repeated."""


class Reply(Protocol):
    """An answer whose body is still on its way; `headers` by names in lower case."""

    status: int
    headers: Mapping[str, str]

    def chunks(self) -> AsyncIterator[bytes]: ...


class Dial(Protocol):
    """Makes a connection for one request, see `Outbound.exchange`. Raises OutboundRefused and OutboundFailed."""

    def __call__(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | AsyncIterable[bytes] | None = None,
        seconds: float | None = None,
        silence: float | None = None,
    ) -> AbstractAsyncContextManager[Reply]: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one line. A circuit opens after `failures` in a row, for `rest_seconds`."""

    concurrency: int = 16
    timeout_seconds: float = 120.0
    """For a request whose answer is small; a transfer may take as long as bytes flow."""
    silence_seconds: float = 120.0
    failures: int = 5
    rest_seconds: int = 30


class Line:
    """`name` is how messages call the provider. `circuit` False never rests, as for relays: there each caller's
    failures are its own. `secrets` are taken out of what the provider says: some repeat the key that they refuse.
    """

    def __init__(
        self,
        name: str,
        dial: Dial,
        limits: Limits | None = None,
        *,
        circuit: bool = True,
        secrets: Collection[str] = (),
    ) -> None:
        self.name = name
        self._secrets = [secret.encode() for secret in secrets if len(secret) >= SHORTEST_SECRET]
        self._dial = dial
        self._limits = limits or Limits()
        self._circuit = circuit
        self._free = asyncio.Semaphore(self._limits.concurrency)
        self._under_way = 0
        self._answered: Counter[str] = Counter()
        self._failures = 0
        self._resting_until = 0.0
        self._trying = False
        self._last_error: str | None = None
        self.last_headers: Mapping[str, str] = {}
        """Of the newest answer, by names in lower case."""

    def state(self) -> LineState:
        left = self._resting_until - monotonic()
        resting = left > 0
        circuit = CircuitState.OPEN if resting else CircuitState.CLOSED
        if not resting and self._failures >= self._limits.failures:
            circuit = CircuitState.HALF_OPEN
        return LineState(
            circuit=circuit if self._circuit else CircuitState.CLOSED,
            under_way=self._under_way,
            concurrency=self._limits.concurrency,
            timeout_seconds=self._limits.timeout_seconds,
            answered=dict(self._answered),
            failures_in_a_row=self._failures,
            resting_until=round(time.time() + left) if resting else None,
            last_error=self._last_error,
        )

    async def json(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: Any = None,
        content: bytes | AsyncIterable[bytes] | None = None,
        seconds: float | None = None,
    ) -> Any:
        """The JSON that is answered with a status below 300; None for an empty body.

        `body` is sent as JSON, `content` as it is. Raises ProviderError with the provider's words for every other
        status, and ProviderSilent.
        """
        _, _, value = await self.answer(method, url, headers=headers, body=body, content=content, seconds=seconds)
        return value

    async def answer(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: Any = None,
        content: bytes | AsyncIterable[bytes] | None = None,
        seconds: float | None = None,
    ) -> tuple[int, Mapping[str, str], Any]:
        """As `json`, with status and headers."""
        sent = dict(headers)
        if body is not None:
            content = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
            sent["content-type"] = "application/json"
        for attempt in range(1, TRIES + 1):
            try:
                async with self.open(method, url, headers=sent, content=content, seconds=seconds) as reply:
                    body = self._without_secrets(await read(reply, self.name), headers)
                    return reply.status, reply.headers, self._decoded(body, reply)
            except (ProviderError, ProviderSilent) as failure:
                wait = _wait(failure, attempt)
                if method != "GET" or attempt == TRIES or wait is None:
                    raise
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def open(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        content: bytes | AsyncIterable[bytes] | None = None,
        seconds: float | None = None,
        whole: bool = True,
    ) -> AsyncIterator[Reply]:
        """One request, sent once; its answer's body is for the caller to read, in the context.

        `seconds` bounds all of it; without it, the line's own time-out where the answer is read `whole`, and otherwise
        only silence ends it. Raises ProviderError for a status from 300 on, ProviderSilent, ProviderResting.
        """
        trying = self._require_awake()
        total = seconds or (self._limits.timeout_seconds if whole and not _streamed(content) else None)
        try:
            async with AsyncExitStack() as stack:
                if trying:
                    stack.callback(self._tried)
                await stack.enter_async_context(self._free)
                self._under_way += 1
                stack.callback(self._ended)
                reply = await stack.enter_async_context(
                    self._dial(
                        method,
                        url,
                        headers=headers,
                        body=content,
                        seconds=total,
                        silence=max(seconds or 0, self._limits.silence_seconds),
                    )
                )
                self.last_headers = reply.headers
                self._count(reply.status)
                if reply.status >= 300:
                    raise self._refusal(reply, self._without_secrets(await read(reply, self.name), headers))
                yield reply
                self._succeeded()  # only now: who answers and is not understood, or breaks off, has failed
        except OutboundFailed as failed:
            # Around the stack: what breaks off an answer gets this name only where the connection is left.
            raise self._silent(failed) from failed

    # ------------------------------------------------------------------------------------------------- its condition

    def _require_awake(self) -> bool:
        """Whether this request is the one that tries, behind a rest, whether the provider answers again.

        Raises ProviderResting while the circuit is open, and while another request tries.
        """
        if not self._circuit or self._failures < self._limits.failures:
            return False
        left = self._resting_until - monotonic()
        if left > 0 or self._trying:
            raise ProviderResting(
                f"{self.name} failed {self._failures} times in a row and is left alone for a while. "
                f"Its last words: {self._last_error}",
                seconds=max(1, round(left)),
            )
        self._trying = True
        return True

    def _tried(self) -> None:
        self._trying = False

    def _ended(self) -> None:
        self._under_way -= 1

    def _count(self, status: int) -> None:
        self._answered["429" if status == 429 else f"{status // 100}xx"] += 1

    def _succeeded(self) -> None:
        self._failures, self._last_error = 0, None

    def _failed(self, words: str) -> None:
        self._failures += 1
        self._last_error = words
        if self._failures >= self._limits.failures:
            self._resting_until = monotonic() + self._limits.rest_seconds

    def _silent(self, failed: OutboundFailed) -> ProviderSilent:
        self._answered["failed"] += 1
        self._failed(failed.message)
        kind = ProviderTimedOut if failed.timed_out else ProviderSilent
        return kind(f"{self.name}: {failed.message}", sent=failed.sent)

    def _without_secrets(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        """What the provider says, without the account's secrets: a failed job's error may repeat one, too."""
        return without_secrets(body, headers, self._secrets)

    def _refusal(self, reply: Reply, body: bytes) -> ProviderError:
        error = refusal(self.name, reply.status, reply.headers, body)
        if reply.status >= 500:
            self._failed(error.message)
        else:
            self._succeeded()
        return error

    def _decoded(self, body: bytes, reply: Reply) -> Any:
        """Raises ProviderSilent: an answer that cannot be read says nothing of what was done."""
        if not body.strip():
            return None
        try:
            return json.loads(body, parse_float=_finite, parse_constant=lambda name: None)
        except (ValueError, RecursionError):
            self._failed("answered with something else than JSON")
            raise ProviderSilent(f"{self.name} answered with status {reply.status} and no JSON.") from None


async def read(reply: Reply, name: str) -> bytes:
    """The whole body. Raises ProviderSilent for one that is larger than any JSON should be."""
    whole = bytearray()
    async for chunk in reply.chunks():
        whole += chunk
        if len(whole) > MAX_JSON_BYTES:
            raise ProviderSilent(f"{name} answered with more than {MAX_JSON_BYTES} bytes where JSON was expected.")
    return bytes(whole)


def refusal(name: str, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """A provider's error, in whichever of the known forms it comes: OpenAI's, Azure's, google.rpc's, or any JSON with a
    message; else its text.
    """
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    found = value.get("error", value) if isinstance(value, dict) else None
    error = found if isinstance(found, dict) else {"message": found} if isinstance(found, str) else {}
    message = _first_text(error, "message", "detail", "error_description", "title")
    code = _first_text(error, "code", "status", "error")
    if message is None and isinstance(value, dict):
        message = _first_text(value, "message", "detail", "error_description")
    if message is None:
        kind = headers.get("content-type", "").partition(";")[0].strip()
        said = body[:MAX_SHOWN].decode("utf-8", "replace").strip() if kind in ("text/plain", "") else ""
        message = said or f"status {status} without an error message"
        message = f"{name} answered: {message}"
    if len(message) > MAX_SHOWN:
        message = f"{message[:MAX_SHOWN]}…"
    if status < 400:
        # Never followed, and no status that a client could do anything with.
        status, code = 502, REDIRECTED
        message = f"{name} answered with a redirect, which is not followed. Check its URL."
    return ProviderError(
        status,
        message,
        param=_first_text(error, "param", "target"),
        code=code,
        request_id=headers.get("x-request-id") or headers.get("apim-request-id"),
        retry_after=headers.get("retry-after"),
        redirected=code == REDIRECTED,
    )


def without_secrets(body: bytes, headers: Mapping[str, str], secrets: Collection[bytes] = ()) -> bytes:
    """A body without the credentials that were sent: some vendors repeat the key that they refuse.

    In JSON they may be written with escapes, of which those that vendors use are known: `\\/` and `\\u002f`.
    """
    sent = [value.rpartition(" ")[2].encode() for name, value in headers.items() if name.lower() in CREDENTIALS]
    for secret in {*secrets, *(secret for secret in sent if len(secret) >= SHORTEST_SECRET)}:
        for spelled in (secret, secret.replace(b"/", b"\\/"), secret.replace(b"/", b"\\u002f")):
            body = body.replace(spelled, b"***")
    return body


def retry_after_seconds(value: str | None) -> float | None:
    """Of the header Retry-After, seconds or an HTTP date (RFC 9110, 10.2.3); None for none that can be read."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _wait(failure: ProviderError | ProviderSilent, attempt: int) -> float | None:
    """Seconds before a GET is sent again; None when that would not help, or only after longer than a caller waits."""
    own: float = FIRST_WAIT_SECONDS * 2.0 ** (attempt - 1) * random.uniform(0.75, 1.25)  # noqa: S311
    if isinstance(failure, ProviderSilent):
        return None if isinstance(failure, ProviderTimedOut) else own
    if failure.code == REDIRECTED or (failure.status not in (408, 409, 425, 429) and failure.status < 500):
        return None
    asked = retry_after_seconds(failure.retry_after)
    if asked is not None and asked > LONGEST_WAIT_SECONDS:
        return None
    return max(own, asked or 0.0)


def _streamed(content: bytes | AsyncIterable[bytes] | None) -> bool:
    return content is not None and not isinstance(content, bytes)


def _finite(text: str) -> float | None:
    """None where JSON has no number for it: some vendors write a loss as NaN, or as 1e999."""
    number = float(text)
    return number if math.isfinite(number) else None


def _first_text(found: Mapping[str, Any], *names: str) -> str | None:
    for name in names:
        value = found.get(name)
        if isinstance(value, str) and value:
            # Half of a surrogate pair stands in JSON, and in no other text.
            return value.encode("utf-8", "replace").decode()
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
    return None
