"""The whole OpenAI surface: uploads, stored completions, permissions, keys, webhooks and their outbox."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_Seq = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _owned(*columns: sa.schema.SchemaItem) -> list[sa.schema.SchemaItem]:
    return [
        sa.Column("seq", _Seq, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("project_id", sa.String, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        *columns,
    ]


def upgrade() -> None:
    op.add_column("files", sa.Column("status", sa.String, nullable=False, server_default="processed"))
    op.add_column("files", sa.Column("status_details", sa.Text))
    op.add_column("jobs", sa.Column("key_id", sa.String))
    op.add_column("jobs", sa.Column("request_sha256", sa.String))
    op.add_column("jobs", sa.Column("integrations", sa.JSON))
    op.add_column("jobs", sa.Column("deleted_at", sa.BigInteger))
    op.create_index("jobs_by_request", "jobs", ["project_id", "request_sha256"])
    op.create_table(
        "uploads",
        *_owned(
            sa.Column("filename", sa.Text, nullable=False),
            sa.Column("purpose", sa.String, nullable=False),
            sa.Column("bytes", sa.BigInteger, nullable=False),
            sa.Column("mime_type", sa.String, nullable=False),
            sa.Column("expires_after", sa.BigInteger),
            sa.Column("expires_at", sa.BigInteger, nullable=False),
            sa.Column("status", sa.String, nullable=False),
            sa.Column("file_id", sa.String),
            sa.Column("part_ids", sa.JSON),
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("uploads_by_project", "uploads", ["project_id", "seq"])
    op.create_table(
        "upload_parts",
        *_owned(
            sa.Column("upload_id", sa.String, nullable=False),
            sa.Column("bytes", sa.BigInteger, nullable=False),
            sa.Column("sha256", sa.String, nullable=False),
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("upload_parts_by_upload", "upload_parts", ["upload_id", "seq"])
    op.create_index("upload_parts_by_blob", "upload_parts", ["sha256"])
    op.create_table(
        "completions",
        *_owned(
            sa.Column("model", sa.String, nullable=False),
            sa.Column("request", sa.JSON, nullable=False),
            sa.Column("response", sa.JSON, nullable=False),
            sa.Column("metadata", sa.JSON),
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("completions_by_project", "completions", ["project_id", "seq"])
    op.create_table(
        "permissions",
        *_owned(
            sa.Column("model", sa.String, nullable=False),
            sa.Column("granted_to", sa.String, nullable=False),
            sa.UniqueConstraint("model", "granted_to", name="permissions_once"),
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("permissions_by_guest", "permissions", ["granted_to", "model"])
    op.create_table(
        "keys",
        *_owned(
            sa.Column("name", sa.Text, nullable=False),
            sa.Column("hmac", sa.String, nullable=False, unique=True),
            sa.Column("hint", sa.String, nullable=False),
            sa.Column("scopes", sa.JSON, nullable=False),
            sa.Column("expires_at", sa.BigInteger),
            sa.Column("revoked_at", sa.BigInteger),
        ),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "webhooks",
        *_owned(
            sa.Column("name", sa.Text, nullable=False),
            sa.Column("url", sa.Text, nullable=False),
            sa.Column("events", sa.JSON, nullable=False),
            sa.Column("sealed_secret", sa.Text, nullable=False),
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("webhooks_by_project", "webhooks", ["project_id", "seq"])
    op.create_table(
        "deliveries",
        *_owned(
            sa.Column("webhook_id", sa.String, nullable=False),
            sa.Column("event_id", sa.String, nullable=False),
            sa.Column("type", sa.String, nullable=False),
            sa.Column("body", sa.Text, nullable=False),
            sa.Column("state", sa.String, nullable=False),
            sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
            sa.Column("next_at", sa.BigInteger, nullable=False),
            sa.Column("last_status", sa.Integer),
            sa.Column("last_error", sa.Text),
            sa.Column("delivered_at", sa.BigInteger),
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("deliveries_by_webhook", "deliveries", ["webhook_id", "seq"])
    op.create_index("deliveries_by_state", "deliveries", ["state", "next_at"])
