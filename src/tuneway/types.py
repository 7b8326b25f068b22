"""The domain's values: frozen, typed, and importing nothing of ours.

Wire shapes live in `api/schema`, rows in `store/`; both convert to and from these by named methods. Times are unix
seconds as `int`; identifiers are the public ones (`ftjob-…`, `file-…`). One file, as every layer speaks of these values
and none of them has a layer of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")

Auto = Literal["auto"]
AUTO: Auto = "auto"

JsonObject = Mapping[str, Any]


class JobStatus(StrEnum):
    """The fine states that a job goes through; what a client sees of them is the dialect's business."""

    VALIDATING_FILES = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL_STATUSES = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})


class Desired(StrEnum):
    """What the owner of a job wants of it, beside what it is."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


class Method(StrEnum):
    SUPERVISED = "supervised"
    DPO = "dpo"
    REINFORCEMENT = "reinforcement"


class FileStatus(StrEnum):
    """`pending` is a file that the gateway is still fetching."""

    PENDING = "pending"
    PROCESSED = "processed"
    ERROR = "error"


class EventLevel(StrEnum):
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """As asked (`"auto"` allowed) or, on a job that has been checked, as resolved (numbers only)."""

    n_epochs: int | Auto = AUTO
    batch_size: int | Auto = AUTO
    learning_rate_multiplier: float | Auto = AUTO
    beta: float | Auto | None = None
    """Of `dpo` only."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """Numbers for every hyperparameter, and for each the sentence that says where it came from."""

    hyperparameters: Hyperparameters
    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a client asked for, after validation and name resolution."""

    model: str
    training_file: str
    provider: str
    method: Method = Method.SUPERVISED
    hyperparameters: Hyperparameters = Hyperparameters()
    validation_file: str | None = None
    suffix: str | None = None
    seed: int = 0
    metadata: Mapping[str, str] | None = None
    integrations: tuple[JsonObject, ...] = ()
    """Asked for and shown again; the gateway itself has none, and the job's events say so."""
    reinforcement: JsonObject | None = None
    """Of `reinforcement` only: the object `method.reinforcement` as it was sent, with its grader."""
    learning_rate: float | None = None
    """An absolute learning rate, for vendors that know no multiplier."""
    options: JsonObject = field(default_factory=dict)
    """A vendor's own fields, under the vendor's names."""


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What a client sent, after validation of its form, before name resolution; `seed` None asks for a random one."""

    model: str
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int | None = None
    metadata: Mapping[str, str] | None = None
    method: Method = Method.SUPERVISED
    hyperparameters: Hyperparameters = Hyperparameters()
    provider: str | None = None
    integrations: tuple[JsonObject, ...] = ()
    reinforcement: JsonObject | None = None
    learning_rate: float | None = None
    options: JsonObject = field(default_factory=dict)
    optional: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    """Fields that are an option at some providers and have no effect at others: that option's name, and the value."""
    ignored: tuple[str, ...] = ()
    """Fields of the request without effect anywhere, such as `method.dpo` of a supervised job."""


@dataclass(frozen=True, slots=True)
class JobError:
    """`job.error` on the wire: `code` and `message` always, `param` the request field at fault or None."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a running job is. `seconds_left` is the trainer's estimate, None until it has one."""

    step: int
    total_steps: int
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    train_loss: float | None = None
    valid_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A job at a provider that may be the one that was launched, as its provider shows it."""

    provider_job_id: str
    created_at: int
    status: str


@dataclass(frozen=True, slots=True)
class Attention:
    """Why a job waits for a person, and what there is to choose from."""

    reason: str
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    seq: int
    id: str
    project_id: str
    created_at: int
    spec: JobSpec
    status: JobStatus
    training_sha256: str
    planned_model: str
    """The name that the tuned model will have; minted with the job, so that no crash can make two of it."""
    placement: str
    validation_sha256: str | None = None
    desired: Desired = Desired.RUN
    resolved: Hyperparameters | None = None
    error: JobError | None = None
    fine_tuned_model: str | None = None
    finished_at: int | None = None
    estimated_finish: int | None = None
    trained_tokens: int | None = None
    result_files: tuple[str, ...] = ()
    progress: Progress | None = None
    provider_status: str | None = None
    provider_job_id: str | None = None
    """What a remote provider calls the job, also when it has ended; `handle` is there only while it holds something."""
    attention: Attention | None = None
    handle: JobHandle | None = None
    cursor: str | None = None
    attempt: int = 0
    stalls: int = 0
    """Launches in a row that were lost without a step more than the one before; see `worker`."""
    stalled_at_step: int | None = None
    fence: int = 0


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event before it is stored. `key` is unique within its job: storing it again is a no-op."""

    key: str
    message: str
    created_at: int
    level: EventLevel = EventLevel.INFO
    type: Literal["message", "metrics"] = "message"
    data: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobEvent:
    seq: int
    id: str
    job_id: str
    key: str
    created_at: int
    level: EventLevel
    type: Literal["message", "metrics"]
    message: str
    data: JsonObject


