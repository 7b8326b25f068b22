"""The supervisor of engine generations.

A generation is one inference process, one base and a frozen list of adapters; its route is looked up here for every
chat request. An adapter that is not loaded starts the next generation, which takes the route over when it has shown
one token of the newest adapter; the one before finishes its answers and ends. A process that died is replaced when it
is asked for again. Children end with the gateway: they watch their standard input.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import select
import shutil
import sys
import tempfile
import time
from asyncio.subprocess import Process
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tuneway.errors import EngineUnavailable
from tuneway.types import Upstream

START_SECONDS = 120.0
PROOF_SECONDS = 60.0
LOOK_SECONDS = 1.0
"""How often a generation's age, life and work are looked at."""
GRACE_SECONDS = 2.0
"""How long a request may take from its route to the engine: a generation is not ended this soon after."""
MAX_DRAINING = 2
"""Each takes the memory of a whole engine: a further adapter waits until one of them has ended."""
LOGS_KEPT = 4


@dataclass(frozen=True, slots=True)
class Base:
    """A prepared base folder. `context_length` is in tokens, prompt and answer together."""

    name: str
    folder: Path
    context_length: int


@dataclass(frozen=True, slots=True)
class Adapter:
    """A PEFT folder, whose content never changes."""

    name: str
    path: Path


