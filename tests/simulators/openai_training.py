"""What a vendor of OpenAI's shape does with a job: checks its file, takes its steps, writes its events and results.

Times, losses and names are made up; their form, order and number are those of recorded jobs.
"""

from __future__ import annotations

import json
import secrets
import string
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ALPHABET = string.ascii_letters + string.digits
CSV_HEAD = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
DEFAULTS: dict[str, Any] = {
    "learning_rate_multiplier": 1.8,
    "beta": 0.1,
    "compute_multiplier": 1.0,
    "eval_interval": 5,
    "eval_samples": 3,
}
FORMATS = {"supervised": "messages", "dpo": "input", "reinforcement": "messages"}
METRIC_EVENTS = 100
"""Of a longer job, only about so many steps are told."""

NewName = Callable[["Job"], str]


def new_id(start: str, length: int = 24) -> str:
    return start + "".join(secrets.choice(ALPHABET) for _ in range(length))


def now() -> int:
    return int(time.time())


@dataclass
class File:
    """A file as a GET shows it. `content` is None when it was too large to keep."""

    wire: dict[str, Any]
    content: bytes | None
    rows: int
    sha256: str

    def __getitem__(self, name: str) -> Any:
        return self.wire[name]

    def problem(self, param: str, method: str) -> dict[str, Any] | None:
        """What makes a job with this file fail."""
        if self.rows < 10:
            name = param.replace("_", " ").capitalize()
            message = f"{name} has {self.rows} example(s), but must have at least 10 examples"
            return {"code": "invalid_n_examples", "message": message, "param": param}
        start = f"The job failed due to a file format error in the {param.replace('_', ' ')}. Invalid file format. "
        for at, line in enumerate((self.content or b"").removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                reason = f"Example {at} cannot be parsed. Error: line contains invalid json: {error} (line {at})"
                return {"code": "invalid_file_format", "message": start + reason, "param": param}
            if not isinstance(row, dict) or FORMATS[method] not in row:
                reason = f"Example {at} is missing key '{FORMATS[method]}'"
                return {"code": "invalid_file_format", "message": start + reason, "param": param}
        return None


@dataclass
class Job:
    """`wire` is the job as OpenAI shows it, `body` what made it. Both `method` and `wire` hold its hyperparameters."""

    wire: dict[str, Any]
    body: dict[str, Any]
    method: dict[str, Any]
    training: File
    validation: File | None
    auto: Any = "auto"
    pinned: str | None = None
    failure: dict[str, Any] | None = None
    step: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        """A field as a GET shows it."""
        return self.status if name == "status" else self.wire[name]

    @property
    def id(self) -> str:
        found: str = self.wire["id"]
        return found

    @property
    def status(self) -> str:
        found: str = self.pinned or self.wire["status"]
        return found

    @property
    def hyperparameters(self) -> dict[str, Any]:
        found: dict[str, Any] = self.method[self.method["type"]]["hyperparameters"]
        return found

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.training.rows // int(self.hyperparameters["batch_size"]))

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * int(self.hyperparameters["n_epochs"])

    def log(self, message: str, data: Any = None, kind: str = "message", level: str = "info") -> None:
        event = {"object": "fine_tuning.job.event", "id": new_id("ftevent-"), "created_at": now()}
        self.events.append(event | {"level": level, "message": message, "data": data, "type": kind})

    def check(self) -> None:
        """Files are looked at by the job, not when they are uploaded."""
        method = self.method["type"]
        self.failure = self.failure or self.training.problem("training_file", method)
        if self.validation is not None:
            self.failure = self.failure or self.validation.problem("validation_file", method)

    def begin(self, new_name: NewName) -> None:
        """Resolves what was left to the vendor, and trains all but the last epoch."""
        if self.step:
            return
        rows, chosen = self.training.rows, self.hyperparameters
        epochs = min(25, 100 // rows) if rows * 3 < 100 else max(1, 25000 // rows) if rows * 3 > 25000 else 3
        defaults = DEFAULTS | {"n_epochs": epochs, "batch_size": max(1, min(256, round(rows / 500)))}
        chosen.update({name: defaults[name] for name, value in chosen.items() if value == self.auto})
        self.log("Fine-tuning job started")
        self.run_to(max(1, self.total_steps - self.steps_per_epoch or self.total_steps // 2), new_name)

    def run_to(self, target: int, new_name: NewName) -> None:
        stride = -(-self.total_steps // METRIC_EVENTS)
        for step in range(self.step + 1, target + 1):
            if step % stride == 0 or step in (1, self.total_steps):
                self.log(self.progress(step), self.metrics(step), "metrics")
            left = self.total_steps - step
            if 0 < left <= 2 * self.steps_per_epoch and left % self.steps_per_epoch == 0:
                self.add_checkpoint(step, f"{new_name(self)}:ckpt-step-{step}")
        self.step = target

    def progress(self, step: int) -> str:
        if self.method["type"] == "reinforcement":
            return f"Step {step}/{self.total_steps} , train mean reward={step / self.total_steps:.2f}"
        return f"Step {step}/{self.total_steps}: training loss={2 / step:.2f}"

    def metrics(self, step: int) -> dict[str, Any]:
        shown: dict[str, Any] = {"step": step, "total_steps": self.total_steps}
        if self.method["type"] == "reinforcement":
            return shown | {"train_mean_reward": round(step / self.total_steps, 5)}
        shown |= {"train_loss": round(2 / step, 5), "train_mean_token_accuracy": round(1 - 1 / (step + 1), 5)}
        if self.validation is not None:
            shown |= {"valid_loss": round(2.5 / step, 5), "valid_mean_token_accuracy": round(1 - 1 / (step + 2), 5)}
        return shown

    def add_checkpoint(self, step: int, name: str) -> None:
        if any(kept["step_number"] == step for kept in self.checkpoints):
            return
        metrics = {name: value for name, value in self.metrics(step).items() if name != "total_steps"}
        self.checkpoints.append(
            {
                "object": "fine_tuning.job.checkpoint",
                "id": new_id("ftckpt_"),
                "created_at": now(),
                "fine_tuned_model_checkpoint": name,
                "fine_tuning_job_id": self.id,
                "metrics": metrics,
                "step_number": step,
            }
        )

    def finish(self, new_name: NewName) -> None:
        """The last epoch, and the model."""
        self.run_to(self.total_steps, new_name)
        name = new_name(self)
        self.checkpoints = [kept for kept in self.checkpoints if kept["step_number"] < self.total_steps]
        for kept in self.checkpoints:
            step, model = kept["step_number"], kept["fine_tuned_model_checkpoint"]
            self.log(f"Checkpoint created at step {step} with Snapshot ID: {model}", {})
        self.add_checkpoint(self.total_steps, name)
        tokens = self.training.wire["bytes"] // 4 * self.hyperparameters["n_epochs"]
        self.wire |= {"fine_tuned_model": name, "finished_at": now(), "trained_tokens": tokens}
        self.log(f"New fine-tuned model created: {name}", {})
        self.log("The job has successfully completed", {})

    def fail(self, failure: dict[str, Any]) -> None:
        self.wire |= {"status": "failed", "error": failure, "finished_at": now()}
        self.log(failure["message"], {"code": failure["code"], "param": failure["param"]}, level="error")

    def csv(self) -> bytes:
        lines = [CSV_HEAD]
        for step in range(1, self.total_steps + 1):
            found = self.metrics(step)
            cells = [found.get("train_loss", ""), found.get("train_mean_token_accuracy", "")]
            cells += [found.get("valid_loss", ""), found.get("valid_mean_token_accuracy", "")]
            lines.append(",".join(str(cell) for cell in (step, *cells)))
        return ("\n".join(lines) + "\n").encode()
