"""The bodies that OpenAI's API accepts, field by field as its OpenAPI description has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.simulators.shapes import (
    Check,
    anything,
    auto,
    boolean,
    choice,
    fields,
    integer,
    items,
    mapping,
    nullable,
    number,
    tagged,
    text,
    text_or,
)

METADATA = nullable(mapping(text(most=512), most=16, key=text(least=1, most=64)))


EVAL_ITEM = fields({"role": text(), "content": anything, "type": choice("message")}, ["role", "content"])
NAMED: dict[str, Check] = {"type": anything, "name": text()}
METRICS = ["cosine", "fuzzy_match", "bleu", "gleu", "meteor", *(f"rouge_{n}" for n in (1, 2, 3, 4, 5, "l"))]
STRING_CHECK = NAMED | {"input": text(), "reference": text(), "operation": choice("eq", "ne", "like", "ilike")}
SIMILARITY = NAMED | {"input": text(), "reference": text(), "evaluation_metric": choice(*METRICS)}
PYTHON = NAMED | {"source": text(), "image_tag": text()}
SCORE = NAMED | {"model": text(), "input": items(EVAL_ITEM), "range": items(number()), "sampling_params": anything}
LABEL = NAMED | {"model": text(), "input": items(EVAL_ITEM), "labels": items(text()), "passing_labels": items(text())}
SINGLE: dict[str, Check] = {
    "string_check": fields(STRING_CHECK, list(STRING_CHECK)),
    "text_similarity": fields(SIMILARITY, list(SIMILARITY)),
    "python": fields(PYTHON, ["type", "name", "source"]),
    "score_model": fields(SCORE, ["type", "name", "model", "input"]),
}
PARTS = tagged("type", SINGLE | {"label_model": fields(LABEL, list(LABEL))})
# The description has one grader in `graders`; the service takes a map from names to graders.
MULTI = NAMED | {"graders": mapping(PARTS), "calculate_output": text()}
GRADER = tagged("type", SINGLE | {"multi": fields(MULTI, list(MULTI))})
RUN_GRADER = fields({"grader": GRADER, "model_sample": text(), "item": mapping(anything)}, ["grader", "model_sample"])
VALIDATE_GRADER = fields({"grader": GRADER}, ["grader"])

WANDB = {"project": text(), "name": nullable(text()), "entity": nullable(text()), "tags": items(text(most=64), most=50)}
INTEGRATION = fields({"type": choice("wandb"), "wandb": fields(WANDB, ["project"])}, ["type", "wandb"])


def method(hyperparameters: Callable[..., Check], unset: Callable[[Check], Check]) -> Check:
    reinforcement = hyperparameters(
        reasoning_effort=choice("default", "low", "medium", "high"),
        compute_multiplier=unset(number(above=0.00001, most=10)),
        eval_interval=unset(integer(1)),
        eval_samples=unset(integer(1)),
    )
    kinds: dict[str, Check] = {
        "supervised": fields({"hyperparameters": hyperparameters()}),
        "dpo": fields({"hyperparameters": hyperparameters(beta=unset(number(above=0, most=2)))}),
        "reinforcement": fields(
            {"grader": GRADER, "hyperparameters": reinforcement, "response_format": anything}, ["grader"]
        ),
    }

    def check(value: Any, path: str) -> None:
        fields({"type": choice(*kinds)} | kinds, ["type"])(value, path)
        if value["type"] == "reinforcement":
            fields({}, ["reinforcement"], closed=False)(value, path)

    return check


def job_fields(unset: Callable[[Check], Check], suffix: Check) -> dict[str, Check]:
    """The fields of a job; `unset` adds to a hyperparameter's values the one that leaves it to the vendor."""

    def hyperparameters(**more: Check) -> Check:
        own = {
            "n_epochs": unset(integer(1, 50)),
            "batch_size": unset(integer(1, 256)),
            "learning_rate_multiplier": unset(number(above=0)),
        }
        return fields(own | more)

    return {
        "model": text(),
        "training_file": text(),
        "validation_file": nullable(text()),
        "hyperparameters": hyperparameters(),
        "suffix": nullable(suffix),
        "integrations": nullable(items(INTEGRATION, most=5)),
        "seed": nullable(integer(0, 2147483647)),
        "method": method(hyperparameters, unset),
        "metadata": METADATA,
    }


JOB_REQUIRED = ["model", "training_file"]
JOB_FIELDS = job_fields(auto, text(1, 64))
JOB = fields(JOB_FIELDS, JOB_REQUIRED)