class Engines:
    """`logs` is a folder for the engines' standard error. `threads` and `parallel` (answers at once) hold per engine.

    A generation without requests ends after `idle_seconds`; one that was replaced may finish its answers for
    `drain_seconds`. At most `max_adapters` are loaded for a base: those that were asked for last.
    """

    def __init__(
        self,
        *,
        logs: Path,
        threads: int,
        parallel: int = 2,
        idle_seconds: float = 900,
        max_adapters: int = 16,
        drain_seconds: float = 600,
    ) -> None:
        self._logs = logs
        self._threads = threads
        self._parallel = parallel
        self._idle_seconds = idle_seconds
        self._max_adapters = max_adapters
        self._drain_seconds = drain_seconds
        self._serving: dict[str, _Generation] = {}
        self._wanted: dict[str, list[Adapter]] = {}
        """By base: the adapters that were asked for, the latest last."""
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._tending: dict[_Generation, asyncio.Task[None]] = {}
        self._living: set[_Generation] = set()
        """All whose process or folder may be there."""
        self._number = 0
        self._closed = False

    async def upstream(self, base: Base, adapter: Adapter | None, shown: str) -> Upstream:
        """Where to send chat requests to `adapter` (None: the base itself), whose answers name the model `shown`.

        Starts what serves it when nothing does. To be asked for each request: routes change. Raises EngineUnavailable.
        """
        generation = await self._generation(base, adapter)
        return generation.upstream(adapter, shown)

    async def settle(self, base: Base, adapter: Adapter) -> None:
        """Loads `adapter` and proves it by one token. Raises EngineUnavailable."""
        generation = await self._generation(base, adapter)
        if adapter not in generation.proven:
            await generation.prove(adapter)

    def forget(self, name: str) -> None:
        """The adapter called `name` is not loaded again; its memory is freed by the next generation."""
        for base, wanted in self._wanted.items():
            self._wanted[base] = [adapter for adapter in wanted if adapter.name != name]

    async def close(self) -> None:
        """Ends every engine at once, whatever it is doing."""
        self._closed = True
        tasks = [*self._starting.values(), *self._tending.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*map(self._end, self._living))  # those whose ending was cancelled half-way

    async def _generation(self, base: Base, adapter: Adapter | None) -> _Generation:
        while True:
            if self._closed:
                raise EngineUnavailable("The gateway is stopping. Send the request again when it is back.")
            if adapter is not None:
                others = [other for other in self._wanted.get(base.name, []) if other.name != adapter.name]
                self._wanted[base.name] = [*others, adapter]
            generation = self._serving.get(base.name)
            if generation is not None and generation.alive():
                generation.last_used = time.monotonic()
                if adapter is not None and adapter.name in generation.refused:
                    raise EngineUnavailable(f"This model cannot be served: {generation.refused[adapter.name]}")
                if adapter is None or adapter in generation.adapters:
                    return generation
            # One start for all who wait; a caller that is cancelled does not take it away from the others.
            if base.name not in self._starting:
                start = self._starting[base.name] = asyncio.create_task(self._start(base))
                start.add_done_callback(lambda task: self._started(base.name, task))
            await asyncio.shield(self._starting[base.name])

    def _started(self, base: str, task: asyncio.Task[None]) -> None:
        del self._starting[base]
        if not task.cancelled():
            task.exception()  # every caller may have left; asyncio complains of exceptions that nobody looked at

    async def _start(self, base: Base) -> None:
        while (before := self._serving.get(base.name)) is not None and before.alive():
            draining = [task for old, task in self._tending.items() if old.retired_at]
            if len(draining) < MAX_DRAINING:
                break
            await asyncio.wait(draining, return_when=asyncio.FIRST_COMPLETED)
        wanted = self._wanted[base.name] = self._wanted.get(base.name, [])[-self._max_adapters :]
        self._number += 1
        log = self._logs / f"engine-{base.name}-{self._number % LOGS_KEPT}.log"
        generation = _Generation(base, tuple(wanted), log, threads=self._threads, parallel=self._parallel)
        self._living.add(generation)
        try:
            await generation.start()
            newest = wanted[-1] if wanted and wanted[-1].name not in generation.refused else None
            await generation.prove(newest)
        except BaseException:
            self._wanted[base.name] = wanted[:-1]  # if it was the newest that did it, the others work again
            await self._end(generation)
            raise
        if before is not None:
            before.retired_at = time.monotonic()
        self._serving[base.name] = generation
        self._tending[generation] = asyncio.create_task(self._tend(generation))

    async def _tend(self, generation: _Generation) -> None:
        """Ends `generation`: replaced, when its answers are done; serving, when nobody has asked for long, or dead."""
        try:
            while not await generation.exited(LOOK_SECONDS):
                retired = generation.retired_at
                if retired and time.monotonic() - retired > self._drain_seconds:
                    break
                enough = GRACE_SECONDS if retired else self._idle_seconds
                if await generation.quiet_for(enough):
                    break
        finally:
            # In this order, and without a pause after `quiet_for`: nobody is to get the route of what is ended.
            if self._serving.get(generation.base.name) is generation:
                del self._serving[generation.base.name]
            await self._end(generation)
            del self._tending[generation]

    async def _end(self, generation: _Generation) -> None:
        await generation.end()
        self._living.discard(generation)


