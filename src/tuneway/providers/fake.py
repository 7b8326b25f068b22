"""The `fake` provider: keyless, deterministic, needs no torch and two polls. For demos and for tests of clients.

A job makes a step a look and two steps an epoch, so that one of one epoch, which "auto" gives, succeeds at the second
look and one of 50 epochs runs for a while. Its model answers every chat with the last user message turned round. The
answers come from an HTTP server of its own, since a provider's upstream is always one: `python -m
tuneway.inference.echo`, a child that ends with the gateway and checks requests as the real engines' does.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuneway.errors import EngineUnavailable
from tuneway.providers.base import Capabilities, Preparation, Report
from tuneway.types import (
    AUTO,
    BaseModel,
    DataFile,
    Hyperparameters,
    JobHandle,
    JobRequest,
    JobResult,
    JobSpec,
    JobStatus,
    JobUpdate,
    LaunchSpec,
    Method,
    Model,
    NewEvent,
    Progress,
    ProviderCheckpoint,
    Resolved,
    Upstream,
)

BASE = "fake-1"
CONTEXT_LENGTH = 1 << 20
STEPS_PER_EPOCH = 2
_CSV_HEADER = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"


class Fake:
    name = "fake"
    capabilities = Capabilities(
        methods=frozenset({Method.SUPERVISED}), seed=True, suffix=True, validation_file=True, metadata=True, pause=True
    )

    def __init__(self, folder: Path) -> None:
        """`folder` is where it remembers what was launched."""
        self._folder = folder
        self._starting = asyncio.Lock()
        self._child: Process | None = None
        self._token = secrets.token_hex(32)
        self._sockets: tempfile.TemporaryDirectory[str] | None = None

    def base_models(self) -> Sequence[BaseModel]:
        return [BaseModel(BASE, self.name, "Answers with your last message turned round; trains in no time.", 0)]

    def check(self, request: JobRequest, base: str) -> None:
        """Its capabilities tell all."""

    async def send(self, file: DataFile, known: str | None) -> None:
        """Files are read where they are."""

    async def prepare(self, base: str, report: Report) -> Preparation:
        return Preparation(CONTEXT_LENGTH)

    def resolve(self, spec: JobSpec, n_examples: int) -> Resolved:
        numbers: dict[str, Any] = {"n_epochs": 1, "batch_size": 1, "learning_rate_multiplier": 1.0}
        reasons = dict.fromkeys(numbers, "auto, always")
        for name in numbers:
            given = getattr(spec.hyperparameters, name)
            if given != AUTO:
                numbers[name], reasons[name] = given, "as requested"
        return Resolved(Hyperparameters(**numbers), reasons)

    def workplace(self, key: str) -> Path | None:
        return None

    async def launch(self, spec: LaunchSpec) -> JobHandle:
        assert not isinstance(spec.hyperparameters.n_epochs, str)
        steps = range(1, STEPS_PER_EPOCH * spec.hyperparameters.n_epochs + 1)
        lines = [f"{step},{1 / step:.5f},{step / len(steps):.5f},," for step in steps]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._csv(spec.key).write_text("\n".join([_CSV_HEADER, *lines]) + "\n")
        self._paused(spec.key).unlink(missing_ok=True)
        return JobHandle(self.name, spec.key)

    async def find(self, spec: LaunchSpec) -> JobHandle | None:
        return JobHandle(self.name, spec.key) if self._csv(spec.key).exists() else None

    async def poll(self, handle: JobHandle, cursor: str | None) -> JobUpdate:
        """Every look sees a step more, the last one the result too; a paused job stays where it is."""
        name = handle.provider_job_id
        done = int(cursor or 0)
        total = len(self._csv(name).read_text().splitlines()) - 1
        if self._paused(name).exists() and done < total:
            return JobUpdate(str(done), JobStatus.RUNNING, "paused")
        step = min(done + 1, total)
        now, metrics = int(time.time()), {"train_loss": round(1 / step, 5), "train_mean_token_accuracy": step / total}
        event = NewEvent(
            f"step:{step}",
            f"Step {step}/{total}: training loss={1 / step:.2f}",
            now,
            type="metrics",
            data={"step": step, "total_steps": total, **metrics},
        )
        progress = Progress(step, total, train_loss=1 / step)
        checkpoints: tuple[ProviderCheckpoint, ...] = ()
        if step % STEPS_PER_EPOCH == 0:
            checkpoints = (ProviderCheckpoint(step, {"step": step, **metrics}, name, now, final=step == total),)
        if step < total:
            return JobUpdate(str(step), JobStatus.RUNNING, "running", (event,), checkpoints, progress)
        result = JobResult(name, trained_tokens=total, finished_at=now, metrics_csv=self._csv(name))
        return JobUpdate(str(step), JobStatus.RUNNING, "finished", (event,), checkpoints, progress, result)

    async def cancel(self, handle: JobHandle) -> None:
        """Nothing runs."""

    async def pause(self, handle: JobHandle) -> None:
        self._paused(handle.provider_job_id).touch()

    async def release(self, key: str) -> None:
        self._csv(key).unlink(missing_ok=True)
        self._paused(key).unlink(missing_ok=True)

    async def settle(self, model: Model, report: Report) -> None:
        await self.upstream(model.base, model)

    async def upstream(self, base: str, model: Model | None) -> Upstream:
        async with self._starting:
            if self._child is None or self._child.returncode is not None:
                await self._start()
        assert self._sockets is not None
        shown = base if model is None else model.id
        socket = Path(self._sockets.name) / "fake.sock"
        headers = {"authorization": f"Bearer {self._token}", "x-tuneway-model": shown}
        return Upstream("http://fake/v1/chat/completions", headers, socket)

    async def forget(self, model: Model) -> None:
        """Its models are nothing but names."""

    async def close(self) -> None:
        if self._child is not None and self._child.returncode is None:
            self._child.kill()
            await self._child.wait()
        if self._sockets is not None:
            self._sockets.cleanup()

    def _csv(self, key: str) -> Path:
        return self._folder / f"{key}.csv"

    def _paused(self, key: str) -> Path:
        """A file that is there while the job is paused."""
        return self._folder / f"{key}.paused"

    async def _start(self) -> None:
        if self._sockets is not None:
            self._sockets.cleanup()
        self._sockets = tempfile.TemporaryDirectory(prefix="tuneway-fake-")
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "tuneway.inference.echo"), stdin=PIPE, stdout=PIPE, start_new_session=True
        )
        assert child.stdin is not None
        assert child.stdout is not None
        spec = {"socket": f"{self._sockets.name}/fake.sock", "token": self._token}
        child.stdin.write(json.dumps(spec).encode() + b"\n")
        await child.stdin.drain()
        if not await child.stdout.readline():
            raise EngineUnavailable("The fake upstream did not start.")
        self._child = child
