"""Providers: accounts, what was sent to them, jobs and models that are theirs, imports."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

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
    op.add_column("jobs", sa.Column("upstream_job_id", sa.String))
    op.add_column("jobs", sa.Column("attention", sa.JSON))
    op.add_column("jobs", sa.Column("reinforcement", sa.JSON))
    op.add_column("jobs", sa.Column("learning_rate", sa.Float))
    op.add_column("jobs", sa.Column("options", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("jobs", sa.Column("imported", sa.Integer, nullable=False, server_default="0"))
    op.add_column("effects", sa.Column("unclear_at", sa.BigInteger))
    op.add_column("models", sa.Column("deployment", sa.JSON))
    op.add_column("models", sa.Column("imported", sa.Integer, nullable=False, server_default="0"))
    op.create_table(
        "accounts",
        *_owned(
            sa.Column("name", sa.String, nullable=False, unique=True),
            sa.Column("kind", sa.String, nullable=False),
            sa.Column("options", sa.JSON, nullable=False),
            sa.Column("sealed_secrets", sa.Text, nullable=False),
        ),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "sent_files",
        *_owned(
            sa.Column("provider", sa.String, nullable=False),
            sa.Column("sha256", sa.String, nullable=False),
            sa.Column("form", sa.String, nullable=False),
            sa.Column("upstream_file_id", sa.String, nullable=False),
            sa.UniqueConstraint("provider", "sha256", "form", name="sent_files_once"),
        ),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "imports",
        *_owned(
            sa.Column("provider", sa.String, nullable=False),
            sa.Column("state", sa.String, nullable=False),
            sa.Column("counts", sa.JSON, nullable=False),
            sa.Column("problems", sa.JSON, nullable=False),
            sa.Column("error", sa.Text),
            sa.Column("finished_at", sa.BigInteger),
        ),
        sqlite_autoincrement=True,
    )
