"""The line to a provider: what is sent again, what rests, and what a failure says of the provider's part in it."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from email.utils import formatdate
from typing import Any

import pytest

from tuneway.errors import OutboundFailed, OutboundRefused, ProviderError, ProviderResting, ProviderSilent
from tuneway.providers import line as module
from tuneway.providers.line import Limits, Line, retry_after_seconds
from tuneway.types import CircuitState

URL = "https://vendor.example/v1/fine_tuning/jobs"
JSON = {"content-type": "application/json"}
SECRET = "sk-very-secret"


class FakeReply:
    """`body` in pieces; an exception among them breaks it off."""

    def __init__(self, status: int, body: Any = b"{}", headers: Mapping[str, str] = JSON) -> None:
        self.status = status
        self.headers = headers
        self._body = body if isinstance(body, list) else [body]

    async def chunks(self) -> AsyncIterator[bytes]:
        for piece in self._body:
            if isinstance(piece, Exception):
                raise piece
            yield piece


class FakeDial:
    """Answers with the next of `script`, a reply or an exception; the last one stays."""

    def __init__(self, *script: FakeReply | Exception) -> None:
        self._script = list(script)
        self.asked: list[dict[str, Any]] = []
        self.open = 0
        self.gate: asyncio.Event | None = None

    @asynccontextmanager
    async def __call__(self, method: str, url: str, **more: Any) -> AsyncIterator[FakeReply]:
        self.asked.append({"method": method, "url": url, **more})
        found = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(found, Exception):
            raise found
        self.open += 1
        try:
            yield found
        finally:
            self.open -= 1


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited, without waiting; servers of other tests wait on, in threads of their own."""
    waits: list[float] = []
    waiting, here = asyncio.sleep, threading.get_ident()

    async def sleep(seconds: float) -> None:
        if threading.get_ident() != here:
            await waiting(seconds)
            return
        waits.append(seconds)
        await waiting(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(random, "uniform", lambda low, high: 1.0)
    return waits


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which only a test moves."""
    now = [1_800_000_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr("tuneway.providers.line.monotonic", lambda: now[0])
    monkeypatch.setattr("tuneway.providers.line.monotonic", lambda: now[0])
    return now


def run(dial: FakeDial, method: str = "GET", line: Line | None = None, **more: Any) -> Any:
    line = line or Line("acme", dial)
    return asyncio.run(line.json(method, URL, headers={}, **more))


def failure(work: Coroutine[Any, Any, Any]) -> ProviderError | ProviderSilent:
    with pytest.raises((ProviderError, ProviderSilent)) as raised:
        asyncio.run(work)
    assert isinstance(raised.value, ProviderError | ProviderSilent)
    return raised.value


# ----------------------------------------------------------------------------------------------------- what is sent


def test_json_goes_out_compact_and_comes_back() -> None:
    dial = FakeDial(FakeReply(200, [b' {"a', b'": 1}\n']))
    assert run(dial, "POST", body={"name": "grüß"}) == {"a": 1}
    assert dial.asked[0]["body"] == '{"name":"grüß"}'.encode()
    assert dial.asked[0]["headers"] == JSON
    assert dial.open == 0


def test_an_empty_body_is_none() -> None:
    assert run(FakeDial(FakeReply(204, b""))) is None


def test_only_a_transfer_has_no_limit_of_its_own() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"

    async def download(line: Line) -> None:
        async with line.open("GET", URL, headers={}, whole=False) as reply:
            assert [chunk async for chunk in reply.chunks()] == [b"{}"]

    dial = FakeDial(FakeReply(200))
    line = Line("acme", dial, Limits(timeout_seconds=7, silence_seconds=3))
    run(dial, "POST", line, body={})
    run(dial, "POST", line, content=pieces())
    asyncio.run(download(line))
    run(dial, "POST", line, seconds=11)
    assert [(asked["seconds"], asked["silence"]) for asked in dial.asked] == [(7, 3), (None, 3), (None, 3), (11, 11)]


# ---------------------------------------------------------------------------------------------------------- retries

SILENT = OutboundFailed("vendor.example closed the connection.")
UNSENT = OutboundFailed("Could not connect to vendor.example.", sent=False)
LATE = OutboundFailed("vendor.example did not answer in time.", timed_out=True)


@pytest.mark.parametrize(
    "first",
    [SILENT, UNSENT, *(FakeReply(status, b"") for status in (408, 409, 425, 429, 500, 502, 503)), FakeReply(200, b"<")],
    ids=["silent", "unsent", "408", "409", "425", "429", "500", "502", "503", "no JSON"],
)
def test_a_get_is_sent_again(first: FakeReply | Exception, slept: list[float]) -> None:
    dial = FakeDial(first, first, FakeReply(200))
    assert run(dial) == {}
    assert len(dial.asked) == 3
    assert slept == [0.5, 1.0]


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
@pytest.mark.parametrize("first", [SILENT, UNSENT, FakeReply(503, b""), FakeReply(429, b""), FakeReply(200, b"<")])
def test_nothing_else_is(method: str, first: FakeReply | Exception, slept: list[float]) -> None:
    dial = FakeDial(first, FakeReply(200))
    failure(Line("acme", dial).json(method, URL, headers={}))
    assert (len(dial.asked), slept) == (1, [])


@pytest.mark.parametrize("first", [LATE, *(FakeReply(status, b"") for status in (400, 401, 403, 404, 422))])
def test_nor_a_get_that_would_end_the_same(first: FakeReply | Exception) -> None:
    dial = FakeDial(first, FakeReply(200))
    failure(Line("acme", dial).json("GET", URL, headers={}))
    assert len(dial.asked) == 1


def test_it_gives_up_in_the_end(slept: list[float]) -> None:
    dial = FakeDial(FakeReply(500, b'{"error": {"message": "no"}}'))
    assert failure(Line("acme", dial).json("GET", URL, headers={})).message == "no"
    assert (len(dial.asked), len(slept)) == (3, 2)


@pytest.mark.parametrize(
    ("asked", "waited"),
    [
        ("3", [3.0]),
        ("0", [0.5]),
        ("0.75", [0.75]),
        ("8", [8.0]),
        ("soon", [0.5]),
        ("-4", [0.5]),
        ("9", []),
        ("inf", []),
    ],
)
def test_a_wait_is_the_vendors_own_unless_it_is_too_long(asked: str, waited: list[float], slept: list[float]) -> None:
    dial = FakeDial(FakeReply(429, b"", {"retry-after": asked}), FakeReply(200))
    with suppress(ProviderError):
        run(dial)
    assert slept == waited
    assert len(dial.asked) == 1 + len(waited)


def test_retry_after_may_be_a_date(clock: list[float]) -> None:
    assert retry_after_seconds(formatdate(clock[0] + 5, usegmt=True)) == 5
    assert retry_after_seconds(formatdate(clock[0] - 5, usegmt=True)) == 0
    assert retry_after_seconds("Tue, 99 Nov") is None
    assert retry_after_seconds(None) is None


# -------------------------------------------------------------------------------------------------- what a failure says


def test_whether_the_provider_may_have_done_it() -> None:
    for script, sent in ((SILENT, True), (UNSENT, False), (LATE, True)):
        found = failure(Line("acme", FakeDial(script)).json("POST", URL, headers={}))
        assert isinstance(found, ProviderSilent)
        assert found.sent is sent
        assert found.message == f"acme: {script.message}"
    late = failure(Line("acme", FakeDial(LATE)).json("POST", URL, headers={}))
    assert (late.status, late.code) == (504, "provider_timed_out")


@pytest.mark.parametrize(
    ("status", "without_effect"),
    [
        (400, True),
        (401, True),
        (404, True),
        (422, True),
        (429, True),
        (408, False),
        (409, False),
        (500, False),
        (503, False),
    ],
)
def test_whether_a_refusal_is_sure_to_have_no_effect(status: int, without_effect: bool) -> None:
    found = failure(Line("acme", FakeDial(FakeReply(status, b""))).json("POST", URL, headers={}))
    assert isinstance(found, ProviderError)
    assert (found.status, found.without_effect) == (status, without_effect)


@pytest.mark.parametrize(
    ("body", "message", "param", "code"),
    [
        (b'{"error": {"message": "no", "type": "t", "param": "n", "code": "c"}}', "no", "n", "c"),
        (b'{"error": {"code": "invalidPayload", "message": "no", "target": "n"}}', "no", "n", "invalidPayload"),
        (b'{"error": {"code": 404, "message": "no", "status": "NOT_FOUND"}}', "no", None, "404"),
        (b'{"error": "invalid_grant", "error_description": "no"}', "invalid_grant", None, None),
        (b'{"detail": "no"}', "no", None, None),
        (b'{"message": "no"}', "no", None, None),
        (b'{"error": {"message": "half \\ud83d"}}', "half ?", None, None),
        (b'{"error": {"message": ["no"]}}', "acme answered: status 418 without an error message", None, None),
        (b'["no"]', "acme answered: status 418 without an error message", None, None),
        (b"", "acme answered: status 418 without an error message", None, None),
        (b"<html>no</html>", "acme answered: status 418 without an error message", None, None),
        (b"[" * 100_000, "acme answered: status 418 without an error message", None, None),
    ],
)
def test_a_refusals_words(body: bytes, message: str, param: str | None, code: str | None) -> None:
    headers = {"content-type": "text/html", "x-request-id": "req_1", "retry-after": "7"}
    found = failure(Line("acme", FakeDial(FakeReply(418, body, headers))).json("POST", URL, headers={}))
    assert (found.message, found.param, found.code) == (message, param, code)
    assert found.headers() == {"x-request-id": "req_1", "retry-after": "7"}
    assert found.envelope()["error"]["type"] == "upstream_error"


def test_plain_text_is_repeated_as_far_as_it_is_short() -> None:
    plain = {"content-type": "text/plain; charset=utf-8"}
    found = failure(Line("acme", FakeDial(FakeReply(500, b"oh \xff" * 1000, plain))).json("POST", URL, headers={}))
    assert found.message.startswith("acme answered: oh \ufffd")
    assert len(found.message) < 2100


@pytest.mark.parametrize("status", [300, 301, 302, 304, 307, 308])
def test_a_redirect_is_a_failure(status: int) -> None:
    elsewhere = {"location": "https://evil.example/"}
    dial = FakeDial(FakeReply(status, b"", elsewhere))
    found = failure(Line("acme", dial).json("GET", URL, headers={}))
    assert (found.status, found.code, len(dial.asked)) == (502, "redirected", 1)
    assert "evil" not in found.message


@pytest.mark.parametrize("body", [b"<html>", b'{"a": ', b"\xff", b"[" * 100_000, b"1" * 5000])
def test_what_is_no_json_tells_nothing_of_what_was_done(body: bytes) -> None:
    found = failure(Line("acme", FakeDial(FakeReply(200, body))).json("POST", URL, headers={}))
    assert isinstance(found, ProviderSilent)
    assert found.sent
    assert "status 200 and no JSON" in found.message


def test_numbers_that_json_has_not_are_null() -> None:
    dial = FakeDial(FakeReply(200, b'{"a": NaN, "b": -Infinity, "c": 1e999, "d": 1.5}'))
    assert run(dial) == {"a": None, "b": None, "c": None, "d": 1.5}


def test_an_answer_without_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_JSON_BYTES", 1000)
    read = 0

    class Endless(FakeReply):
        async def chunks(self) -> AsyncIterator[bytes]:
            nonlocal read
            while True:
                read += 1
                yield b" " * 100

    for status in (200, 500):
        read = 0
        dial = FakeDial(Endless(status))
        found = failure(Line("acme", dial).json("POST", URL, headers={}))
        assert isinstance(found, ProviderSilent)
        assert "more than 1000 bytes" in found.message
        assert (read, dial.open) == (11, 0)


def test_a_body_that_breaks_off_is_silence() -> None:
    for status in (200, 500):
        dial = FakeDial(FakeReply(status, [b'{"a"', OutboundFailed("vendor.example broke off its answer.")]))
        found = failure(Line("acme", dial).json("POST", URL, headers={}))
        assert isinstance(found, ProviderSilent)
        assert (found.sent, dial.open) == (True, 0)


def test_a_host_that_may_not_be_called_is_no_silence() -> None:
    dial = FakeDial(OutboundRefused("This gateway may not connect to evil.example."))
    line = Line("acme", dial)
    with pytest.raises(OutboundRefused):
        run(dial, line=line)
    assert len(dial.asked) == 1
    assert line.state().failures_in_a_row == 0


def test_no_error_repeats_a_secret() -> None:
    body = f'{{"error": {{"message": "Incorrect key: {SECRET}"}}}}'.encode()
    line = Line("acme", FakeDial(FakeReply(500, body)), secrets=[SECRET, "ab"])
    found = failure(line.json("POST", URL, headers={"authorization": "Bearer other-key"}))
    assert found.message == "Incorrect key: ***"
    assert SECRET not in str(line.state())
    given = failure(Line("acme", FakeDial(FakeReply(500, body))).json("GET", URL, headers={"api-key": SECRET}))
    assert given.message == "Incorrect key: ***"


# ---------------------------------------------------------------------------------------------------------- the circuit

LIMITS = Limits(failures=3, rest_seconds=30)


def fail(line: Line, times: int = 1) -> None:
    for _ in range(times):
        failure(line.json("POST", URL, headers={}))


def test_the_circuit_opens_rests_tries_and_closes(clock: list[float]) -> None:
    dial = FakeDial(*[FakeReply(500, b"oh")] * 3, FakeReply(200))
    line = Line("acme", dial, LIMITS)
    fail(line, 2)
    assert line.state().circuit is CircuitState.CLOSED
    fail(line)
    found = line.state()
    assert (found.circuit, found.failures_in_a_row, found.resting_until) == (CircuitState.OPEN, 3, int(clock[0]) + 30)
    clock[0] += 10
    with pytest.raises(ProviderResting) as raised:
        run(dial, line=line)
    assert raised.value.headers() == {"retry-after": "20"}
    assert len(dial.asked) == 3
    clock[0] += 20
    assert line.state().circuit is CircuitState.HALF_OPEN
    assert run(dial, line=line) == {}
    assert line.state().circuit is CircuitState.CLOSED
    assert line.state().last_error is None


@pytest.mark.parametrize(
    "bad", [FakeReply(503, b""), SILENT, LATE, FakeReply(200, b"<html>"), FakeReply(200, [SILENT])]
)
def test_every_kind_of_failure_counts(bad: FakeReply | Exception, clock: list[float]) -> None:
    line = Line("acme", FakeDial(bad), LIMITS)
    fail(line, 3)
    assert line.state().circuit is CircuitState.OPEN
    clock[0] += 30
    fail(line)
    assert line.state().circuit is CircuitState.OPEN
    assert line.state().resting_until == clock[0] + 30


def test_a_refusal_is_an_answer(clock: list[float]) -> None:
    line = Line("acme", FakeDial(FakeReply(500, b""), FakeReply(500, b""), FakeReply(404, b"")), LIMITS)
    fail(line, 6)
    assert line.state().circuit is CircuitState.CLOSED
    assert line.state().answered == {"5xx": 2, "4xx": 4}


def half_open(clock: list[float]) -> tuple[Line, FakeDial]:
    dial = FakeDial(FakeReply(500, b""), FakeReply(500, b""), FakeReply(500, b""), FakeReply(200))
    line = Line("acme", dial, Limits(failures=3, rest_seconds=30, concurrency=1))
    fail(line, 3)
    clock[0] += 30
    return line, dial


def test_one_request_tries_it(clock: list[float]) -> None:
    line, dial = half_open(clock)

    async def both() -> None:
        dial.gate = asyncio.Event()
        first = asyncio.create_task(line.json("GET", URL, headers={}))
        for _ in range(20):
            await asyncio.sleep(0)
        with pytest.raises(ProviderResting):
            await line.json("GET", URL, headers={})
        dial.gate.set()
        assert await first == {}
        assert await line.json("GET", URL, headers={}) == {}

    asyncio.run(asyncio.wait_for(both(), 10))
    assert len(dial.asked) == 5


def test_a_try_that_is_given_up_leaves_it_to_the_next(clock: list[float]) -> None:
    """Before and behind the place where it waits for its turn."""

    async def given_up(line: Line, dial: FakeDial, *, busy: bool) -> None:
        async with line._free if busy else nullcontext():
            dial.gate = asyncio.Event()
            first = asyncio.create_task(line.json("GET", URL, headers={}))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            dial.gate.set()
        assert await line.json("GET", URL, headers={}) == {}

    for busy in (False, True):
        line, dial = half_open(clock)
        asyncio.run(asyncio.wait_for(given_up(line, dial, busy=busy), 10))
        assert line.state().under_way == 0


def test_an_older_request_is_not_the_one_that_tries(clock: list[float]) -> None:
    """One that began before the circuit opened, and ends while another tries it."""
    dial = FakeDial(FakeReply(200), *[FakeReply(500, b"")] * 3, FakeReply(200))
    line = Line("acme", dial, LIMITS)

    async def run_all() -> None:
        older, trying = asyncio.Event(), asyncio.Event()
        dial.gate = older
        first = asyncio.create_task(line.json("GET", URL, headers={}))
        await asyncio.sleep(0)
        dial.gate = None
        for _ in range(3):
            with pytest.raises(ProviderError):
                await line.json("POST", URL, headers={})
        clock[0] += 30
        dial.gate = trying
        second = asyncio.create_task(line.json("POST", URL, headers={}))
        await asyncio.sleep(0)
        first.cancel()
        older.set()
        await asyncio.gather(first, return_exceptions=True)
        with pytest.raises(ProviderResting):
            await line.json("POST", URL, headers={})
        trying.set()
        assert await second == {}

    asyncio.run(asyncio.wait_for(run_all(), 10))


def test_a_relays_line_never_rests() -> None:
    line = Line("acme", FakeDial(FakeReply(500, b"")), LIMITS, circuit=False)
    fail(line, 10)
    assert line.state().circuit is CircuitState.CLOSED


def test_requests_at_once_are_bounded() -> None:
    dial = FakeDial(FakeReply(200))

    async def many() -> None:
        dial.gate = asyncio.Event()
        line = Line("acme", dial, Limits(concurrency=2))
        running = [asyncio.create_task(line.json("GET", URL, headers={})) for _ in range(5)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert (len(dial.asked), line.state().under_way) == (2, 2)
        dial.gate.set()
        await asyncio.gather(*running)
        assert (len(dial.asked), line.state().under_way) == (5, 0)

    asyncio.run(many())


def test_the_newest_headers_are_kept() -> None:
    line = Line("acme", FakeDial(FakeReply(404, b"", {"x-ratelimit-remaining-requests": "9"})))
    fail(line)
    assert line.last_headers == {"x-ratelimit-remaining-requests": "9"}
