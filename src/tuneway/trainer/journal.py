"""`events.jsonl`, and how the loop's facts read there and in `result.csv`. Standard library: it opens before torch.

Every line is {"key", "created_at", "level", "type", "message", "data", "progress"}. Keys are natural (`step:12`), so a
step that runs again after a kill writes a line that its reader already knows.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tuneway.rundir import EVENTS

if TYPE_CHECKING:
    from tuneway.trainer.loop import Measured, Step

CSV_HEADER = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"


class Journal:
    """Appends to a run directory's `events.jsonl`; a last line that a kill cut short is removed first."""

    def __init__(self, run_path: Path) -> None:
        self._fd = os.open(run_path / EVENTS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        data = (run_path / EVENTS).read_bytes()
        os.ftruncate(self._fd, data.rfind(b"\n") + 1)

    def write(
        self,
        key: str,
        message: str,
        *,
        level: Literal["info", "warn", "error"] = "info",
        type: Literal["message", "metrics", "checkpoint"] = "message",
        data: dict[str, Any] | None = None,
        progress: dict[str, Any] | None = None,
    ) -> None:
        """Appends one event."""
        event = {
            "key": key,
            "created_at": int(time.time()),
            "level": level,
            "type": type,
            "message": message,
            "data": data or {},
            "progress": progress,
        }
        line = json.dumps(event, allow_nan=False).encode() + b"\n"
        while line:  # a full disk raises here; a write cut short is continued
            line = line[os.write(self._fd, line) :]

    def sync(self) -> None:
        """Makes all events durable: called before a resume point says that their steps are done."""
        os.fsync(self._fd)


def metrics(step: Step) -> dict[str, float]:
    """The metrics of a step by OpenAI's names, to 5 decimals."""
    found = _pair("train_loss", "train_mean_token_accuracy", step.train)
    found |= _pair("valid_loss", "valid_mean_token_accuracy", step.valid)
    return found | _pair("full_valid_loss", "full_valid_mean_token_accuracy", step.full)


def step_message(step: Step) -> str:
    """`Step 12/90: training loss=0.15, validation loss=0.27, full validation loss=0.40`, without what is not known."""
    parts = [f"Step {step.step}/{step.total_steps}: training loss={step.train.loss:.2f}"]
    if step.valid:
        parts.append(f"validation loss={step.valid.loss:.2f}")
    if step.full:
        parts.append(f"full validation loss={step.full.loss:.2f}")
    return ", ".join(parts)


def csv_row(step: Step) -> str:
    """One line of `result.csv` without its end."""
    valid = f"{step.valid.loss:.5f},{step.valid.accuracy:.5f}" if step.valid else ","
    return f"{step.step},{step.train.loss:.5f},{step.train.accuracy:.5f},{valid}"


def _pair(loss: str, accuracy: str, measured: Measured | None) -> dict[str, float]:
    return {} if measured is None else {loss: round(measured.loss, 5), accuracy: round(measured.accuracy, 5)}
