"""The wire models: what requests may hold and what responses do hold.

They convert to and from `types` by named methods; their names are those of OpenAI's API description. Requests are
strict: an unknown field, or a value of another type, is refused, never dropped or converted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from tuneway import types
from tuneway.api.dialect import Dialect
from tuneway.api.errors import explain
from tuneway.errors import InvalidRequest
from tuneway.types import AUTO, Auto, Desired, Hyperparameters, JobRequest, JobStatus, Method

# ------------------------------------------------------------------------------------------------------- requests


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _auto_or_number(value: Any) -> str:
    return "auto" if value == AUTO else "number"


# A discriminated union, so that an error speaks of one of the two only.
_auto = Annotated[Auto, Tag("auto")]
_either = Discriminator(_auto_or_number)

Text = Annotated[str, Field(min_length=1)]
NEpochs = Annotated[_auto | Annotated[int, Field(ge=1, le=50), Tag("number")], _either]
BatchSize = Annotated[_auto | Annotated[int, Field(ge=1, le=256), Tag("number")], _either]
LearningRateMultiplier = Annotated[_auto | Annotated[float, Field(gt=0), Tag("number")], _either]


class SupervisedHyperparameters(Request):
    n_epochs: NEpochs = AUTO
    batch_size: BatchSize = AUTO
    learning_rate_multiplier: LearningRateMultiplier = AUTO


class SupervisedMethod(Request):
    hyperparameters: SupervisedHyperparameters | None = None


class FineTuneMethod(Request):
    type: Literal["supervised"]
    supervised: SupervisedMethod | None = None


class TunewayOptions(Request):
    """Extensions of the request."""

    provider: Text | None = None


class CreateFineTuningJobRequest(Request):
    model: Text
    training_file: Text
    validation_file: Text | None = None
    suffix: Annotated[str, Field(min_length=1, pattern="^[A-Za-z0-9_-]+$")] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None
    hyperparameters: Annotated[SupervisedHyperparameters | None, Field(json_schema_extra={"deprecated": True})] = None
    method: FineTuneMethod | None = None
    integrations: list[Any] | None = None
    tuneway: TunewayOptions | None = None

    @classmethod
    def parse(cls, body: Mapping[str, Any], dialect: Dialect) -> CreateFineTuningJobRequest:
        """Raises InvalidRequest that names the field."""
        return parse(cls, body if dialect.auto == AUTO else _spell_auto(body, dialect.auto))

    def to_domain(self, dialect: Dialect) -> JobRequest:
        """Raises InvalidRequest for what only the whole request, or the dialect, can tell."""
        if self.suffix is not None and len(self.suffix) > dialect.suffix_limit:
            raise InvalidRequest(
                f"Invalid 'suffix': string too long. Expected a string with maximum length {dialect.suffix_limit}, "
                f"but got a string with length {len(self.suffix)} instead.",
                param="suffix",
                code="string_above_max_length",
            )
        if self.integrations:
            raise InvalidRequest(
                "This gateway has no integrations. Remove 'integrations' and follow the job by its events.",
                param="integrations",
                code="unsupported_parameter",
            )
        return JobRequest(
            model=self.model,
            training_file=self.training_file,
            validation_file=self.validation_file,
            suffix=self.suffix,
            seed=self.seed,
            metadata=self.metadata,
            method=Method.SUPERVISED,
            hyperparameters=self._hyperparameters(),
            provider=None if self.tuneway is None else self.tuneway.provider,
        )

    def _hyperparameters(self) -> Hyperparameters:
        """Those of the two places together; a value that stands in both must be the same."""
        supervised = None if self.method is None else self.method.supervised
        old, new = (
            {} if given is None else given.model_dump(exclude_unset=True)
            for given in (self.hyperparameters, None if supervised is None else supervised.hyperparameters)
        )
        for name in old.keys() & new.keys():
            if old[name] != new[name]:
                raise InvalidRequest(
                    f"'hyperparameters.{name}' is {old[name]} and 'method.supervised.hyperparameters.{name}' is "
                    f"{new[name]}. Give it once; the first form is deprecated.",
                    param=f"hyperparameters.{name}",
                    code="invalid_value",
                )
        return Hyperparameters(**{**old, **new})


def body(model: type[Request]) -> dict[str, Any]:
    """What an operation that reads `model` by itself adds to its OpenAPI description; see `definitions`."""
    reference = {"$ref": _REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}


def definitions() -> dict[str, Any]:
    """The JSON schemas of the requests that operations read by themselves, by name."""
    schema = CreateFineTuningJobRequest.model_json_schema(ref_template=_REFERENCE)
    return {**schema.pop("$defs"), CreateFineTuningJobRequest.__name__: schema}


_REFERENCE = "#/components/schemas/{model}"

M = TypeVar("M", bound=Request)


def parse(model: type[M], body: Mapping[str, Any]) -> M:
    """`body` as `model`. Raises InvalidRequest that names the first field at fault."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise explain(error.errors(include_url=False)) from None


