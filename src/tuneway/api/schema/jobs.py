"""Fine-tuning jobs, their events and checkpoints on the wire."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, SerializerFunctionWrapHandler, Tag, model_serializer

from tuneway import types
from tuneway.api.dialect import Dialect
from tuneway.api.schema.base import Metadata, Request, Text, absent, finite, organization, parse
from tuneway.errors import InvalidRequest
from tuneway.types import AUTO, Auto, Desired, Hyperparameters, JobRequest, JobStatus, Method

MAX_OPTION_LENGTH = 1000
"""Of an option's value, as JSON."""

# ------------------------------------------------------------------------------------------------------- requests


def _auto_or_number(value: Any) -> str:
    return "auto" if value == AUTO else "number"


# A discriminated union, so that an error speaks of one of the two only.
_auto = Annotated[Auto, Tag("auto")]
_either = Discriminator(_auto_or_number)

NEpochs = Annotated[_auto | Annotated[int, Field(ge=1, le=50), Tag("number")], _either]
BatchSize = Annotated[_auto | Annotated[int, Field(ge=1, le=256), Tag("number")], _either]
LearningRateMultiplier = Annotated[_auto | Annotated[float, Field(gt=0), Tag("number")], _either]


class SupervisedHyperparameters(Request):
    n_epochs: NEpochs = AUTO
    batch_size: BatchSize = AUTO
    learning_rate_multiplier: LearningRateMultiplier = AUTO


class SupervisedMethod(Request):
    hyperparameters: SupervisedHyperparameters = SupervisedHyperparameters()


class DPOHyperparameters(SupervisedHyperparameters):
    beta: Annotated[_auto | Annotated[float, Field(gt=0, le=2), Tag("number")], _either] = AUTO


class DPOMethod(Request):
    hyperparameters: DPOHyperparameters = DPOHyperparameters()


class ReinforcementHyperparameters(SupervisedHyperparameters):
    reasoning_effort: Literal["default", "low", "medium", "high"] = "default"
    compute_multiplier: Annotated[_auto | Annotated[float, Field(gt=1e-5, le=10), Tag("number")], _either] = AUTO
    eval_interval: Annotated[_auto | Annotated[int, Field(ge=1), Tag("number")], _either] = AUTO
    eval_samples: Annotated[_auto | Annotated[int, Field(ge=1), Tag("number")], _either] = AUTO


class ReinforcementMethod(Request):
    """`response_format` stands in OpenAI's guide only; its API description has the other two."""

    grader: dict[str, Any]
    response_format: dict[str, Any] = absent()
    hyperparameters: ReinforcementHyperparameters = ReinforcementHyperparameters()


class FineTuneMethod(Request):
    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: SupervisedMethod = absent()
    dpo: DPOMethod = absent()
    reinforcement: ReinforcementMethod = absent()


class WandbIntegration(Request):
    project: Text
    name: str | None = None
    entity: str | None = None
    tags: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=50)] = absent()


class FineTuningIntegration(Request):
    type: Literal["wandb"]
    wandb: WandbIntegration


class TunewayOptions(Request):
    """Extensions of the request.

    `learning_rate` is absolute, for providers that know no multiplier; `options` are a provider's own fields, under its
    own names, each a short JSON value. A provider that does not take one refuses it.
    """

    provider: Text = absent()
    learning_rate: Annotated[float, Field(gt=0)] = absent()
    options: Annotated[dict[Annotated[str, Field(min_length=1, max_length=64)], Any], Field(max_length=32)] = absent()


