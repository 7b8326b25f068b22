"""A fresh database is what the tables say, whichever way it came to be."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

import tuneway.store
from tuneway.errors import StartError
from tuneway.store import Store, schema


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "tuneway.db"
    store = Store(path)
    store.open()
    store.close()
    return path


def test_the_migrated_schema_is_the_schema(database: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{database}")
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), schema.metadata)
    engine.dispose()
    assert differences == []


def test_head_is_the_newest_migration() -> None:
    migrations = Path(tuneway.store.__file__).with_name("migrations")
    assert ScriptDirectory(str(migrations)).get_current_head() == tuneway.store.HEAD


def test_every_table_has_a_project_a_sequence_and_an_id() -> None:
    for table in schema.metadata.tables.values():
        assert not table.c.project_id.nullable, table.name
        assert table.c.seq.primary_key, table.name
        assert not table.c.id.nullable, table.name


def test_a_database_of_a_newer_tuneway_is_refused(database: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{database}")
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("update alembic_version set version_num = '9999'"))
    engine.dispose()
    store = Store(database)
    with pytest.raises(StartError, match="newer Tuneway"):
        store.open()
    store.close()