def _spell_auto(body: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A copy in which hyperparameters that are `number` are "auto"; what is not of the right form stays as it is."""
    spelled = copy.deepcopy(dict(body))
    for path in (("hyperparameters",), ("method", "supervised", "hyperparameters")):
        found: Any = spelled
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, dict):
            found.update({name: AUTO for name, value in found.items() if type(value) is int and value == number})
    return spelled


# ------------------------------------------------------------------------------------------------------ responses


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorBody


class JobHyperparameters(BaseModel):
    """As asked until the job's files are checked, then as resolved."""

    n_epochs: int | Auto
    batch_size: int | Auto
    learning_rate_multiplier: float | Auto

    @classmethod
    def of(cls, job: types.Job, dialect: Dialect) -> JobHyperparameters:
        shown = job.resolved or job.spec.hyperparameters
        return cls(
            n_epochs=dialect.auto if shown.n_epochs == AUTO else shown.n_epochs,
            batch_size=dialect.auto if shown.batch_size == AUTO else shown.batch_size,
            learning_rate_multiplier=(
                dialect.auto if shown.learning_rate_multiplier == AUTO else shown.learning_rate_multiplier
            ),
        )


class JobSupervised(BaseModel):
    hyperparameters: JobHyperparameters


class JobMethod(BaseModel):
    type: str
    supervised: JobSupervised


class JobErrorBody(BaseModel):
    code: str
    message: str
    param: str | None


class JobProgress(BaseModel):
    step: int
    total_steps: int
    tokens_per_second: float | None
    seconds_left: float | None
    train_loss: float | None
    valid_loss: float | None


class JobExtension(BaseModel):
    """What the gateway knows beyond OpenAI's fields. `queue_position` is 1 for the job that starts next."""

    state: str
    provider: str
    provider_status: str | None
    progress: JobProgress | None
    queue_position: int | None


class FineTuningJob(BaseModel):
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    id: str
    model: str
    created_at: int
    finished_at: int | None
    fine_tuned_model: str | None
    organization_id: str
    result_files: list[str]
    status: str
    validation_file: str | None
    training_file: str
    hyperparameters: JobHyperparameters
    trained_tokens: int | None
    error: JobErrorBody | None
    user_provided_suffix: str | None
    seed: int
    estimated_finish: int | None
    integrations: list[Any]
    metadata: dict[str, str] | None
    usage_metrics: None = None
    shared_with_openai: Literal[False] = False
    eval_id: None = None
    method: JobMethod
    tuneway: JobExtension

    @classmethod
    def of(cls, job: types.Job, dialect: Dialect, queue_position: int | None) -> FineTuningJob:
        """The wire form. A job without a failure has `error` null, a cancelled one no `finished_at`."""
        hyperparameters = JobHyperparameters.of(job, dialect)
        ended = job.status in types.TERMINAL_STATUSES
        error = job.error if job.status is JobStatus.FAILED else None
        return cls(
            id=job.id,
            model=job.spec.model,
            created_at=job.created_at,
            finished_at=None if job.status is JobStatus.CANCELLED else job.finished_at,
            fine_tuned_model=job.fine_tuned_model,
            organization_id=organization(job.project_id),
            result_files=list(job.result_files),
            status=dialect.statuses[job.status],
            validation_file=job.spec.validation_file,
            training_file=job.spec.training_file,
            hyperparameters=hyperparameters,
            trained_tokens=job.trained_tokens,
            error=None if error is None else JobErrorBody(code=error.code, message=error.message, param=error.param),
            user_provided_suffix=job.spec.suffix,
            seed=job.spec.seed,
            estimated_finish=job.estimated_finish,
            integrations=[],
            metadata=None if job.spec.metadata is None else dict(job.spec.metadata),
            method=JobMethod(type=job.spec.method.value, supervised=JobSupervised(hyperparameters=hyperparameters)),
            tuneway=JobExtension(
                state="cancelling" if job.desired is Desired.CANCEL and not ended else job.status.value,
                provider=job.spec.provider,
                provider_status=job.provider_status,
                progress=None if job.progress is None else _progress(job.progress),
                queue_position=queue_position,
            ),
        )


class FineTuningJobEvent(BaseModel):
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    id: str
    created_at: int
    level: str
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]

    @classmethod
    def of(cls, event: types.JobEvent, dialect: Dialect) -> FineTuningJobEvent:
        return cls(
            id=event.id,
            created_at=event.created_at,
            level=dialect.levels[event.level],
            message=event.message,
            type=event.type,
            data={name: _finite(value) for name, value in event.data.items()},
        )


