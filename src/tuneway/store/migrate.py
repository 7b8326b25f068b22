"""Runs the migrations on an open connection. Imported only when there is something to do."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection

from tuneway.errors import StartError


def upgrade(tx: Connection) -> None:
    """Brings the database to the newest schema, in the transaction of `tx`."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = tx
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StartError(f"The database was made by a newer Tuneway ({error}). Install that version.") from error
