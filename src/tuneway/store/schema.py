"""The tables. Migrations make them; a test proves that both say the same.

Every table has a project, an integer `seq` that lists are ordered by (clocks jump), and a random public id.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Float, Index, Integer, MetaData, String, Table, Text, UniqueConstraint

metadata = MetaData()

# SQLite numbers only `INTEGER PRIMARY KEY` columns by itself, so BigInteger is an Integer there.
_Seq = BigInteger().with_variant(Integer, "sqlite")


def _seq() -> Column[int]:
    return Column("seq", _Seq, primary_key=True, autoincrement=True)


files = Table(
    "files",
    metadata,
    _seq(),
    Column("id", String, nullable=False, unique=True),
    Column("project_id", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String, nullable=False),
    Column("expires_at", BigInteger),
    Column("deleted_at", BigInteger),
    Column("status", String, nullable=False, server_default="processed"),
    Column("status_details", Text),
    Index("files_by_project", "project_id", "seq"),
    Index("files_by_blob", "sha256"),
    sqlite_autoincrement=True,
)

jobs = Table(
    "jobs",
    metadata,
    _seq(),
    Column("id", String, nullable=False, unique=True),
    Column("project_id", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # what was asked
    Column("model", String, nullable=False),
    Column("training_file", String, nullable=False),
    Column("training_sha256", String, nullable=False),
    Column("validation_file", String),
    Column("validation_sha256", String),
    Column("suffix", String),
    Column("seed", BigInteger, nullable=False),
    Column("metadata", JSON(none_as_null=True)),
    Column("method", String, nullable=False),
    Column("hyperparameters", JSON, nullable=False),
    Column("provider", String, nullable=False),
    Column("planned_model", String, nullable=False),
    # what is
    Column("status", String, nullable=False),
    Column("desired", String, nullable=False),
    Column("resolved", JSON(none_as_null=True)),
    Column("error", JSON(none_as_null=True)),
    Column("fine_tuned_model", String),
    Column("finished_at", BigInteger),
    Column("estimated_finish", BigInteger),
    Column("trained_tokens", BigInteger),
    Column("result_files", JSON, nullable=False),
    Column("progress", JSON(none_as_null=True)),
    # who works on it
    Column("placement", String, nullable=False),
    Column("provider_status", String),
    Column("provider_job_id", String),
    Column("cursor", String),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("stalls", Integer, nullable=False, server_default="0"),
    Column("stalled_at_step", Integer),
    Column("fence", Integer, nullable=False, server_default="0"),
    Column("released", Integer, nullable=False, server_default="0"),
    Column("lease_owner", String),
    Column("lease_until", BigInteger, nullable=False, server_default="0"),
    # who asked, and how a retry of the same request is known
    Column("key_id", String),
    Column("request_sha256", String),
    Column("integrations", JSON(none_as_null=True)),
    Column("deleted_at", BigInteger),
    # of jobs at vendors; `upstream_job_id` stays when the job has ended
    Column("upstream_job_id", String),
    Column("attention", JSON(none_as_null=True)),
    Column("reinforcement", JSON(none_as_null=True)),
    Column("learning_rate", Float),
    Column("options", JSON, nullable=False, server_default="{}"),
    Column("imported", Integer, nullable=False, server_default="0"),
    Index("jobs_by_project", "project_id", "seq"),
    Index("jobs_at_work", "released", "placement", "status"),
    Index("jobs_by_request", "project_id", "request_sha256"),
    sqlite_autoincrement=True,
)

job_events = Table(
    "job_events",
    metadata,
    _seq(),
    Column("id", String, nullable=False, unique=True),
    Column("project_id", String, nullable=False),
    Column("job_id", String, nullable=False),
    Column("key", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("level", String, nullable=False),
    Column("type", String, nullable=False),
    Column("message", Text, nullable=False),
    Column("data", JSON, nullable=False),
    UniqueConstraint("job_id", "key", name="job_events_once"),
    Index("job_events_by_job", "job_id", "seq"),
    sqlite_autoincrement=True,
)

checkpoints = Table(
    "checkpoints",
    metadata,
    _seq(),
    Column("id", String, nullable=False, unique=True),
    Column("project_id", String, nullable=False),
    Column("job_id", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("step_number", Integer, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("model", String, nullable=False),
    UniqueConstraint("job_id", "step_number", name="checkpoints_once"),
    sqlite_autoincrement=True,
)

models = Table(
    "models",
    metadata,
    _seq(),
    Column("id", String, nullable=False, unique=True),
    Column("project_id", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("provider", String, nullable=False),
    Column("base", String, nullable=False),
    Column("job_id", String, nullable=False),
    Column("upstream_model", String, nullable=False),
    Column("step_number", Integer),
    Column("data_sha256", String, nullable=False),
    Column("hyperparameters", JSON, nullable=False),
    Column("deleted_at", BigInteger),
    Column("deployment", JSON(none_as_null=True)),
    Column("imported", Integer, nullable=False, server_default="0"),
    Index("models_by_project", "project_id", "seq"),
    sqlite_autoincrement=True,
)

# An intent is stored before the call that has the effect; `state` goes intent → confirmed → released.
effects = Table(
    "effects",
    metadata,
    _seq(),
    Column("id", String, nullable=False, unique=True),
    Column("project_id", String, nullable=False),
    Column("job_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("key", String, nullable=False),
    Column("state", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # when the last call ended without an answer that tells
    Column("unclear_at", BigInteger),
    UniqueConstraint("job_id", "kind", "key", name="effects_once"),
    Index("effects_by_state", "state"),
    sqlite_autoincrement=True,
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    _seq(),
    Column("id", String, nullable=False),
    Column("project_id", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("request_sha256", String, nullable=False),
    Column("job_id", String, nullable=False),
    UniqueConstraint("project_id", "id", name="idempotency_keys_once"),
    sqlite_autoincrement=True,
)

# ------------------------------------------------------------------------------------------------- since migration 0002

uploads = Table(
    "uploads",
    metadata,
    _seq(),
    Column("id", String, nullable=False, unique=True),
    Column("project_id", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("mime_type", String, nullable=False),
    Column("expires_after", BigInteger),
    Column("expires_at", BigInteger, nullable=False),
    Column("status", String, nullable=False),
    Column("file_id", String),
    Column("part_ids", JSON(none_as_null=True)),
    Index("uploads_by_project", "project_id", "seq"),
    sqlite_autoincrement=True,
)

upload_parts = Table(
    "upload_parts",
    metadata,
    _seq(),
    Column("id", String, nullable=False, unique=True),
    Column("project_id", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("upload_id", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String, nullable=False),
    Index("upload_parts_by_upload", "upload_id", "seq"),
    Index("upload_parts_by_blob", "sha256"),
    sqlite_autoincrement=True,
)

# A stored chat completion: what was asked (messages and parameters) and what was answered.
completions = Table(
    "completions",
    metadata,
    _seq(),
    Column("id", String, nullable=False, unique=True),
    Column("project_id", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("model", String, nullable=False),
    Column("request", JSON, nullable=False),
    Column("response", JSON, nullable=False),
    Column("metadata", JSON(none_as_null=True)),
    Index("completions_by_project", "project_id", "seq"),
    sqlite_autoincrement=True,
)

# Another project's leave to use a checkpoint; `project_id` is the owner's.
permissions = Table(
    "permissions",
    metadata,
    _seq(),
    Column("id", String, nullable=False, unique=True),
    Column("project_id", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("model", String, nullable=False),
    Column("granted_to", String, nullable=False),
    UniqueConstraint("model", "granted_to", name="permissions_once"),
    Index("permissions_by_guest", "granted_to", "model"),
    sqlite_autoincrement=True,
)

# A key is stored as its HMAC only; `hint` is the end of it, for people.
keys = Table(
    "keys",
    metadata,
    _seq(),
    Column("id", String, nullable=False, unique=True),
    Column("project_id", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("hmac", String, nullable=False, unique=True),
    Column("hint", String, nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    sqlite_autoincrement=True,
)

# `sealed_secret` is encrypted with a key that is not in the database.
webhooks = Table(
    "webhooks",
    metadata,
    _seq(),
    Column("id", String, nullable=False, unique=True),
    Column("project_id", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("events", JSON, nullable=False),
    Column("sealed_secret", Text, nullable=False),
    Index("webhooks_by_project", "project_id", "seq"),
    sqlite_autoincrement=True,
)

# The outbox: written in the transaction that ends the job, sent afterwards until it arrives or a day is over.
deliveries = Table(
    "deliveries",
    metadata,
    _seq(),
    Column("id", String, nullable=False, unique=True),
    Column("project_id", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("webhook_id", String, nullable=False),
    Column("event_id", String, nullable=False),
    Column("type", String, nullable=False),
    Column("body", Text, nullable=False),
    Column("state", String, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("next_at", BigInteger, nullable=False),
    Column("last_status", Integer),
    Column("last_error", Text),
    Column("delivered_at", BigInteger),
    Index("deliveries_by_webhook", "webhook_id", "seq"),
    Index("deliveries_by_state", "state", "next_at"),
    sqlite_autoincrement=True,
)

# ------------------------------------------------------------------------------------------------- since migration 0003

# An account at a vendor that was added by `tuneway providers add`; those of tuneway.toml are not here. They are the
# operator's, in the operator's project, and all projects use them. `sealed_secrets` is encrypted for this row alone.
accounts = Table(
    "accounts",
    metadata,
    _seq(),
    Column("id", String, nullable=False, unique=True),
    Column("project_id", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("name", String, nullable=False, unique=True),
    Column("kind", String, nullable=False),
    Column("options", JSON, nullable=False),
    Column("sealed_secrets", Text, nullable=False),
    sqlite_autoincrement=True,
)

# What a provider calls the bytes that were sent to it, so that they are sent once. Known by content, not by project:
# the account is the operator's, and no project is ever shown the vendor's id of another's file.
sent_files = Table(
    "sent_files",
    metadata,
    _seq(),
    Column("id", String, nullable=False, unique=True),
    Column("project_id", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("provider", String, nullable=False),
    Column("sha256", String, nullable=False),
    Column("form", String, nullable=False),
    Column("upstream_file_id", String, nullable=False),
    UniqueConstraint("provider", "sha256", "form", name="sent_files_once"),
    sqlite_autoincrement=True,
)

# What `tuneway import` has read of an account; `state` goes running → done or failed, and it goes on where it was.
imports = Table(
    "imports",
    metadata,
    _seq(),
    Column("id", String, nullable=False, unique=True),
    Column("project_id", String, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("provider", String, nullable=False),
    Column("state", String, nullable=False),
    Column("counts", JSON, nullable=False),
    Column("problems", JSON, nullable=False),
    Column("error", Text),
    Column("finished_at", BigInteger),
    sqlite_autoincrement=True,
)
