"""Nebius Token Factory: OpenAI's shape with LoRA's hyperparameters, an absolute learning rate, and a deploy step.

A tuned model is called by the full name that deploying it answers; it can be asked for by that or by its short name.
"""

from __future__ import annotations

from typing import Any, ClassVar

from tests.simulators import shapes
from tests.simulators.base import Answer, Handler, Refused, Request, as_json
from tests.simulators.openai import OpenAISimulator
from tests.simulators.openai_bodies import JOB_FIELDS, JOB_REQUIRED
from tests.simulators.openai_files import Wire
from tests.simulators.openai_training import Job, new_id, now

DEFAULTS: dict[str, Any] = {
    "n_epochs": 3,
    "batch_size": 8,
    "learning_rate_multiplier": 0.00001,
    "lora": False,
    "lora_r": 8,
    "lora_alpha": 8,
    "lora_dropout": 0,
    "packing": True,
    "warmup_ratio": 0,
    "weight_decay": 0,
    "max_grad_norm": 1,
    "context_length": 8192,
}


def learning_rate(value: Any, path: str) -> None:
    """Named a multiplier, and absolute: a real multiplier would ruin the model."""
    shapes.number(above=0)(value, path)
    if value >= 0.01:
        raise shapes.out_of_range(value, path, "a learning rate < 0.01", "decimal_above_max_value")


HYPERPARAMETERS: dict[str, shapes.Check] = {
    "n_epochs": shapes.integer(1, 20),
    "batch_size": shapes.integer(1),
    "learning_rate_multiplier": learning_rate,
    "lora": shapes.boolean,
    "lora_r": shapes.integer(8, 128),
    "lora_alpha": shapes.integer(8),
    "lora_dropout": shapes.number(0, 1),
    "packing": shapes.boolean,
    "warmup_ratio": shapes.number(0, 1),
    "weight_decay": shapes.number(0),
    "max_grad_norm": shapes.number(0),
    "context_length": shapes.integer(1),
}
SHARED = {name: check for name, check in JOB_FIELDS.items() if name not in ("method", "metadata")}
JOB = shapes.fields(SHARED | {"hyperparameters": shapes.fields(HYPERPARAMETERS)}, JOB_REQUIRED)
NAME = shapes.text(1, 64, "[a-zA-Z0-9_-]+")
DEPLOYMENT = shapes.fields(
    {"name": NAME, "base_model": shapes.text(), "source": shapes.text(), "description": shapes.nullable(shapes.text())},
    ["name", "base_model", "source"],
)


class NebiusSimulator(OpenAISimulator):
    """`deployments` are the deployed adapters by full name."""

    bases: ClassVar = ["meta-llama/Meta-Llama-3.1-8B-Instruct", "Qwen/Qwen3-32B"]
    tunable: ClassVar = bases
    max_file: ClassVar = 5 * 1024**3
    lacks: ClassVar = frozenset(
        {"pause_job", "resume_job", "permissions", "create_permission", "delete_permission", "run_grader"}
        | {"validate_grader", "create_upload", "add_part", "complete_upload", "cancel_upload", "completions"}
    )

    def __init__(self, key: str = "nebius-simulated") -> None:
        super().__init__(key)
        self.deployments: dict[str, Wire] = {}

    def routes(self) -> list[tuple[str, str, str, Handler]]:
        return [
            *self.data_routes(self.prefix),
            ("POST", "/v0/models", "deploy", self.deploy),
            ("GET", "/v0/models/{name:path}", "deployment", self.get_deployment),
            ("DELETE", "/v0/models/{name:path}", "delete_deployment", self.delete_deployment),
        ]

    def check_job(self, body: Wire, request: Request) -> None:
        JOB(body, "")

    def method_of(self, body: Wire) -> Wire:
        chosen = DEFAULTS | body.get("hyperparameters", {})
        return {"type": "supervised", "supervised": {"hyperparameters": chosen}}

    def job_wire(self, job: Job) -> Wire:
        hidden = ("method", "metadata", "user_provided_suffix", "usage_metrics", "shared_with_openai", "eval_id")
        wire = {name: value for name, value in super().job_wire(job).items() if name not in hidden}
        return wire | {"fine_tuned_model": None, "suffix": job.wire["user_provided_suffix"]}

    def publish(self, job: Job, name: str) -> None:
        """A checkpoint is files; nothing of it can be called yet."""
        for checkpoint in job.checkpoints:
            if "result_files" not in checkpoint:
                content = b"adapter of " + checkpoint["id"].encode()
                file = self.add_file("adapter_model.safetensors", "fine-tune-results", len(content), content, 1, "")
                checkpoint |= {"result_files": [file.wire["id"]], "fine_tuned_model_checkpoint": None}

    def deploy(self, request: Request) -> Answer:
        body = request.object()
        DEPLOYMENT(body, "")
        job_id, _, checkpoint = body["source"].partition(":")
        job: Job | None = self.jobs.get(job_id)
        if job is None or checkpoint not in [kept["id"] for kept in job.checkpoints]:
            raise Refused(404, f"Checkpoint {body['source']} was not found.", param="source")
        if job.wire["model"] != body["base_model"]:
            raise Refused(400, f"{body['source']} is no adapter of {body['base_model']}.", param="base_model")
        full = f"{body['base_model']}-LoRa:{body['name']}-{new_id('', 4)}"
        wire = body | {"name": full, "created_at": now(), "status": "validating"}
        self.deployments[full] = wire | {"short_name": body["name"], "polls": 0}
        return as_json(wire)

    def find_deployment(self, request: Request) -> Wire:
        name = request.params["name"]
        for full, wire in self.deployments.items():
            if name in (full, wire["short_name"]):
                return wire
        raise Refused(404, f"Model {name} was not found.")

    def get_deployment(self, request: Request) -> Answer:
        wire = self.find_deployment(request)
        wire["polls"] += 1
        if wire["polls"] == 2:
            wire["status"] = "active"
            self.models[wire["name"]] = {"id": wire["name"], "object": "model", "created": now(), "owned_by": "user"}
        return as_json({name: value for name, value in wire.items() if name not in ("polls", "short_name")})

    def delete_deployment(self, request: Request) -> Answer:
        wire = self.deployments.pop(self.find_deployment(request)["name"])
        self.models.pop(wire["name"], None)
        return as_json({"name": wire["name"], "status": "deleted"})