class CreateFineTuningJobRequest(Request):
    model: Text
    training_file: Text
    validation_file: Text | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64, pattern="^[A-Za-z0-9_-]+$")] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: Metadata | None = None
    hyperparameters: Annotated[SupervisedHyperparameters, Field(json_schema_extra={"deprecated": True})] = (
        SupervisedHyperparameters()
    )
    method: FineTuneMethod = FineTuneMethod(type="supervised")
    integrations: Annotated[list[FineTuningIntegration], Field(max_length=5)] | None = None
    tuneway: TunewayOptions = TunewayOptions()

    @classmethod
    def parse(cls, body: Mapping[str, Any], dialect: Dialect) -> CreateFineTuningJobRequest:
        """Raises InvalidRequest that names the field."""
        return parse(cls, body if dialect.auto == AUTO else spell_auto(body, dialect.auto))

    def to_domain(self, dialect: Dialect) -> JobRequest:
        """Raises InvalidRequest for what only the whole request, or the dialect, can tell.

        What the official clients may send beside a job without any effect on it, the other methods' objects, is taken
        and named in `ignored`: code that runs at OpenAI must run here.
        """
        if self.suffix is not None and len(self.suffix) > dialect.suffix_limit:
            raise InvalidRequest(
                f"Invalid 'suffix': string too long. Expected a string with maximum length {dialect.suffix_limit}, "
                f"but got a string with length {len(self.suffix)} instead.",
                param="suffix",
                code="string_above_max_length",
            )
        if self.method.type == "reinforcement" and "reinforcement" not in self.method.model_fields_set:
            raise InvalidRequest(
                "Missing required parameter: 'method.reinforcement'.",
                param="method.reinforcement",
                code="missing_required_parameter",
            )
        others = self.method.model_fields_set - {"type", self.method.type}
        reinforcement = None
        if self.method.type == "reinforcement":
            reinforcement = self.method.reinforcement.model_dump(exclude_unset=True)
            _require_numbers(reinforcement, "method.reinforcement")
        for name, value in (self.tuneway.options or {}).items():
            _require_short(value, f"tuneway.options.{name}")
        return JobRequest(
            model=self.model,
            training_file=self.training_file,
            validation_file=self.validation_file,
            suffix=self.suffix,
            seed=self.seed,
            metadata=self.metadata,
            method=Method(self.method.type),
            hyperparameters=self._hyperparameters(),
            provider=self.tuneway.provider,
            integrations=tuple(each.model_dump(exclude_unset=True) for each in self.integrations or ()),
            reinforcement=reinforcement,
            learning_rate=self.tuneway.learning_rate,
            options=self.tuneway.options or {},
            ignored=tuple(f"method.{name}" for name in sorted(others)),
        )

    def _hyperparameters(self) -> Hyperparameters:
        """Those of the two places together; a value that stands in both must be the same."""
        method = self.method.type
        chosen = getattr(self.method, method) if method in self.method.model_fields_set else None
        old = self.hyperparameters.model_dump(exclude_unset=True)
        new = {} if chosen is None else chosen.hyperparameters.model_dump(exclude_unset=True)
        for name in old.keys() & new.keys():
            if old[name] != new[name]:
                raise InvalidRequest(
                    f"'hyperparameters.{name}' is {old[name]} and 'method.{method}.hyperparameters.{name}' is "
                    f"{new[name]}. Give it once; the first form is deprecated.",
                    param=f"hyperparameters.{name}",
                    code="invalid_value",
                )
        known = {name: value for name, value in {**old, **new}.items() if name in Hyperparameters.__dataclass_fields__}
        if method == "dpo":
            known.setdefault("beta", AUTO)
        return Hyperparameters(**known)


class AdoptJobRequest(Request):
    """`provider_job_id` is one of `tuneway.attention.candidates`, or null for none of them."""

    provider_job_id: Text | None


def _require_short(value: Any, param: str) -> None:
    """Raises InvalidRequest: a provider's option is a word or a number, or a few of them."""
    _require_numbers(value, param)
    length = len(json.dumps(value))
    if length > MAX_OPTION_LENGTH:
        raise InvalidRequest(
            f"Invalid '{param}': value too long. Expected at most {MAX_OPTION_LENGTH} characters of JSON, but got "
            f"{length}.",
            param=param,
            code="invalid_value",
        )


def _require_numbers(value: Any, param: str) -> None:
    """Raises InvalidRequest for a number that no JSON can hold again, such as 1e999."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise InvalidRequest(
            f"Invalid '{param}': it has a number that is too large.", param=param, code="invalid_value"
        ) from None


def spell_auto(body: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A copy in which hyperparameters that are `number` are "auto"; what is not of the right form stays as it is."""
    spelled = copy.deepcopy(dict(body))
    methods = [("method", method.value, "hyperparameters") for method in Method]
    for path in (("hyperparameters",), *methods):
        found: Any = spelled
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, dict):
            found.update({name: AUTO for name, value in found.items() if type(value) is int and value == number})
    return spelled


# ------------------------------------------------------------------------------------------------------ responses