class _Generation:
    """One inference process. `adapters` includes those in `refused`, which maps names to reasons."""

    def __init__(self, base: Base, adapters: tuple[Adapter, ...], log: Path, *, threads: int, parallel: int) -> None:
        self.base = base
        self.adapters = adapters
        self.refused: dict[str, str] = {}
        self.proven: set[Adapter | None] = set()
        self.last_used = time.monotonic()
        self.retired_at: float | None = None
        self._log = log
        self._threads = threads
        self._parallel = parallel
        self._token = secrets.token_hex(32)
        self._folder = Path(tempfile.mkdtemp(prefix="tuneway-"))  # private, and short enough for a socket's name
        self._process: Process | None = None
        self._first_line: asyncio.Task[bytes] | None = None
        self._stdout: int | None = None

    async def start(self) -> None:
        """Returns when the engine serves. Raises EngineUnavailable with the last line that it logged."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._stdout, child_stdout = os.pipe()
        try:
            with self._log.open("wb") as log:
                self._process = await asyncio.create_subprocess_exec(
                    "/usr/bin/env",
                    # llama.cpp's OpenMP threads spin while they wait for each other: beside a trainer on the same cores
                    # generation was measured at 3 tokens/s with spinning threads, at 57 with sleeping ones.
                    "OMP_WAIT_POLICY=PASSIVE",
                    sys.executable,
                    "-P",  # nothing is imported from the folder that the gateway happens to be started in
                    "-m",
                    "tuneway.inference",
                    stdin=asyncio.subprocess.PIPE,
                    stdout=child_stdout,
                    stderr=log,
                    start_new_session=True,  # the terminal's Ctrl-C is the gateway's to handle
                )
        finally:
            os.close(child_stdout)
        self._first_line = asyncio.create_task(asyncio.to_thread(_first_line, self._stdout))
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(self._spec()).encode() + b"\n")
        done, _ = await asyncio.wait({self._first_line}, timeout=START_SECONDS)
        line = self._first_line.result() if done else b""
        if not line:
            raise EngineUnavailable(
                f"The engine for {self.base.name} did not start: {self._last_words()} "
                "`tuneway doctor` says what is missing."
            )
        self.refused = json.loads(line)["refused"]

    def alive(self) -> bool:
        """Its standard output stays open as long as it lives, and is quiet. A look costs microseconds."""
        if self._stdout is None:
            return False
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        return not poll.poll(0)

    def upstream(self, adapter: Adapter | None, shown: str) -> Upstream:
        headers = {
            "authorization": f"Bearer {self._token}",
            "x-tuneway-adapter": "" if adapter is None else adapter.name,
            "x-tuneway-model": shown,
        }
        return Upstream("http://engine/v1/chat/completions", headers, self._socket)

    async def prove(self, adapter: Adapter | None) -> None:
        """Generates one token. Raises EngineUnavailable."""
        body = {"model": "proof", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        upstream = self.upstream(adapter, "proof")
        try:
            async with (
                self._client() as client,
                client.post(upstream.url, json=body, headers=upstream.headers) as answer,
            ):
                said = await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise EngineUnavailable(f"The engine for {self.base.name} gives no answer: {self._last_words()}") from error
        if answer.status != 200:
            raise EngineUnavailable(f"The engine for {self.base.name} cannot answer: {said[:500]}")
        self.proven.add(adapter)

    async def exited(self, seconds: float) -> bool:
        """Waits that long, or until the process has ended."""
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), seconds)
            except TimeoutError:
                return False
        return True

    async def quiet_for(self, seconds: float) -> bool:
        """Whether nobody got its route, and it answered nothing, since then. The engine itself says what it answers."""
        if time.monotonic() - self.last_used < seconds:
            return False
        try:
            async with self._client() as client, client.get("http://engine/healthz") as answer:
                health = await answer.json()
        except (aiohttp.ClientError, TimeoutError):
            return False  # too busy to say, or dying, which shows by itself
        return bool(min(health["idle_seconds"], time.monotonic() - self.last_used) >= seconds)

    async def end(self) -> None:
        """Kills it: an engine has nothing to save. May be called again."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
        if self._first_line is not None:
            await asyncio.wait({self._first_line})  # its thread reads what is closed next
        if self._stdout is not None:
            os.close(self._stdout)
            self._stdout = None
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _socket(self) -> Path:
        return self._folder / "http.sock"

    def _spec(self) -> dict[str, Any]:
        return {
            "base": str(self.base.folder),
            "adapters": [asdict(adapter) | {"path": str(adapter.path)} for adapter in self.adapters],
            "socket": str(self._socket),
            "token": self._token,
            "threads": self._threads,
            "context_length": self.base.context_length,
            "parallel": self._parallel,
        }

    def _client(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=PROOF_SECONDS)
        return aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self._socket)), timeout=timeout)

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n")
        return next((line.strip()[:500] for line in reversed(lines) if line.strip()), "it said nothing.")


def _first_line(fd: int) -> bytes:
    """In a thread: what the child prints first, b"" when it ended instead. Reads the line alone."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(fd, 1)
        if not byte:
            return b""
        line += byte
    return bytes(line)
