"""Together's shapes: the create of a job as it is sent, and answers as OpenAI's jobs, files, events and checkpoints."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from tuneway.errors import InvalidRequest
from tuneway.providers.asked import PURPOSE, Asked, only_for
from tuneway.providers.shapes import as_object, moment, unix_seconds, unsupported
from tuneway.providers.vendor import Json, with_status
from tuneway.types import TERMINAL_STATUSES, JobStatus, Method

NAME = "together"

STATUSES: Mapping[str, JobStatus] = {
    "pending": JobStatus.QUEUED,
    "queued": JobStatus.QUEUED,
    "running": JobStatus.RUNNING,
    "compressing": JobStatus.RUNNING,
    "uploading": JobStatus.RUNNING,
    "cancel_requested": JobStatus.RUNNING,
    "cancelled": JobStatus.CANCELLED,
    "error": JobStatus.FAILED,
    "user_error": JobStatus.FAILED,
    "completed": JobStatus.SUCCEEDED,
}
"""`user_error` stands in answers and in no list of the SDK's."""

FILE_STATUSES: Mapping[str, str] = {
    "PENDING": "uploaded",
    "QUEUED": "uploaded",
    "RUNNING": "uploaded",
    "COMPLETED": "processed",
    "FAILED": "error",
    "INVALID_FORMAT": "error",
}

_LEVELS: Mapping[str, str] = {
    "warning": "warn",
    "legacy_iwarning": "warn",
    "error": "error",
    "legacy_ierror": "error",
}
METHODS: Mapping[str, Method] = {"sft": Method.SUPERVISED, "dpo": Method.DPO}

_TOP, _SFT, _DPO, _LORA = "top", "sft", "dpo", "lora"
OPTIONS: Mapping[str, str] = {
    **dict.fromkeys(("n_evals", "n_checkpoints", "lr_scheduler", "warmup_ratio", "max_grad_norm"), _TOP),
    **dict.fromkeys(("weight_decay", "packing", "max_seq_length", "gradient_accumulation_steps"), _TOP),
    **dict.fromkeys(("early_stopping_enabled", "early_stopping_patience", "early_stopping_min_delta"), _TOP),
    **dict.fromkeys(("early_stopping_warmup_evals", "multimodal_params"), _TOP),
    "train_on_inputs": _SFT,
    **dict.fromkeys(("dpo_normalize_logratios_by_length", "dpo_reference_free", "rpo_alpha", "simpo_gamma"), _DPO),
    **dict.fromkeys(("lora_r", "lora_alpha", "lora_dropout", "lora_trainable_modules"), _LORA),
    "training_type": "",
    "from_checkpoint": "",
}
"""Its own fields that a job may set, and the object of the request that they stand in; the last two are of none."""

MOST_SUFFIX = 40
MOST_EVALS = 100
FILE_TYPES: Mapping[str, str] = {".jsonl": "jsonl", ".parquet": "parquet"}

# What goes as `from_checkpoint`: a job's id, or a model's name as Together ends it, perhaps with a step. Of the eight
# digits one must be a letter: bases are dated, too.
_CHECKPOINT = re.compile(r"ft-[0-9a-f-]+(:\d+)?|[^/:]+/[^/:]+-(?=\d*[a-f])[0-9a-f]{8}(:\d+)?")

CSV_HEAD = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"


# ----------------------------------------------------------------------------------------------------- what is sent


def create_of(asked: Asked, lora: Mapping[str, int]) -> Json:
    """`lora` are rank and alpha where the job says nothing of it. Raises InvalidRequest that names a field."""
    if asked.suffix is not None and len(asked.suffix) > MOST_SUFFIX:
        raise InvalidRequest(
            f"Together takes a 'suffix' of at most {MOST_SUFFIX} characters.", param="suffix", code="invalid_value"
        )
    own: dict[str, Json] = {place: {} for place in OPTIONS.values()}
    for name, value in asked.options.items():
        own[OPTIONS[name]][name] = value
    goes_on = _goes_on(asked)
    sent: Json = {"training_file": asked.training_file, "n_epochs": asked.n_epochs}
    sent["from_checkpoint" if goes_on else "model"] = asked.model
    if asked.validation_file is not None:
        # Without a number of evaluations Together makes none, and the file would be there for nothing.
        sent |= {"validation_file": asked.validation_file, "n_evals": min(asked.n_epochs, MOST_EVALS)}
    values: Json = {"suffix": asked.suffix, "random_seed": asked.seed, "batch_size": asked.batch_size}
    values["learning_rate"] = asked.learning_rate
    sent |= {name: value for name, value in values.items() if value is not None} | own[_TOP]
    sent["training_method"] = _training_method(asked, own)
    training_type = _training_type(asked, own[_LORA], {} if goes_on else lora)
    return sent if training_type is None else {**sent, "training_type": training_type}


