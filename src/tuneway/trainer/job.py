"""One job in its run directory: loads, drives the loop, and turns its facts into events, resume points and files."""

from __future__ import annotations

import ctypes
import os
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.deterministic

from tuneway.rundir import (
    ADAPTER,
    CHECKPOINTS,
    CHECKPOINTS_KEPT,
    EXIT_STOPPED,
    RESULT_CSV,
    TRAIN_TOKENS,
    VALID_TOKENS,
    RunDir,
    RunResult,
    RunSpec,
    TokenExample,
    read_tokens,
    step_name,
    sync_folder,
)
from tuneway.trainer.journal import CSV_HEADER, Journal, csv_row, metrics, step_message
from tuneway.trainer.loop import CannotTrain, Plan, Step, make_optimizer, train
from tuneway.trainer.lora import attach, write_adapter
from tuneway.trainer.methods import METHODS
from tuneway.trainer.model import load_base
from tuneway.trainer.resume import Past, load_resume_point, save_resume_point, write_folder

if TYPE_CHECKING:
    from tuneway.trainer.__main__ import Stop

M_MMAP_THRESHOLD = -3
"""glibc's number of the option, malloc.h."""

RESUME_SECONDS = 30.0
"""A resume point is written after the first step that ends this long after the last one began to be written."""


def run_job(run: RunDir, spec: RunSpec, attempt: int, journal: Journal, stop: Stop) -> int:
    """Trains to the end, or until told to stop; returns the exit status. The caller holds the lock."""
    _give_freed_memory_back()
    torch.set_num_threads(spec.threads)
    torch.use_deterministic_algorithms(True)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - a property of the module; it is never read; filling costs time
    examples = read_tokens(run.path / TRAIN_TOKENS)
    valid_path = run.path / VALID_TOKENS
    valid_examples = read_tokens(valid_path) if valid_path.exists() else []
    try:
        past = _train(run, spec, attempt, journal, stop, examples, valid_examples)
    except CannotTrain as error:
        journal.write("failed", str(error), level="error")
        journal.sync()
        run.write_result(RunResult(0, 0, int(time.time()), error=str(error)))
        return 0
    if past is None:
        return EXIT_STOPPED
    _write_csv(run.path / RESULT_CSV, past.rows)
    trained_tokens = spec.n_epochs * sum(len(example.tokens) for example in examples)
    journal.sync()
    run.write_result(RunResult(trained_tokens, past.step, int(time.time())))
    return 0


def _train(
    run: RunDir,
    spec: RunSpec,
    attempt: int,
    journal: Journal,
    stop: Stop,
    examples: list[TokenExample],
    valid_examples: list[TokenExample],
) -> Past | None:
    """What all steps left behind, with `adapter/` written; None when told to stop, then with a resume point."""
    _check(spec, examples)
    device = torch.device("cpu")
    base = load_base(Path(spec.base), getattr(torch, spec.dtype), device)
    adapter = attach(base.body, spec.r, spec.lora_alpha, spec.seed)
    optimizer = make_optimizer(adapter)

    def report_damage(step: int, text: str) -> None:
        journal.write(f"damaged:{step}", text, level="warn")

    past = load_resume_point(run, adapter, optimizer, report_damage)
    if past.step:
        journal.write(f"resume:{attempt}:{past.step}", f"Training goes on after step {past.step}")
    plan = Plan(spec.n_epochs, spec.batch_size, spec.learning_rate, spec.seed)
    valid_examples = [example for example in valid_examples if any(example.weights[1:])]
    pace = _Pace()
    saved_step, saved_at = past.step, time.monotonic()

    def publish(folder: Path) -> None:
        write_adapter(folder, adapter, base.name, spec.r, spec.lora_alpha)

    stop.training_begins()
    for step in train(base, optimizer, METHODS[spec.method], examples, valid_examples, plan, past.step, stop):
        past.step = step.step
        past.rows.append(csv_row(step))
        journal.write(
            f"step:{step.step}",
            step_message(step),
            type="metrics",
            data={"step": step.step, "total_steps": step.total_steps, **metrics(step)},
            progress=pace.progress(step),
        )
        if step.epoch_ends:
            where = f"{CHECKPOINTS}/{step_name(step.step)}"
            write_folder(run.path / where, publish)
            journal.write(
                f"ckpt:{step.step}",
                f"Checkpoint created at step {step.step}",
                type="checkpoint",
                data={
                    "step": step.step,
                    "total_steps": step.total_steps,
                    "path": where,
                    "metrics": {"step": step.step, **metrics(step)},
                },
            )
            run.prune(CHECKPOINTS, CHECKPOINTS_KEPT)
        if step.epoch_ends or time.monotonic() - saved_at >= RESUME_SECONDS:
            saved_step, saved_at = past.step, time.monotonic()
            journal.sync()
            save_resume_point(run, past, adapter, optimizer)
    if past.step < plan.total_steps(len(examples)):
        if past.step > saved_step and not stop.at_once():
            journal.sync()
            save_resume_point(run, past, adapter, optimizer)
        return None
    write_folder(run.path / ADAPTER, publish)
    return past


def _give_freed_memory_back() -> None:
    """Lets large tensors be mapped one by one, where the C library can be told so (glibc).

    By default glibc carves blocks of up to 32 MB from a heap that fragments and never shrinks: training on 8192 tokens
    peaked at 10.1 GB, with this at 3.3 GB. The time per step is the same within noise.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 4 << 20)


def _check(spec: RunSpec, examples: list[TokenExample]) -> None:
    """Raises CannotTrain for what no attempt can mend."""
    if spec.method not in METHODS:
        raise CannotTrain(f"The training method {spec.method!r} is not known here; known are {', '.join(METHODS)}.")
    if not examples:
        raise CannotTrain("The training file has no examples.")
    for number, example in enumerate(examples, 1):
        if not any(example.weights[1:]):
            raise CannotTrain(f"Example {number} has no token to learn from: every assistant message has weight 0.")
        if len(example.tokens) > spec.max_seq_length:
            raise CannotTrain(f"Example {number} has {len(example.tokens)} tokens; at most {spec.max_seq_length} fit.")


class _Pace:
    """Tokens per second and time left, from the last ten steps of this attempt."""

    def __init__(self) -> None:
        self._ends = deque([time.monotonic()], maxlen=11)
        self._tokens: deque[int] = deque(maxlen=10)

    def progress(self, step: Step) -> dict[str, Any]:
        self._ends.append(time.monotonic())
        self._tokens.append(step.tokens)
        seconds = self._ends[-1] - self._ends[0]
        return {
            "step": step.step,
            "total_steps": step.total_steps,
            "tokens_per_second": round(sum(self._tokens) / seconds, 1),
            "seconds_left": round(seconds / len(self._tokens) * (step.total_steps - step.step), 1),
            "train_loss": round(step.train.loss, 5),
            "valid_loss": None if step.valid is None else round(step.valid.loss, 5),
        }


def _write_csv(path: Path, rows: list[str]) -> None:
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8", newline="") as file:
        file.write("\n".join([CSV_HEADER, *rows]) + "\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_folder(path.parent)
