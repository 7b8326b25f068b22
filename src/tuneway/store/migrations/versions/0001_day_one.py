"""The day-one schema: every table has a project, an integer `seq` to order by, and a random public id."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_Seq = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_Time = sa.BigInteger


def _owned(*columns: sa.schema.SchemaItem) -> list[sa.schema.SchemaItem]:
    return [
        sa.Column("seq", _Seq, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("project_id", sa.String, nullable=False),
        sa.Column("created_at", _Time, nullable=False),
        *columns,
    ]


def upgrade() -> None:
    op.create_table(
        "files",
        *_owned(
            sa.Column("filename", sa.Text, nullable=False),
            sa.Column("purpose", sa.String, nullable=False),
            sa.Column("bytes", sa.BigInteger, nullable=False),
            sa.Column("sha256", sa.String, nullable=False),
            sa.Column("expires_at", _Time),
            sa.Column("deleted_at", _Time),
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("files_by_project", "files", ["project_id", "seq"])
    op.create_index("files_by_blob", "files", ["sha256"])
    op.create_table(
        "jobs",
        *_owned(
            sa.Column("model", sa.String, nullable=False),
            sa.Column("training_file", sa.String, nullable=False),
            sa.Column("training_sha256", sa.String, nullable=False),
            sa.Column("validation_file", sa.String),
            sa.Column("validation_sha256", sa.String),
            sa.Column("suffix", sa.String),
            sa.Column("seed", sa.BigInteger, nullable=False),
            sa.Column("metadata", sa.JSON),
            sa.Column("method", sa.String, nullable=False),
            sa.Column("hyperparameters", sa.JSON, nullable=False),
            sa.Column("provider", sa.String, nullable=False),
            sa.Column("planned_model", sa.String, nullable=False),
            sa.Column("status", sa.String, nullable=False),
            sa.Column("desired", sa.String, nullable=False),
            sa.Column("resolved", sa.JSON),
            sa.Column("error", sa.JSON),
            sa.Column("fine_tuned_model", sa.String),
            sa.Column("finished_at", _Time),
            sa.Column("estimated_finish", _Time),
            sa.Column("trained_tokens", sa.BigInteger),
            sa.Column("result_files", sa.JSON, nullable=False),
            sa.Column("progress", sa.JSON),
            sa.Column("placement", sa.String, nullable=False),
            sa.Column("provider_status", sa.String),
            sa.Column("provider_job_id", sa.String),
            sa.Column("cursor", sa.String),
            sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
            sa.Column("stalls", sa.Integer, nullable=False, server_default="0"),
            sa.Column("stalled_at_step", sa.Integer),
            sa.Column("fence", sa.Integer, nullable=False, server_default="0"),
            sa.Column("released", sa.Integer, nullable=False, server_default="0"),
            sa.Column("lease_owner", sa.String),
            sa.Column("lease_until", _Time, nullable=False, server_default="0"),
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("jobs_by_project", "jobs", ["project_id", "seq"])
    op.create_index("jobs_at_work", "jobs", ["released", "placement", "status"])
    op.create_table(
        "job_events",
        *_owned(
            sa.Column("job_id", sa.String, nullable=False),
            sa.Column("key", sa.String, nullable=False),
            sa.Column("level", sa.String, nullable=False),
            sa.Column("type", sa.String, nullable=False),
            sa.Column("message", sa.Text, nullable=False),
            sa.Column("data", sa.JSON, nullable=False),
            sa.UniqueConstraint("job_id", "key", name="job_events_once"),
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("job_events_by_job", "job_events", ["job_id", "seq"])
    op.create_table(
        "checkpoints",
        *_owned(
            sa.Column("job_id", sa.String, nullable=False),
            sa.Column("step_number", sa.Integer, nullable=False),
            sa.Column("metrics", sa.JSON, nullable=False),
            sa.Column("model", sa.String, nullable=False),
            sa.UniqueConstraint("job_id", "step_number", name="checkpoints_once"),
        ),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "models",
        *_owned(
            sa.Column("provider", sa.String, nullable=False),
            sa.Column("base", sa.String, nullable=False),
            sa.Column("job_id", sa.String, nullable=False),
            sa.Column("upstream_model", sa.String, nullable=False),
            sa.Column("step_number", sa.Integer),
            sa.Column("data_sha256", sa.String, nullable=False),
            sa.Column("hyperparameters", sa.JSON, nullable=False),
            sa.Column("deleted_at", _Time),
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("models_by_project", "models", ["project_id", "seq"])
    op.create_table(
        "effects",
        *_owned(
            sa.Column("job_id", sa.String, nullable=False),
            sa.Column("kind", sa.String, nullable=False),
            sa.Column("key", sa.String, nullable=False),
            sa.Column("state", sa.String, nullable=False),
            sa.UniqueConstraint("job_id", "kind", "key", name="effects_once"),
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("effects_by_state", "effects", ["state"])
    op.create_table(
        "idempotency_keys",
        sa.Column("seq", _Seq, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("project_id", sa.String, nullable=False),
        sa.Column("created_at", _Time, nullable=False),
        sa.Column("request_sha256", sa.String, nullable=False),
        sa.Column("job_id", sa.String, nullable=False),
        sa.UniqueConstraint("project_id", "id", name="idempotency_keys_once"),
        sqlite_autoincrement=True,
    )