def _goes_on(asked: Asked) -> bool:
    """Whether the model is one that was tuned there. Its name alone need not tell; the option does."""
    named = asked.options.get("from_checkpoint")
    if named is not None and named != asked.model:
        raise InvalidRequest(
            "At Together a job begins with 'model' or with 'from_checkpoint', never with both: give both the same "
            "value to say that it is a checkpoint.",
            param="tuneway.options.from_checkpoint",
            code="invalid_value",
        )
    return named is not None or _CHECKPOINT.fullmatch(asked.model) is not None


def _training_method(asked: Asked, own: Mapping[str, Json]) -> Json:
    method, other = (_DPO, _SFT) if asked.method is Method.DPO else (_SFT, _DPO)
    for name in own[other]:
        raise only_for(NAME, f"tuneway.options.{name}", f"'{METHODS[other].value}'")
    if method == _SFT:
        return {"method": method, "train_on_inputs": "auto", **own[_SFT]}
    return {"method": method, **({} if asked.beta is None else {"dpo_beta": asked.beta}), **own[_DPO]}


def _training_type(asked: Asked, lora: Json, default: Mapping[str, int]) -> Json | None:
    """None leaves it to Together: LoRA, or what the checkpoint was trained by."""
    kind = asked.options.get("training_type")
    if kind not in (None, "Full", "Lora"):
        raise unsupported(NAME, "tuneway.options.training_type", str(kind)[:64])
    if kind == "Full":
        for name in lora:
            raise only_for(NAME, f"tuneway.options.{name}", "LoRA")
        return {"type": kind}
    values = lora if "lora_r" in lora else {**default, **lora}
    if not values and kind is None:
        return None
    if not isinstance(values.get("lora_r"), int):
        raise InvalidRequest(
            "Together needs 'lora_r', a whole number, wherever anything is said of LoRA.",
            param="tuneway.options.lora_r",
            code="missing_required_parameter",
        )
    # Twice the rank is what its SDK takes (together 3.1.1, lib/resources/fine_tuning.py).
    return {"type": "Lora", "lora_alpha": values["lora_r"] * 2, **values}


def fields_of(filename: str) -> Mapping[str, str]:
    """Raises InvalidRequest for a name that says of no kind which Together trains on."""
    kind = FILE_TYPES.get("." + filename.rpartition(".")[2].lower())
    if kind is None or "." not in filename:
        raise InvalidRequest(
            f"Together takes files whose names end in {' or '.join(FILE_TYPES)}.", param="file", code="invalid_value"
        )
    return {"purpose": PURPOSE, "file_name": filename, "file_type": kind}


# ------------------------------------------------------------------------------------------------- what is answered


def shown_job(raw: Json) -> Json:
    """A job in the seam's form. Suffix and seed are left out where Together does not show them: null would say none."""
    method = as_object(raw.get("training_method") or {"method": "sft"})
    trained_by = str(method.get("method"))
    kind = METHODS[trained_by].value if trained_by in METHODS else trained_by
    word = str(raw.get("status"))
    status = STATUSES.get(word)
    batch = raw.get("batch_size")
    numbers: Json = {"n_epochs": raw.get("n_epochs"), "batch_size": batch if isinstance(batch, int) else "auto"}
    if kind == Method.DPO and method.get("dpo_beta") is not None:
        numbers["beta"] = method["dpo_beta"]
    numbers = {name: value for name, value in numbers.items() if value is not None}
    done = status is JobStatus.SUCCEEDED
    shown: Json = {
        "id": raw.get("id"),
        "object": "fine_tuning.job",
        "created_at": unix_seconds(raw.get("created_at")),
        "model": raw.get("from_checkpoint") or raw.get("model"),
        "fine_tuned_model": (raw.get("model_output_name") or raw.get("model_object_name") or None) if done else None,
        "finished_at": unix_seconds(raw.get("updated_at")) if status in TERMINAL_STATUSES else None,
        "estimated_finish": None,
        "organization_id": "",
        "training_file": raw.get("training_file"),
        "validation_file": raw.get("validation_file") or None,
        "result_files": [],
        "trained_tokens": (raw.get("token_count") or None) if done else None,
        "hyperparameters": numbers,
        "method": {"type": kind, kind: {"hyperparameters": numbers}},
        "metadata": None,
        "error": _failure(raw, word) if status is JobStatus.FAILED else None,
        "tuneway": {"learning_rate": raw.get("learning_rate"), "training_type": raw.get("training_type")},
    }
    if "suffix" in raw:
        shown["user_provided_suffix"] = raw["suffix"] or None
    if raw.get("random_seed") is not None:
        shown["seed"] = raw["random_seed"]
    return with_status(shown, status, word)