@dataclass(frozen=True, slots=True)
class Checkpoint:
    seq: int
    id: str
    job_id: str
    created_at: int
    step_number: int
    metrics: Mapping[str, float]
    model: str


@dataclass(frozen=True, slots=True)
class File:
    """An uploaded or produced file. The bytes are the blob `sha256`."""

    seq: int
    id: str
    project_id: str
    created_at: int
    filename: str
    purpose: str
    bytes: int
    sha256: str
    expires_at: int | None = None
    status: FileStatus = FileStatus.PROCESSED
    status_details: str | None = None
    """What is wrong with a file of status `error`."""


class UploadStatus(StrEnum):
    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that arrives in parts. `bytes` is its announced size; `expires_after` (seconds) is the file's own."""

    seq: int
    id: str
    project_id: str
    created_at: int
    filename: str
    purpose: str
    bytes: int
    mime_type: str
    expires_after: int | None
    expires_at: int
    status: UploadStatus
    file_id: str | None = None
    part_ids: tuple[str, ...] | None = None
    """In the order in which `complete` put them together."""


@dataclass(frozen=True, slots=True)
class UploadPart:
    seq: int
    id: str
    project_id: str
    created_at: int
    upload_id: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Completion:
    """A stored chat completion: the request's body and the answer's, as JSON objects."""

    seq: int
    id: str
    project_id: str
    created_at: int
    model: str
    request: JsonObject
    response: JsonObject
    metadata: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class Permission:
    """Leave for the project `granted_to` to use the checkpoint `model` of the project `project_id`."""

    seq: int
    id: str
    project_id: str
    created_at: int
    model: str
    granted_to: str


class Scope(StrEnum):
    """What a key may do: look; make and change files and jobs; chat; manage keys, webhooks, permissions and providers;
    pass requests on to a provider with the caller's own credential.
    """

    READ = "read"
    TUNE = "tune"
    CHAT = "chat"
    ADMIN = "admin"
    RELAY = "relay"


@dataclass(frozen=True, slots=True)
class Key:
    """A key of this gateway, without the key: `hint` is its last characters."""

    seq: int
    id: str
    project_id: str
    created_at: int
    name: str
    hint: str
    scopes: frozenset[Scope]
    expires_at: int | None = None
    revoked_at: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sends a request; `key_id` is None where the gateway asks for no key."""

    project: str
    scopes: frozenset[Scope]
    key_id: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """What tells a client's retry of a create from a second one: SDKs count their tries and send no key for them."""

    key_id: str | None = None
    retry: int = 0
    idempotency_key: str | None = None


