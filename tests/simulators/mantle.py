"""Bedrock Mantle: OpenAI's files and jobs for reinforcement fine-tuning of open-weight models, graded by a Lambda.

Its documents show no suffix, seed, metadata or pause; what they do not show is refused here.
"""

from __future__ import annotations

from typing import ClassVar

from tests.simulators import shapes
from tests.simulators.base import Request
from tests.simulators.openai import OpenAISimulator
from tests.simulators.openai_bodies import JOB_REQUIRED
from tests.simulators.openai_files import Wire

LAMBDA = shapes.fields(
    {"function": shapes.text(pattern=r"arn:aws:lambda:[a-z0-9-]+:\d{12}:function:\S+")}, ["function"]
)
GRADER = shapes.fields({"type": shapes.choice("lambda"), "lambda": LAMBDA}, ["type", "lambda"])
HYPERPARAMETERS: dict[str, shapes.Check] = {
    "n_epochs": shapes.auto(shapes.integer(1, 50)),
    "batch_size": shapes.auto(shapes.integer(1, 256)),
    "learning_rate_multiplier": shapes.auto(shapes.number(above=0)),
    "reasoning_effort": shapes.choice("default", "low", "medium", "high"),
    "compute_multiplier": shapes.auto(shapes.number(above=0.00001, most=10)),
    "eval_interval": shapes.auto(shapes.integer(1)),
    "eval_samples": shapes.auto(shapes.integer(1)),
}
REINFORCEMENT = shapes.fields({"grader": GRADER, "hyperparameters": shapes.fields(HYPERPARAMETERS)}, ["grader"])
METHOD = shapes.fields(
    {"type": shapes.choice("reinforcement"), "reinforcement": REINFORCEMENT}, ["type", "reinforcement"]
)
JOB = shapes.fields(
    {
        "model": shapes.text(),
        "training_file": shapes.text(),
        "validation_file": shapes.nullable(shapes.text()),
        "method": METHOD,
    },
    [*JOB_REQUIRED, "method"],
)


class MantleSimulator(OpenAISimulator):
    """A tuned model can be called at once."""

    bases: ClassVar = ["openai.gpt-oss-20b", "qwen.qwen3-32b"]
    tunable: ClassVar = bases
    lacks: ClassVar = frozenset(
        {"pause_job", "resume_job", "permissions", "create_permission", "delete_permission", "run_grader"}
        | {"validate_grader", "create_upload", "add_part", "complete_upload", "cancel_upload", "completions"}
    )

    def __init__(self, key: str = "bedrock-api-key-simulated") -> None:
        super().__init__(key)

    def check_job(self, body: Wire, request: Request) -> None:
        JOB(body, "")