def _failure(raw: Json, word: str) -> Json:
    """A job has no error of its own; its last event says what went wrong."""
    events = sorted(raw.get("events") or [], key=lambda event: moment(event.get("created_at")))
    said = [event.get("message") for event in events if event.get("type") in ("job_error", "billing_limit")]
    return {"code": word, "message": said[-1] if said else "Together gave no reason.", "param": None}


def shown_file(raw: Any) -> Json:
    file = as_object(raw)
    word, report = file.get("processing_status"), file.get("validation_report") or {}
    if not word:  # of what needs no check, and in older answers, which say `Processed`
        word = "COMPLETED" if file.get("Processed", True) else "PENDING"
    status = FILE_STATUSES.get(word, "uploaded")
    shown: Json = {
        "id": file.get("id"),
        "object": "file",
        "bytes": file.get("bytes"),
        "created_at": unix_seconds(file.get("created_at")),
        "filename": file.get("filename"),
        "purpose": file.get("purpose"),
        "status": status,
        "tuneway": {"provider_status": word, "lines": file.get("LineCount") or report.get("nlines")},
    }
    if status == "error":
        shown["status_details"] = report.get("error") or f"Together says: {word}"
    return shown


def shown_event(raw: Any) -> Json:
    event = as_object(raw)
    known = {name: event.get(name) for name in ("created_at", "type", "message", "step", "hash")}
    digest = hashlib.sha256(repr(sorted(known.items())).encode()).hexdigest()
    beyond = ("created_at", "level", "message", "object")
    return {
        "id": f"ftevent-{digest[:24]}",
        "object": "fine_tuning.job.event",
        "created_at": unix_seconds(event.get("created_at")),
        "level": _LEVELS.get(str(event.get("level")), "info"),
        "message": str(event.get("message") or event.get("type")),
        "type": "message",
        "data": {name: value for name, value in event.items() if value and name not in beyond},
    }


def shown_checkpoint(raw: Any, job_id: str, tuned: str | None) -> Json:
    checkpoint = as_object(raw)
    step = int(checkpoint.get("step") or 0)
    return {
        "id": f"ftckpt-{job_id}-{step}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": unix_seconds(checkpoint.get("created_at")),
        "fine_tuned_model_checkpoint": tuned if tuned and is_final(checkpoint) else f"{job_id}:{step}",
        "fine_tuning_job_id": job_id,
        "step_number": step,
        "metrics": {},
    }


def is_final(checkpoint: Json) -> bool:
    return str(checkpoint.get("checkpoint_type")).lower().startswith("final")


def shown_model(model: Json) -> Json:
    owner = str(model.get("organization") or NAME)
    return {"id": model.get("id"), "object": "model", "created": int(model.get("created") or 0), "owned_by": owner}


def metrics_csv(metrics: list[Json]) -> bytes:
    """OpenAI's result file out of Together's metrics, where one object tells of training or of an evaluation."""
    steps: dict[int, Json] = {}
    for each in metrics:
        step = each.get("train/global_step", each.get("eval/global_step"))
        if isinstance(step, int | float):
            steps.setdefault(int(step), {}).update(each)
    rows = [(step, each.get("train/loss"), None, each.get("eval/loss"), None) for step, each in sorted(steps.items())]
    lines = [",".join("" if cell is None else str(cell) for cell in row) for row in rows]
    return "\n".join([CSV_HEAD, *lines, ""]).encode()
