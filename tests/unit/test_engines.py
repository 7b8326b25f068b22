"""The supervisor of engine generations, with real inference processes on the tiny base."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.tiny_prepared import prepare_tiny, write_adapter
from tuneway.errors import EngineUnavailable
from tuneway.providers.local import engines as module
from tuneway.providers.local.engines import Adapter, Base, Engines
from tuneway.types import Upstream


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return Base("tiny", prepare_tiny(tmp_path_factory.mktemp("base")), 256)


@pytest.fixture(scope="module")
def adapters(base: Base, tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    folder = tmp_path_factory.mktemp("adapters")
    return [Adapter(f"ft:tiny:{at}", write_adapter(folder / str(at), base.folder, at)) for at in range(3)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks often, so that no test waits for a second to pass."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.05)


def run(tmp_path: Path, test: Callable[[Engines], Awaitable[None]], **options: Any) -> None:
    """Runs `test` with a supervisor and then asserts that closing it leaves no process and no folder."""

    async def main() -> None:
        engines = Engines(logs=tmp_path / "logs", threads=1, **options)
        try:
            await test(engines)
        finally:
            left = [(generation_pid(engine), engine._folder) for engine in engines._living]
            await engines.close()
        assert not [pid for pid, folder in left if lives(pid) or folder.exists()]

    asyncio.run(main())


def generation_pid(generation: Any) -> int:
    return int(generation._process.pid)


def pid(engines: Engines) -> int:
    """The process that serves."""
    return generation_pid(engines._serving["tiny"])


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@asynccontextmanager
async def asked(upstream: Upstream, **fields: Any) -> AsyncIterator[aiohttp.ClientResponse]:
    body = {"model": "any", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}
    connector = aiohttp.UnixConnector(str(upstream.socket))
    async with (
        aiohttp.ClientSession(connector=connector) as client,
        client.post(upstream.url, json=body | fields, headers=upstream.headers) as answer,
    ):
        yield answer


async def say(upstream: Upstream) -> tuple[str, str]:
    """(model, content)"""
    async with asked(upstream) as answer:
        assert answer.status == 200
        said = await answer.json()
    return said["model"], said["choices"][0]["message"]["content"]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def test_base_and_adapters_are_served_under_their_names(tmp_path: Path, base: Base, adapters: list[Adapter]) -> None:
    async def test(engines: Engines) -> None:
        said = [await say(await engines.upstream(base, None, "tiny"))]
        first = pid(engines)
        for adapter in adapters[:2]:
            said.append(await say(await engines.upstream(base, adapter, f"shown {adapter.name}")))
        assert [model for model, _ in said] == ["tiny", "shown ft:tiny:0", "shown ft:tiny:1"]
        assert len({content for _, content in said}) == 3
        assert pid(engines) != first
        serving = pid(engines)
        for adapter in (*adapters[:2], None):  # all are loaded now
            await engines.upstream(base, adapter, "x")
        assert pid(engines) == serving
        await until(lambda: len(engines._tending) == 1)  # the generations before have ended
        assert not lives(first)

    run(tmp_path, test)


def test_callers_at_once_share_one_start(tmp_path: Path, base: Base, adapters: list[Adapter]) -> None:
    async def test(engines: Engines) -> None:
        wanted = [engines.upstream(base, adapter, "x") for adapter in (*adapters, None, adapters[0])]
        routes = await asyncio.gather(*wanted)
        assert len({route.socket for route in routes}) == 1
        assert engines._number == 1

    run(tmp_path, test)


def test_a_cancelled_caller_does_not_kill_the_start(tmp_path: Path, base: Base) -> None:
    async def test(engines: Engines) -> None:
        impatient = asyncio.create_task(engines.upstream(base, None, "x"))
        patient = asyncio.create_task(engines.upstream(base, None, "x"))
        await until(lambda: bool(engines._starting))
        impatient.cancel()
        await say(await patient)
        assert impatient.cancelled()
        assert engines._number == 1

    run(tmp_path, test)


def test_a_replaced_generation_finishes_its_answer(tmp_path: Path, base: Base, adapters: list[Adapter]) -> None:
    async def test(engines: Engines) -> None:
        route = await engines.upstream(base, None, "x")
        first = pid(engines)
        endless = {"logit_bias": {"0": -100, "2": -100}, "max_tokens": None, "n": 24, "stream": True}
        async with asked(route, **endless) as answer:
            assert (await answer.content.readline()).startswith(b"data: ")
            await engines.settle(base, adapters[0])
            assert pid(engines) != first
            assert lives(first)
            assert (await answer.content.read()).endswith(b"data: [DONE]\n\n")
        await until(lambda: not lives(first))

    run(tmp_path, test)


def test_draining_has_an_end(tmp_path: Path, base: Base, adapters: list[Adapter]) -> None:
    async def test(engines: Engines) -> None:
        route = await engines.upstream(base, None, "x")
        first = pid(engines)
        async with asked(route, logit_bias={"0": -100, "2": -100}, max_tokens=None, n=128, stream=True) as answer:
            assert (await answer.content.readline()).startswith(b"data: ")
            await engines.settle(base, adapters[0])
            await until(lambda: not lives(first))
            with pytest.raises(aiohttp.ClientError):
                await answer.content.read()

    run(tmp_path, test, drain_seconds=0.1)


def test_a_killed_engine_is_replaced(tmp_path: Path, base: Base, adapters: list[Adapter]) -> None:
    async def test(engines: Engines) -> None:
        before = await say(await engines.upstream(base, adapters[0], "x"))
        killed = pid(engines)
        os.kill(killed, signal.SIGKILL)
        await until(lambda: not engines._serving.get("tiny") or not engines._serving["tiny"].alive())
        assert await say(await engines.upstream(base, adapters[0], "x")) == before
        assert pid(engines) != killed

    run(tmp_path, test)


def test_a_killed_engine_is_not_routed_to_before_it_is_reaped(tmp_path: Path, base: Base) -> None:
    async def test(engines: Engines) -> None:
        await engines.upstream(base, None, "x")
        killed = pid(engines)
        os.kill(killed, signal.SIGKILL)
        with suppress(ChildProcessError):  # reaped already
            os.waitid(os.P_PID, killed, os.WEXITED | os.WNOWAIT)  # the event loop has had no turn to notice
        await say(await engines.upstream(base, None, "x"))

    run(tmp_path, test)


def test_an_idle_generation_ends_and_comes_back(tmp_path: Path, base: Base) -> None:
    async def test(engines: Engines) -> None:
        await say(await engines.upstream(base, None, "x"))
        await until(lambda: not engines._tending)
        await say(await engines.upstream(base, None, "x"))

    run(tmp_path, test, idle_seconds=0.1)


def test_the_least_recently_used_adapter_makes_room(tmp_path: Path, base: Base, adapters: list[Adapter]) -> None:
    async def test(engines: Engines) -> None:
        for adapter in (adapters[0], adapters[1], adapters[0], adapters[2]):
            await say(await engines.upstream(base, adapter, "x"))
        assert set(engines._serving["tiny"].adapters) == {adapters[0], adapters[2]}
        engines.forget(adapters[0].name)
        await engines.settle(base, adapters[1])
        assert set(engines._serving["tiny"].adapters) == {adapters[1], adapters[2]}

    run(tmp_path, test, max_adapters=2)


def test_a_broken_adapter_breaks_nothing_else(tmp_path: Path, base: Base, adapters: list[Adapter]) -> None:
    async def test(engines: Engines) -> None:
        await engines.settle(base, adapters[0])
        with pytest.raises(EngineUnavailable, match="adapter_config"):
            await engines.settle(base, Adapter("ft:gone", tmp_path / "gone"))
        await say(await engines.upstream(base, adapters[0], "x"))

    run(tmp_path, test)


def test_an_engine_that_cannot_start_says_why(tmp_path: Path, base: Base) -> None:
    async def test(engines: Engines) -> None:
        with pytest.raises(EngineUnavailable, match=r"base\.json"):
            await engines.upstream(Base("empty", tmp_path, 256), None, "x")
        await say(await engines.upstream(base, None, "x"))

    run(tmp_path, test)


def test_closing_ends_what_is_starting(tmp_path: Path, base: Base) -> None:
    async def test(engines: Engines) -> None:
        asked = asyncio.create_task(engines.upstream(base, None, "x"))
        await until(lambda: any(generation._process for generation in engines._living))
        (starting,) = engines._living
        await engines.close()
        assert not lives(generation_pid(starting))
        assert not starting._folder.exists()
        with pytest.raises(asyncio.CancelledError):
            await asked
        with pytest.raises(EngineUnavailable, match="stopping"):
            await engines.upstream(base, None, "x")

    run(tmp_path, test)
