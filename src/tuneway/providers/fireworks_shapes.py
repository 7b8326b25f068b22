"""Fireworks' shapes: the create of a job as it is sent, and answers as OpenAI's jobs, files and models.

A resource's id here is the last segment of its name, as a whole name has slashes; models alone keep theirs, since chat
asks for them by it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneway.errors import InvalidRequest
from tuneway.providers.asked import Asked, only_for
from tuneway.providers.shapes import as_object, unix_seconds
from tuneway.providers.vendor import Json, with_status
from tuneway.types import TERMINAL_STATUSES, JobStatus, Method

NAME = "fireworks"
SFT, DPO = "supervisedFineTuningJobs", "dpoJobs"
KINDS: Mapping[str, Method] = {SFT: Method.SUPERVISED, DPO: Method.DPO}
STATE = "JOB_STATE_"

STATUSES: Mapping[str, JobStatus] = {
    "CREATING": JobStatus.VALIDATING_FILES,
    "CREATING_INPUT_DATASET": JobStatus.VALIDATING_FILES,
    "VALIDATING": JobStatus.VALIDATING_FILES,
    "PENDING": JobStatus.QUEUED,
    "RE_QUEUEING": JobStatus.QUEUED,
    "IDLE": JobStatus.QUEUED,
    "RUNNING": JobStatus.RUNNING,
    "ROLLOUT": JobStatus.RUNNING,
    "EVALUATION": JobStatus.RUNNING,
    "POLICY_UPDATE": JobStatus.RUNNING,
    "WRITING_RESULTS": JobStatus.RUNNING,
    "CANCELLING": JobStatus.RUNNING,
    "PAUSED": JobStatus.PAUSED,
    "COMPLETED": JobStatus.SUCCEEDED,
    "EARLY_STOPPED": JobStatus.SUCCEEDED,
    "FAILED": JobStatus.FAILED,
    "EXPIRED": JobStatus.FAILED,
    "CANCELLED": JobStatus.CANCELLED,
    "DELETING": JobStatus.CANCELLED,
    "DELETING_CLEANING_UP": JobStatus.CANCELLED,
    "DELETED": JobStatus.CANCELLED,
    "ARCHIVED": JobStatus.CANCELLED,
}
"""Behind `JOB_STATE_`. A job that is deleted, or about to be, will make no model any more."""

PRECONDITION = "failed_precondition"
CODES: Mapping[str, str] = {
    "3": "invalid_argument",
    "5": "not_found",
    "6": "already_exists",
    "7": "permission_denied",
    "8": "resource_exhausted",
    "9": PRECONDITION,
    "12": "unimplemented",
    "13": "internal",
    "14": "unavailable",
    "16": "unauthenticated",
}
"""gRPC's numbers, by which its errors are called."""

FILE_STATUSES: Mapping[str, str] = {"UPLOADING": "uploaded", "READY": "processed"}

_TOP, _TRAINING, _SUPERVISED = "top", "training", "supervised"
OPTIONS: Mapping[str, str] = {
    **dict.fromkeys(("rendererHuggingFaceRepoId", "useReservation", "reservationTarget"), _TOP),
    **dict.fromkeys(("loraRank", "maxContextLength", "batchSize", "gradientAccumulationSteps"), _TRAINING),
    **dict.fromkeys(("learningRateWarmupSteps", "optimizerWeightDecay", "jinjaTemplate", "region"), _TRAINING),
    **dict.fromkeys(("samplerCheckpointSaveIntervalSteps", "outputModel"), _TRAINING),
    **dict.fromkeys(("earlyStop", "evalAutoCarveout", "isTurbo", "usePurpose"), _SUPERVISED),
    "baseModel": "",
}
"""Its own fields that a job may set, and the object of the request that they stand in; `baseModel` says only that the
model is a base. `batchSize` counts tokens, not examples.
"""

