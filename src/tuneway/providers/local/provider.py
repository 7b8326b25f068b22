"""Jobs of the `local` provider: a run directory each, a trainer process, and engines that serve what it leaves.

Knows the seam, run directories, the catalogue and the engines. Never imports torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from tuneway import rundir
from tuneway.errors import EngineUnavailable, JobFailure
from tuneway.providers.base import Capabilities, Preparation, Report, auto_epochs
from tuneway.providers.local.catalogue import Catalogue
from tuneway.providers.local.engines import Adapter, Base, Engines
from tuneway.providers.local.executor import Executor
from tuneway.rundir import Control, RunDir, RunSpec
from tuneway.types import (
    AUTO,
    BaseModel,
    DataFile,
    EventLevel,
    Hyperparameters,
    JobError,
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

STOP_SECONDS = 20
"""How long a trainer may take to leave a resume point when the gateway stops."""
PAUSE_SECONDS = 300
"""The same when a job is paused: nobody waits for it, and a killed trainer loses up to 30 seconds of work."""


class Local:
    name = "local"
    capabilities = Capabilities(
        methods=frozenset({Method.SUPERVISED}), seed=True, suffix=True, validation_file=True, metadata=True, pause=True
    )

    def __init__(self, data: Path, catalogue: Catalogue, executor: Executor, engines: Engines, *, threads: int) -> None:
        """`data` is the gateway's data folder; run directories lie in `data/runs`."""
        self._data = data
        self._catalogue = catalogue
        self._executor = executor
        self._engines = engines
        self._threads = threads

    def base_models(self) -> Sequence[BaseModel]:
        entries = self._catalogue.entries.values()
        return [BaseModel(entry.name, self.name, entry.description, entry.created) for entry in entries]

    def check(self, request: JobRequest, base: str) -> None:
        """Its capabilities tell all."""

    async def send(self, file: DataFile, known: str | None) -> None:
        """Files are read where they are."""

    async def prepare(self, base: str, report: Report) -> Preparation:
        _need_modules()
        folder = await self._catalogue.ready(base, report)
        return Preparation(_context_length(folder), renderer=folder)

    def resolve(self, spec: JobSpec, n_examples: int) -> Resolved:
        asked = spec.hyperparameters
        entry = self._catalogue.entries[spec.model]
        numbers: dict[str, Any] = {}
        reasons: dict[str, str] = {}
        automatic = {
            "n_epochs": (auto_epochs(n_examples), f"auto, for {n_examples} examples"),
            "batch_size": (auto_batch_size(n_examples), f"auto, for {n_examples} examples"),
            "learning_rate_multiplier": (1.0, f"auto; times {entry.learning_rate:g}, the rate of {entry.name}"),
        }
        for name, (number, reason) in automatic.items():
            given = getattr(asked, name)
            numbers[name] = number if given == AUTO else given
            reasons[name] = reason if given == AUTO else "as requested"
        return Resolved(Hyperparameters(**numbers), reasons)

    def workplace(self, key: str) -> Path | None:
        return self._run(key).path

    async def launch(self, spec: LaunchSpec) -> JobHandle:
        run = self._run(spec.key)
        control = Control("run", spec.attempt)
        if run.spec() is None:
            run.create(await self._run_spec(spec), control)
        else:
            run.write_control(control)
        if run.result() is None:
            self._executor.start(run)
        return JobHandle(self.name, spec.key)

    async def find(self, spec: LaunchSpec) -> JobHandle | None:
        return JobHandle(self.name, spec.key) if self._run(spec.key).spec() is not None else None

    async def poll(self, handle: JobHandle, cursor: str | None) -> JobUpdate:
        run = self._run(handle.provider_job_id)
        # In this order: a trainer that ends in between has left its result, and one with a result has left its events.
        alive = self._executor.pid(run) is not None
        result = run.result()
        lines, offset = await asyncio.to_thread(run.events, int(cursor or 0))
        update = self._update(run, lines, str(offset))
        if result is not None and result.error is not None:
            return replace(update, status=JobStatus.FAILED, error=JobError("training_failed", result.error))
        if result is not None:
            outcome = JobResult(
                upstream_model=self._relative(run.path / rundir.ADAPTER),
                trained_tokens=result.trained_tokens,
                finished_at=result.finished_at,
                metrics_csv=run.path / rundir.RESULT_CSV,
            )
            return replace(update, result=outcome)
        if not alive:
            said = _last_line(run.path / rundir.LOG)
            error = JobError("server_error", said) if said else None
            return replace(update, error=error, lost=True)
        return update

    async def cancel(self, handle: JobHandle) -> None:
        run = self._run(handle.provider_job_id)
        control = run.control()
        if control is not None:
            run.write_control(Control("cancel", control.attempt))
        await self._executor.stop(run, signal.SIGKILL, grace=STOP_SECONDS)

    async def pause(self, handle: JobHandle) -> None:
        run = self._run(handle.provider_job_id)
        control = run.control()
        if control is not None:
            # The word stays for a trainer that is only just starting; the signal is heard while torch is imported.
            run.write_control(Control("pause", control.attempt))
        await self._executor.stop(run, signal.SIGTERM, grace=PAUSE_SECONDS)

    async def release(self, key: str) -> None:
        run = self._run(key)
        await self._executor.stop(run, signal.SIGTERM, grace=STOP_SECONDS)  # one with a result is about to end
        for folder in (rundir.STATE, "data"):
            await asyncio.to_thread(shutil.rmtree, run.path / folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            run.path.rmdir()  # of a job that was never launched

    async def settle(self, model: Model, report: Report) -> None:
        await self._engines.settle(await self._base(model.base), self._adapter(model))

    async def upstream(self, base: str, model: Model | None) -> Upstream:
        adapter = None if model is None else self._adapter(model)
        return await self._engines.upstream(await self._base(base), adapter, base if model is None else model.id)

    async def forget(self, model: Model) -> None:
        self._engines.forget(model.id)
        folders = [self._data / model.upstream_model]
        if folders[0].name == rundir.ADAPTER:  # the checkpoint of the last step is the same model
            folders += [path for _, path in list(RunDir(folders[0].parent).steps(rundir.CHECKPOINTS))[-1:]]
        for folder in folders:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def close(self) -> None:
        # Also the trainers that an earlier gateway started.
        runs = [RunDir(path) for path in (self._data / "runs").glob("*")]
        stops = [self._executor.stop(run, signal.SIGTERM, STOP_SECONDS) for run in runs]
        await asyncio.gather(self._engines.close(), *stops)

    # ------------------------------------------------------------------------------------------------------- details

    def _run(self, key: str) -> RunDir:
        return RunDir(self._data / "runs" / key)

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self._data))

    def _adapter(self, model: Model) -> Adapter:
        return Adapter(model.id, self._data / model.upstream_model)

    async def _base(self, name: str) -> Base:
        async def report(_: str) -> None:
            """A chat request has no events to report to."""

        try:
            folder = await self._catalogue.ready(name, report)
        except JobFailure as failure:
            raise EngineUnavailable(failure.message) from failure
        return Base(name, folder, _context_length(folder))

    async def _run_spec(self, spec: LaunchSpec) -> RunSpec:
        entry = self._catalogue.entries[spec.job.model]
        chosen = spec.hyperparameters
        base = await self._base(entry.name)
        assert not isinstance(chosen.n_epochs, str)
        assert not isinstance(chosen.batch_size, str)
        assert not isinstance(chosen.learning_rate_multiplier, str)
        return RunSpec(
            job=spec.key,
            base=str(base.folder),
            method=spec.job.method.value,
            n_epochs=chosen.n_epochs,
            batch_size=chosen.batch_size,
            learning_rate=entry.learning_rate * chosen.learning_rate_multiplier,
            seed=spec.job.seed,
            r=entry.r,
            lora_alpha=entry.lora_alpha,
            max_seq_length=base.context_length,
            threads=self._threads,
            dtype="float32",
            versions={name: metadata.version(name) for name in ("tuneway", "torch", "transformers")},
        )

    def _update(self, run: RunDir, lines: Sequence[Mapping[str, Any]], cursor: str) -> JobUpdate:
        events, checkpoints, progress = [], [], None
        for line in lines:
            if line.get("progress"):
                progress = Progress(**line["progress"])
            if line["type"] == "checkpoint":
                data = line["data"]
                checkpoints.append(
                    ProviderCheckpoint(
                        step_number=data["step"],
                        metrics=data["metrics"],
                        upstream_model=self._relative(run.path / data["path"]),
                        created_at=line["created_at"],
                        final=data["step"] == data["total_steps"],
                    )
                )
                continue
            event = NewEvent(
                key=line["key"],
                message=line["message"],
                created_at=line["created_at"],
                level=EventLevel(line["level"]),
                type=line["type"],
                data=line["data"],
            )
            events.append(event)
        return JobUpdate(cursor, JobStatus.RUNNING, "training", tuple(events), tuple(checkpoints), progress)


def auto_batch_size(n_examples: int) -> int:
    """8, and fewer below 80 examples, so that an epoch has at least 10 steps."""
    return max(1, min(8, n_examples // 10))


def available_threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _need_modules() -> None:
    missing = [name for name in ("torch", "transformers", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        raise JobFailure(
            f"This machine cannot train yet: {', '.join(missing)} not installed. Run `make install`, or "
            "`pip install torch --index-url https://download.pytorch.org/whl/cpu` and `pip install 'tuneway[local]'`."
        )


def _context_length(folder: Path) -> int:
    manifest = rundir.read_json(folder / "base.json")
    assert manifest is not None  # the catalogue gives whole folders only
    return int(manifest["context_length"])


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except FileNotFoundError:
        return ""
    return lines[-1][:500] if lines else ""