EXPIRY = fields({"anchor": choice("created_at"), "seconds": integer(3600, 2592000)}, ["anchor", "seconds"])
UPLOAD_FIELDS: dict[str, Check] = {
    "filename": text(1),
    "purpose": choice("assistants", "batch", "fine-tune", "vision"),
    "bytes": integer(1, 8 * 1024**3),
    "mime_type": text(1),
    "expires_after": EXPIRY,
}
UPLOAD = fields(UPLOAD_FIELDS, ["filename", "purpose", "bytes", "mime_type"])
COMPLETE_UPLOAD = fields({"part_ids": items(text()), "md5": text()}, ["part_ids"])
PERMISSIONS = fields({"project_ids": items(text(), least=1)}, ["project_ids"])

CONTENT = text_or(items(fields({"type": text()}, ["type"], closed=False), least=1))
SPEAKER: dict[str, Check] = {"role": anything, "content": CONTENT, "name": text()}
TOOL_CALL = fields({"id": text(), "type": text(), "function": anything, "custom": anything}, ["id", "type"])
ASSISTANT = SPEAKER | {
    "content": nullable(CONTENT),
    "refusal": nullable(text()),
    "audio": anything,
    "tool_calls": items(TOOL_CALL),
    "function_call": anything,
}
MESSAGE = tagged(
    "role",
    {
        "system": fields(SPEAKER, ["content"]),
        "developer": fields(SPEAKER, ["content"]),
        "user": fields(SPEAKER, ["content"]),
        "assistant": fields(ASSISTANT),
        "tool": fields({"role": anything, "content": CONTENT, "tool_call_id": text()}, ["content", "tool_call_id"]),
        "function": fields(SPEAKER | {"content": nullable(text())}, ["content", "name"]),
    },
)
FUNCTION_FIELDS: dict[str, Check] = {
    "name": text(1, 64, "[a-zA-Z0-9_-]+"),
    "description": text(),
    "parameters": mapping(anything),
    "strict": nullable(boolean),
}
FUNCTION = fields(FUNCTION_FIELDS, ["name"])
TOOL = tagged(
    "type",
    {
        "function": fields({"type": anything, "function": FUNCTION}, ["function"]),
        "custom": fields({"type": anything, "custom": anything}, ["custom"]),
    },
)
STREAM_OPTIONS = fields({"include_usage": boolean, "include_obfuscation": boolean})
FORMAT = fields({"type": choice("text", "json_object", "json_schema"), "json_schema": anything}, ["type"])

CHAT_FIELDS: dict[str, Check] = {
    "model": text(),
    "messages": items(MESSAGE, least=1),
    "metadata": METADATA,
    "top_logprobs": nullable(integer(0, 20)),
    "temperature": nullable(number(0, 2)),
    "top_p": nullable(number(0, 1)),
    "user": text(),
    "safety_identifier": nullable(text(most=64)),
    "prompt_cache_key": nullable(text()),
    "prompt_cache_retention": nullable(choice("in_memory", "24h")),
    "prompt_cache_options": anything,
    "service_tier": nullable(choice("auto", "default", "flex", "scale", "priority", "fast")),
    "modalities": nullable(items(choice("text", "audio"))),
    "verbosity": nullable(choice("low", "medium", "high")),
    "reasoning_effort": nullable(choice("none", "minimal", "low", "medium", "high", "xhigh", "max")),
    "max_completion_tokens": nullable(integer(1)),
    "max_tokens": nullable(integer(1)),
    "frequency_penalty": nullable(number(-2, 2)),
    "presence_penalty": nullable(number(-2, 2)),
    "web_search_options": mapping(anything),
    "response_format": FORMAT,
    "audio": nullable(mapping(anything)),
    "store": nullable(boolean),
    "moderation": anything,
    "stream": nullable(boolean),
    "stream_options": nullable(STREAM_OPTIONS),
    "stop": nullable(text_or(items(text(), 1, 4))),
    "logit_bias": nullable(mapping(integer(-100, 100), key=text(pattern="[0-9]+"))),
    "logprobs": nullable(boolean),
    "n": nullable(integer(1, 128)),
    "prediction": anything,
    "seed": nullable(integer()),
    "tools": items(TOOL),
    "tool_choice": text_or(mapping(anything)),
    "parallel_tool_calls": boolean,
    "function_call": text_or(mapping(anything)),
    "functions": items(FUNCTION, 1, 128),
}
CHAT = fields(CHAT_FIELDS, ["model", "messages"])