class JobHyperparameters(BaseModel):
    """As asked until the job's files are checked, then as resolved."""

    n_epochs: int | Auto
    batch_size: int | Auto
    learning_rate_multiplier: float | Auto
    beta: float | Auto = absent()

    @classmethod
    def of(cls, job: types.Job, dialect: Dialect) -> JobHyperparameters:
        shown = asdict(job.resolved or job.spec.hyperparameters)
        return cls(**{k: dialect.auto if v == AUTO else v for k, v in shown.items() if v is not None})

    @model_serializer(mode="wrap")
    def _without_unset(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in whole(self).items() if value is not None}


class JobMethodOptions(BaseModel):
    hyperparameters: JobHyperparameters


class JobReinforcementOptions(BaseModel):
    """As asked, with the numbers that were chosen since."""

    model_config = ConfigDict(extra="allow")

    grader: dict[str, Any]
    hyperparameters: dict[str, Any]


class JobMethod(BaseModel):
    """With the options of its own type alone."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: JobMethodOptions = absent()
    dpo: JobMethodOptions = absent()
    reinforcement: JobReinforcementOptions = absent()

    @classmethod
    def of(cls, spec: types.JobSpec, hyperparameters: JobHyperparameters, dialect: Dialect) -> JobMethod:
        numbers = hyperparameters.model_dump(exclude_none=True)
        asked = dict(spec.reinforcement or {})
        if asked:
            own = asked.get("hyperparameters") or {}
            numbers = {**{name: dialect.auto if v == AUTO else v for name, v in own.items()}, **numbers}
        method = spec.method.value
        return cls.model_validate({"type": method, method: {**asked, "hyperparameters": numbers}})

    @model_serializer(mode="wrap")
    def _own_options(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in whole(self).items() if value is not None}


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


class JobCandidate(BaseModel):
    provider_job_id: str
    created_at: int
    status: str


class JobAttention(BaseModel):
    """Why the job waits for a person, and which of the provider's jobs it may be; `adopt` takes the answer."""

    reason: str
    candidates: list[JobCandidate]


class JobExtension(BaseModel):
    """What the gateway knows beyond OpenAI's fields. `queue_position` is 1 for the job that starts next.

    `state` is `needs_attention` as long as `attention` says something. `provider_job_id` is a remote provider's name of
    the job.
    """

    state: str
    provider: str
    provider_status: str | None
    provider_job_id: str | None
    progress: JobProgress | None
    queue_position: int | None
    attention: JobAttention | None
    learning_rate: float | None
    options: dict[str, Any]

    @classmethod
    def of(cls, job: types.Job, queue_position: int | None) -> JobExtension:
        waits = None if job.status in types.TERMINAL_STATUSES else job.attention
        return cls(
            state=_state(job),
            provider=job.spec.provider,
            provider_status=job.provider_status,
            provider_job_id=None if job.provider_job_id == job.id else job.provider_job_id,
            progress=None if job.progress is None else _progress(job.progress),
            queue_position=queue_position,
            attention=None
            if waits is None
            else JobAttention(
                reason=waits.reason, candidates=[JobCandidate(**asdict(candidate)) for candidate in waits.candidates]
            ),
            learning_rate=job.spec.learning_rate,
            options=dict(job.spec.options),
        )


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
            integrations=[_integration(each, job.id) for each in job.spec.integrations],
            metadata=None if job.spec.metadata is None else dict(job.spec.metadata),
            method=JobMethod.of(job.spec, hyperparameters, dialect),
            tuneway=JobExtension.of(job, queue_position),
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
            data={name: finite(value) for name, value in event.data.items()},
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


def _state(job: types.Job) -> str:
    """The exact state, with what is on its way while the provider still has to follow."""
    if job.status in types.TERMINAL_STATUSES or job.status is JobStatus.PAUSED:
        return job.status.value
    if job.attention is not None:
        return "needs_attention"
    return {Desired.CANCEL: "cancelling", Desired.PAUSE: "pausing"}.get(job.desired, job.status.value)


def _integration(asked: Mapping[str, Any], job_id: str) -> dict[str, Any]:
    """As OpenAI shows it: the run's id is the job's."""
    return {**asked, "wandb": {**asked["wandb"], "run_id": job_id}}


def _progress(progress: types.Progress) -> JobProgress:
    return JobProgress(
        step=progress.step,
        total_steps=progress.total_steps,
        tokens_per_second=finite(progress.tokens_per_second),
        seconds_left=finite(progress.seconds_left),
        train_loss=finite(progress.train_loss),
        valid_loss=finite(progress.valid_loss),
    )