FIRST_TRY = Origin()


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where events of a project are sent. Its secret is not here: only the service that signs reads it."""

    seq: int
    id: str
    project_id: str
    created_at: int
    name: str
    url: str
    events: tuple[str, ...]


class DeliveryState(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one webhook. The receiver tells repeats by `id`; `body` is the JSON that is signed."""

    seq: int
    id: str
    project_id: str
    created_at: int
    webhook_id: str
    event_id: str
    type: str
    body: str
    state: DeliveryState
    attempts: int
    next_at: int
    last_status: int | None = None
    last_error: str | None = None
    delivered_at: int | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A tuned model, or a published checkpoint of one.

    `base` is the catalogue or vendor name it was tuned from; `upstream_model` is what the provider calls it (for the
    local provider: the adapter's folder, relative to the data folder).
    """

    seq: int
    id: str
    project_id: str
    created_at: int
    provider: str
    base: str
    job_id: str
    upstream_model: str
    step_number: int | None
    data_sha256: str
    hyperparameters: Hyperparameters
    deployment: Deployment | None = None
    imported: bool = False
    """Whether it was made before the gateway: deleting it here leaves it where it is."""

    @property
    def intermediate(self) -> bool:
        """Whether it is a checkpoint before the last one, which has the name of the tuned model."""
        return ":ckpt-step-" in self.id


@dataclass(frozen=True, slots=True)
class Deployment:
    """What serves a tuned model at a vendor, and what that costs.

    `usd_per_hour` is None where it is unknown; `expires_at` is when the vendor removes it by itself, None for never.
    """

    name: str
    created_at: int
    sku: str | None = None
    usd_per_hour: float | None = None
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A model that a provider can tune and, untuned, chat with."""

    name: str
    provider: str
    description: str
    created: int


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list, in the list's order."""

    data: tuple[T, ...]
    has_more: bool


# ---------------------------------------------------------------------------------------------------- the accounts


@dataclass(frozen=True, slots=True)
class Account:
    """An account at a vendor that the operator has configured, without its secrets.

    `options` are the kind's own, as strings; `origin` is "settings" (tuneway.toml) or "store" (`providers add`).
    """

    name: str
    kind: str
    options: Mapping[str, str] = field(default_factory=dict)
    origin: str = "settings"
    created_at: int = 0


class CircuitState(StrEnum):
    """`open`: the provider failed again and again and is left alone for a while; `half_open`: one request tries it."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class LineState:
    """How the connections to one provider are doing. Times are in unix seconds."""

    circuit: CircuitState
    under_way: int
    concurrency: int
    timeout_seconds: float
    answered: Mapping[str, int]
    """Requests since the start by outcome: "2xx", "3xx", "4xx", "429", "5xx", "failed"."""
    failures_in_a_row: int = 0
    resting_until: int | None = None
    last_error: str | None = None


class ImportState(StrEnum):
    """A `running` import goes on when the gateway starts again."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ImportCounts:
    """What an import has stored; `bytes` are those of its files.

    `skipped` are jobs and files that were here before, `still_running` jobs that had not ended and wait for another
    import.
    """

    jobs: int = 0
    events: int = 0
    checkpoints: int = 0
    files: int = 0
    bytes: int = 0
    models: int = 0
    skipped: int = 0
    still_running: int = 0


@dataclass(frozen=True, slots=True)
class Import:
    """The reading of one account at a vendor into one project. `problems` are sentences about what could not be read;
    `error` is why a failed one stopped.
    """

    seq: int
    id: str
    project_id: str
    created_at: int
    provider: str
    state: ImportState = ImportState.RUNNING
    counts: ImportCounts = ImportCounts()
    problems: tuple[str, ...] = ()
    error: str | None = None
    finished_at: int | None = None


# ---------------------------------------------------------------------------------------------- the provider seam


@dataclass(frozen=True, slots=True)
class JobHandle:
    """Small, JSON, and enough to find the job again after a restart."""

    provider: str
    provider_job_id: str


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """All that a provider needs to start a job, or to find it. `key` is what `find` is asked for after a crash."""

    key: str
    job: JobSpec
    hyperparameters: Hyperparameters
    attempt: int
    training_file: str | None = None
    validation_file: str | None = None
    """What a remote provider calls the files, see `Provider.send`."""
    intended_at: int | None = None
    """When the launch was first intended, in unix seconds."""
    provider_job_id: str | None = None
    """Of a job that was launched before and goes on now."""
    taken: frozenset[str] = frozenset()
    """The provider's job ids that belong to other jobs of this gateway."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A training or validation file, checked, on its way to a remote provider. `path` has its bytes."""

    path: Path
    sha256: str
    bytes: int
    method: Method


@dataclass(frozen=True, slots=True)
class ProviderCheckpoint:
    """A checkpoint as its provider knows it; the service mints the public names."""

    step_number: int
    metrics: Mapping[str, float]
    upstream_model: str
    created_at: int
    final: bool
    """Of the last step: the same weights as the tuned model, and shown under its name."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a finished job left behind. `metrics_csv` is the result file, its path or its bytes; None for none."""

    upstream_model: str
    trained_tokens: int | None
    finished_at: int
    metrics_csv: Path | bytes | None


@dataclass(frozen=True, slots=True)
class JobUpdate:
    """What changed since `cursor`. Everything in it and the new cursor are stored in one transaction.

    `lost` means that the provider does not know the job (any more), which is not a failure.
    """

    cursor: str
    status: JobStatus
    provider_status: str
    events: tuple[NewEvent, ...] = ()
    checkpoints: tuple[ProviderCheckpoint, ...] = ()
    progress: Progress | None = None
    result: JobResult | None = None
    error: JobError | None = None
    lost: bool = False
    hyperparameters: Hyperparameters | None = None
    """As the provider has resolved them, where it says so."""
    estimated_finish: int | None = None


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where the chat requests of one model go: an HTTP URL, reached through `socket` where one is given.

    `headers` are added to the request (the upstream's credential, the adapter's name) and never shown to a client.
    `model` is written into the request in place of the client's name of it; None leaves the body as it is.
    """

    url: str
    headers: Mapping[str, str]
    socket: Path | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Where a chat request goes, and the model name that its answer shows."""

    upstream: Upstream
    model: str
