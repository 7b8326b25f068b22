"""What a vendor shows of its things, in OpenAI's shapes, as values of this gateway, under the vendor's own ids.

Histories are kept as they are: no sentence is changed. Where a vendor leaves something out, or writes what no list of
ours could show, the nearest value that says nothing untrue stands.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from typing import Any

from tuneway import ids
from tuneway.blobs import Receiving
from tuneway.providers.vendor import Json, hyperparameters_of, method_of
from tuneway.types import (
    AUTO,
    Auto,
    Checkpoint,
    Desired,
    EventLevel,
    File,
    Hyperparameters,
    Job,
    JobError,
    JobSpec,
    JobStatus,
    Method,
    Model,
    NewEvent,
)

TUNED = "ft:"
"""How the names of tuned models begin; the parts behind it are base, organisation, suffix and a random one."""
_STEP = re.compile(r":ckpt-step-(\d+)$")


def job(raw: Json, *, project: str, provider: str, training_sha256: str, validation_sha256: str | None) -> Job:
    """A job that has ended. `planned_model` is its model's name, or one that it would have had."""
    model, status, method = str(raw.get("model") or ""), JobStatus(raw["status"]), method_of(raw)
    tuned = raw.get("fine_tuned_model") or None
    suffix = _suffix(raw, tuned)
    chosen = _hyperparameters(raw, method)
    numbers = (chosen.n_epochs, chosen.batch_size, chosen.learning_rate_multiplier, chosen.beta)
    metadata = {str(key): str(value) for key, value in (raw.get("metadata") or {}).items()}
    finished_at = _whole(raw.get("finished_at"))
    return Job(
        seq=0,
        id=str(raw["id"]),
        project_id=project,
        created_at=_when(raw.get("created_at")),
        spec=JobSpec(
            model=model,
            training_file=str(raw.get("training_file") or ""),
            provider=provider,
            method=method,
            hyperparameters=chosen,
            validation_file=raw.get("validation_file") or None,
            suffix=suffix,
            seed=_whole(raw.get("seed")) or 0,
            metadata=metadata or None,
            integrations=tuple(each for each in raw.get("integrations") or () if _is_shown(each)),
            reinforcement=_reinforcement(raw) if method is Method.REINFORCEMENT else None,
        ),
        status=status,
        training_sha256=training_sha256,
        validation_sha256=validation_sha256,
        planned_model=tuned or ids.tuned_model(model, project, suffix),
        placement=provider,
        desired=Desired.CANCEL if status is JobStatus.CANCELLED else Desired.RUN,
        resolved=None if AUTO in numbers else chosen,
        error=_error(raw) if status is JobStatus.FAILED else None,
        fine_tuned_model=tuned,
        finished_at=finished_at,
        trained_tokens=_whole(raw.get("trained_tokens")),
        result_files=tuple(raw.get("result_files") or ()),
        provider_status=str((raw.get("tuneway") or {}).get("provider_status") or status.value),
        provider_job_id=str(raw["id"]),
    )


def events(found: Sequence[Json]) -> list[NewEvent]:
    """Of a list that is newest first: oldest first, as they are stored."""
    return [_event(raw) for raw in reversed(found)]


def checkpoints(found: Sequence[Json], job: Job) -> list[Checkpoint]:
    """Those that are models, lowest step first."""
    named = [raw for raw in found if raw.get("fine_tuned_model_checkpoint")]
    made = [
        Checkpoint(
            seq=0,
            id=str(raw["id"]),
            job_id=job.id,
            created_at=_when(raw.get("created_at")),
            step_number=_whole(raw.get("step_number")) or 0,
            metrics={name: value for name, value in (raw.get("metrics") or {}).items() if _is_number(value)},
            model=str(raw["fine_tuned_model_checkpoint"]),
        )
        for raw in named
    ]
    return sorted(made, key=lambda checkpoint: checkpoint.step_number)