MOST_NAME = 63
MOST_BETA = 0.5
"""Not reached: "Must be > 0 and < 0.5" (fireworks-ai 1.2.30, dpo_config)."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MODEL = re.compile(r"accounts/[A-Za-z0-9-]+/models/[A-Za-z0-9][A-Za-z0-9._-]*")
_BASES = "accounts/fireworks/models/"
# Ids of datasets that came by the gateway end in their size, which Fireworks does not tell.
_SIZED = re.compile(r"(?:tuneway|file)-[0-9a-f]{24}-(\d{1,13})")


# ----------------------------------------------------------------------------------------------------- what is sent


@dataclass(frozen=True, slots=True)
class Create:
    """A create as it is sent: to the list `kind`, under the id `id`."""

    kind: str
    id: str
    body: Json


def create_of(asked: Asked, account: str) -> Create:
    """Under an id of the job's key, or of chance where there is none. Raises InvalidRequest that names a field."""
    kind = DPO if asked.method is Method.DPO else SFT
    digest = secrets.token_hex(12) if asked.key is None else digest_of(asked.key)
    own: dict[str, Json] = {place: {} for place in OPTIONS.values()}
    for name, value in asked.options.items():
        if OPTIONS[name] == _SUPERVISED and kind == DPO:
            raise only_for(NAME, f"tuneway.options.{name}", "'supervised'")
        own[OPTIONS[name]][name] = value
    sent: Json = {"dataset": f"accounts/{account}/datasets/{id_of(asked.training_file, 'datasets', account)}"}
    sent |= own[_TOP]
    training: Json = {_start(asked): model_name(asked.model), "epochs": asked.n_epochs}
    values: Json = {"batchSizeSamples": asked.batch_size, "learningRate": asked.learning_rate}
    if asked.suffix is not None:
        sent["displayName"] = _suffix(asked.suffix)
        values["outputModel"] = _output_model(asked.suffix, digest)
    training |= {name: value for name, value in values.items() if value is not None} | own[_TRAINING]
    if kind == DPO:
        if asked.validation_file is not None:
            raise only_for(NAME, "validation_file", "'supervised'")
        return Create(kind, chosen_id(kind, digest), {**sent, "lossConfig": _loss(asked), "trainingConfig": training})
    if asked.validation_file is not None:
        validation = id_of(asked.validation_file, "datasets", account)
        sent["evaluationDataset"] = f"accounts/{account}/datasets/{validation}"
    return Create(kind, chosen_id(kind, digest), {**sent, **training, **own[_SUPERVISED]})


def digest_of(text: str) -> str:
    """Stands in ids for what they must be unique for; small letters and digits, as Fireworks wants them."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def chosen_id(kind: str, digest: str) -> str:
    return f"tuneway-{'dpo' if kind == DPO else 'sft'}-{digest}"


def id_of(value: str, kind: str, account: str) -> str:
    """The id in what may be a whole name. Raises InvalidRequest for what is of another kind or account."""
    own = value.removeprefix(f"accounts/{account}/{kind}/")
    if not _ID.fullmatch(own):
        raise InvalidRequest(f"{value[:200]!r} is no id of {kind} in the account {account}.")
    return own


def model_name(name: str) -> str:
    """The whole name of a model; one without an account is of Fireworks' own library."""
    whole = name if "/" in name else _BASES + name
    if not _MODEL.fullmatch(whole):
        raise InvalidRequest(
            f"{name[:200]!r} is no model of Fireworks: they are called accounts/ACCOUNT/models/MODEL, those of its "
            "library also by MODEL alone.",
            param="model",
            code="model_not_found",
        )
    return whole


def _start(asked: Asked) -> str:
    """A model outside of Fireworks' library is one that was tuned, unless the request says that it is a base."""
    base = asked.options.get("baseModel")
    if base is not None and base != asked.model:
        raise InvalidRequest(
            "'baseModel' and 'model' are one thing at Fireworks: give both the same value to say that it is a base.",
            param="tuneway.options.baseModel",
            code="invalid_value",
        )
    return "baseModel" if base is not None or model_name(asked.model).startswith(_BASES) else "warmStartFrom"


def _suffix(suffix: str) -> str:
    if len(suffix) > MOST_NAME:
        raise InvalidRequest(
            f"Fireworks takes a 'suffix' of at most {MOST_NAME} characters.", param="suffix", code="invalid_value"
        )
    return suffix


def _output_model(suffix: str, digest: str) -> str:
    """The suffix as far as an id can have it, and what makes the name no other job's."""
    plain = re.sub("[^a-z0-9]+", "-", suffix.lower()).strip("-")
    readable = plain if plain[:1].isalpha() else f"m-{plain}"
    return f"{readable[: MOST_NAME - len(digest) - 1].strip('-')}-{digest}"


def _loss(asked: Asked) -> Json:
    """With its method named: of one that is not, the SDK says in one place DPO and in another GRPO."""
    if asked.beta is None:
        return {"method": "DPO"}
    if asked.beta >= MOST_BETA:
        raise InvalidRequest(
            f"Fireworks takes a 'beta' below {MOST_BETA}.",
            param="method.dpo.hyperparameters.beta",
            code="invalid_value",
        )
    return {"method": "DPO", "dpo": {"beta": asked.beta}}