class FineTuningJobCheckpoint(BaseModel):
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    id: str
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, Any]
    step_number: int

    @classmethod
    def of(cls, checkpoint: types.Checkpoint) -> FineTuningJobCheckpoint:
        """The wire form; a metric that is not a number is left out, as OpenAI's schema has no null there."""
        finite = {name: value for name, value in checkpoint.metrics.items() if math.isfinite(value)}
        return cls(
            id=checkpoint.id,
            created_at=checkpoint.created_at,
            fine_tuned_model_checkpoint=checkpoint.model,
            fine_tuning_job_id=checkpoint.job_id,
            metrics={"type": "supervised", "step": checkpoint.step_number, **finite},
            step_number=checkpoint.step_number,
        )


class OpenAIFile(BaseModel):
    object: Literal["file"] = "file"
    id: str
    purpose: str
    filename: str
    bytes: int
    created_at: int
    expires_at: int
    status: Literal["processed"] = "processed"

    @classmethod
    def of(cls, file: types.File) -> OpenAIFile:
        """The wire form, without `expires_at` for a file that stays."""
        fields: dict[str, Any] = {
            "object": "file",
            "id": file.id,
            "purpose": file.purpose,
            "filename": file.filename,
            "bytes": file.bytes,
            "created_at": file.created_at,
            "status": "processed",
        }
        if file.expires_at is not None:
            fields["expires_at"] = file.expires_at
        return cls.model_construct(**fields)


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    tuneway: dict[str, Any]

    @classmethod
    def of(cls, model: types.BaseModel | types.Model) -> Model:
        if isinstance(model, types.BaseModel):
            return cls(
                id=model.name,
                created=model.created,
                owned_by="system",
                tuneway={"provider": model.provider, "description": model.description},
            )
        return cls(
            id=model.id,
            created=model.created_at,
            owned_by=organization(model.project_id),
            tuneway={
                "provider": model.provider,
                "base": model.base,
                "job": model.job_id,
                "step_number": model.step_number,
            },
        )


class JobList(BaseModel):
    object: Literal["list"]
    data: list[FineTuningJob]
    has_more: bool


class EventList(BaseModel):
    object: Literal["list"]
    data: list[FineTuningJobEvent]
    has_more: bool


class CheckpointList(BaseModel):
    object: Literal["list"]
    data: list[FineTuningJobCheckpoint]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileList(BaseModel):
    object: Literal["list"]
    data: list[OpenAIFile]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


class Deleted(BaseModel):
    id: str
    object: Literal["file", "model"]
    deleted: Literal[True] = True


def organization(project: str) -> str:
    return f"org-{project}"


def _progress(progress: types.Progress) -> JobProgress:
    return JobProgress(
        step=progress.step,
        total_steps=progress.total_steps,
        tokens_per_second=_finite(progress.tokens_per_second),
        seconds_left=_finite(progress.seconds_left),
        train_loss=_finite(progress.train_loss),
        valid_loss=_finite(progress.valid_loss),
    )


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