def models(job: Job, found: Sequence[Checkpoint]) -> list[Model]:
    """The models that a job has left: its checkpoints' and its own, which the last checkpoint may share."""
    made = [
        _model(job, checkpoint.model, checkpoint.step_number, checkpoint.created_at)
        for checkpoint in found
        if checkpoint.model != job.fine_tuned_model
    ]
    if job.fine_tuned_model is not None:
        made.append(_model(job, job.fine_tuned_model, None, job.finished_at or job.created_at))
    return made


def model(raw: Json, *, project: str, provider: str) -> Model:
    """A tuned model without its job; its base is known by its name."""
    name = str(raw["id"])
    step = _STEP.search(name)
    return Model(
        seq=0,
        id=name,
        project_id=project,
        created_at=_when(raw.get("created")),
        provider=provider,
        base=name.split(":")[1],
        job_id="",
        upstream_model=name,
        step_number=None if step is None else int(step[1]),
        data_sha256="",
        hyperparameters=Hyperparameters(),
        imported=True,
    )


def file(raw: Json, received: Receiving, *, project: str) -> File:
    """It is usable here whatever the vendor says of its state: the bytes are, and a job checks them."""
    return File(
        seq=0,
        id=str(raw["id"]),
        project_id=project,
        created_at=_when(raw.get("created_at")),
        filename=str(raw.get("filename") or raw["id"]),
        purpose=str(raw.get("purpose") or "fine-tune"),
        bytes=received.bytes,
        sha256=received.sha256,
        expires_at=_whole(raw.get("expires_at")),
    )


def _model(job: Job, name: str, step_number: int | None, created_at: int) -> Model:
    return Model(
        seq=0,
        id=name,
        project_id=job.project_id,
        created_at=created_at,
        provider=job.spec.provider,
        base=job.spec.model,
        job_id=job.id,
        upstream_model=name,
        step_number=step_number,
        data_sha256=job.training_sha256,
        hyperparameters=job.resolved or job.spec.hyperparameters,
        imported=True,
    )


def _event(raw: Json) -> NewEvent:
    level, data = raw.get("level"), raw.get("data")
    return NewEvent(
        key=f"upstream:{raw['id']}",
        message=str(raw.get("message") or ""),
        created_at=_when(raw.get("created_at")),
        level=EventLevel(level) if level in set(EventLevel) else EventLevel.INFO,
        type="metrics" if raw.get("type") == "metrics" else "message",
        data=data if isinstance(data, dict) else {},
    )


def _suffix(raw: Json, tuned: str | None) -> str | None:
    """As it was asked for, or as the model's name has it, `ft:{base}:{organisation}:{suffix}:{8}`."""
    parts = (tuned or "").split(":")
    in_name = parts[3] if (tuned or "").startswith(TUNED) and len(parts) >= 5 else None
    return raw.get("user_provided_suffix") or in_name or None


def _hyperparameters(raw: Json, method: Method) -> Hyperparameters:
    """Numbers as the vendor has chosen them; of a job that ended before, what was left to it is "auto" still."""
    found = hyperparameters_of(raw)
    return Hyperparameters(
        n_epochs=_count(found.get("n_epochs")),
        batch_size=_count(found.get("batch_size")),
        learning_rate_multiplier=_rate(found.get("learning_rate_multiplier")),
        beta=_rate(found.get("beta")) if method is Method.DPO else None,
    )


def _reinforcement(raw: Json) -> Json:
    """The method's object, which has a grader whenever it is shown."""
    found = (raw.get("method") or {}).get("reinforcement") or {}
    return {**found, "grader": found.get("grader") or {}}


def _is_shown(integration: Any) -> bool:
    return isinstance(integration, dict) and isinstance(integration.get("wandb"), dict)


def _error(raw: Json) -> JobError:
    error = raw.get("error") or {}
    message = str(error.get("message") or "The provider gave no reason.")
    return JobError(str(error.get("code") or "server_error"), message, error.get("param"))


def _count(value: Any) -> int | Auto:
    return int(value) if _is_number(value) else AUTO


def _rate(value: Any) -> float | Auto:
    return value if _is_number(value) else AUTO


def _whole(value: Any) -> int | None:
    return int(value) if _is_number(value) else None


def _when(value: Any) -> int:
    return _whole(value) or int(time.time())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