# ------------------------------------------------------------------------------------------------- what is answered


def last(name: Any) -> str | None:
    """The id in a resource's name; None for no name."""
    return str(name).rpartition("/")[2] if name else None


def shown_job(raw: Any, account: str) -> Json:
    job = as_object(raw)
    kind = str(job.get("name")).split("/")[-2:][0]
    method = KINDS.get(kind, Method.SUPERVISED).value
    training = as_object(job.get("trainingConfig") or {}) if kind == DPO else job
    state = str(job.get("state"))
    status = STATUSES.get(state.removeprefix(STATE))
    loss = as_object(job.get("lossConfig") or {})
    numbers: Json = {
        "n_epochs": training.get("epochs"),
        "batch_size": training.get("batchSizeSamples") or "auto",
        "beta": as_object(loss.get("dpo") or {}).get("beta") if kind == DPO else None,
    }
    numbers = {name: value for name, value in numbers.items() if value is not None}
    percent = as_object(job.get("jobProgress") or {}).get("percent")
    extension = {
        "name": job.get("name"),
        "learning_rate": training.get("learningRate"),
        "lora_rank": training.get("loraRank"),
        "percent": percent,
        "estimated_cost_usd": _dollars(job.get("estimatedCost")),
    }
    shown: Json = {
        "id": last(job.get("name")),
        "object": "fine_tuning.job",
        "created_at": unix_seconds(job.get("createTime")),
        "model": training.get("baseModel") or training.get("warmStartFrom"),
        "fine_tuned_model": None,
        "finished_at": unix_seconds(job.get("completedTime")) if status in TERMINAL_STATUSES else None,
        "estimated_finish": None,
        "organization_id": account,
        "training_file": last(job.get("dataset")),
        # What Fireworks carved out of the training file by itself was not asked for as a file.
        "validation_file": None if job.get("evalAutoCarveout") else last(job.get("evaluationDataset")),
        "result_files": [],
        "trained_tokens": None,
        "hyperparameters": numbers,
        "method": {"type": method, method: {"hyperparameters": numbers}},
        "metadata": None,
        "user_provided_suffix": job.get("displayName") or None,
        "error": None,
        "tuneway": {name: value for name, value in extension.items() if value is not None},
    }
    if status is JobStatus.SUCCEEDED:
        output = training.get("outputModel") or shown["id"]
        shown["fine_tuned_model"] = output if "/" in output else f"accounts/{account}/models/{output}"
    if status is JobStatus.FAILED:
        said = as_object(job.get("status") or {})
        message = said.get("message") or f"Fireworks says: {state.removeprefix(STATE)}"
        shown["error"] = {"code": str(said.get("code") or "server_error"), "message": message, "param": None}
    return with_status(shown, status, state)


def _dollars(cost: Any) -> float | None:
    """Of google.type.Money, whose units are a string."""
    if not isinstance(cost, dict) or cost.get("currencyCode") != "USD":
        return None
    return int(cost.get("units") or 0) + int(cost.get("nanos") or 0) / 1e9


def shown_file(raw: Any) -> Json:
    """A dataset as a file. Its size is null where it was not sent by the gateway."""
    dataset = as_object(raw)
    file_id, state = str(last(dataset.get("name"))), str(dataset.get("state"))
    told = as_object(dataset.get("status") or {})
    sized = _SIZED.fullmatch(file_id)
    shown: Json = {
        "id": file_id,
        "object": "file",
        "bytes": int(sized[1]) if sized else None,
        "created_at": unix_seconds(dataset.get("createTime")),
        "filename": dataset.get("displayName") or f"{file_id}.jsonl",
        "purpose": "fine-tune",
        "status": FILE_STATUSES.get(state, "uploaded"),
        "tuneway": {"provider_status": state, "name": dataset.get("name"), "rows": dataset.get("exampleCount")},
    }
    if shown["status"] != "processed" and told.get("code") not in (None, "", "OK"):
        shown |= {"status": "error", "status_details": told.get("message") or f"Fireworks says: {told['code']}"}
    return shown


def shown_model(raw: Any) -> Json:
    model = as_object(raw)
    name = str(model.get("name"))
    owner = name.split("/")[1] if name.count("/") == 3 else NAME
    created = unix_seconds(model.get("createTime")) or 0
    return {"id": name, "object": "model", "created": created, "owned_by": owner}
