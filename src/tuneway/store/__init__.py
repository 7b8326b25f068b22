"""The store: all SQL, and nothing but SQL. Rows never leave it; values of `tuneway.types` do.

Synchronous, awaited from async code: `write` runs a function in one transaction on the one writer thread, `read` runs
one on a few read-only connections. The functions themselves are in `jobs.py`, `files.py`, `models.py`, one file a
resource; each takes the connection first.

    job = await store.write(jobs.insert, job, events)

Why one writer: SQLite before 3.51.3 has a WAL-reset bug that corrupts the database when two connections write at once
(Debian 12 ships 3.40.1), and one writer never sees "database is locked".
"""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import sqlalchemy
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import OperationalError

from tuneway.errors import OutOfSpace

P = ParamSpec("P")
T = TypeVar("T")

Tx = Connection
"""What a function given to `write` or `read` gets: a connection inside its transaction."""

HEAD = "0003"
"""The newest migration. Alembic is imported only when the database is not at it: that saves a tenth of the start."""

_READERS = 4


class Store:
    """The database at `path`. `open` migrates it; nothing is connected before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer_thread = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._reader_threads = ThreadPoolExecutor(_READERS, thread_name_prefix="store-reader")
        self._writer = _engine(f"sqlite:///{path}", pool_size=1, read_only=False)
        self._readers = _engine(f"sqlite:///{path}", pool_size=_READERS, read_only=True)
        self._watchers: dict[str, set[asyncio.Event]] = {}

    def open(self) -> None:
        """Brings the schema to its newest form. Raises StartError for a database of a newer Tuneway."""
        self._writer_thread.submit(self._migrate).result()

    async def write(self, function: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `function` in one transaction; its result is durable when this returns. Raises OutOfSpace.

        What `function` gives to `after_commit` runs on the writer thread once the transaction is in, and then those
        wake who watch what it told of. A caller that is cancelled meanwhile does not stop the transaction.
        """
        loop = asyncio.get_running_loop()

        def run() -> T:
            pending: list[Callable[[], None]] = []
            topics: set[str] = set()
            with _out_of_space(), self._writer.begin() as tx:
                tx.info["after_commit"] = pending
                tx.info["topics"] = topics
                found = function(tx, *args, **kwargs)
            for later in pending:
                later()
            if topics:
                loop.call_soon_threadsafe(self._wake, topics)
            return found

        return await asyncio.shield(loop.run_in_executor(self._writer_thread, run))

    async def read(self, function: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `function` on a read-only connection, with one view of the database throughout."""

        def run() -> T:
            with self._readers.begin() as tx:
                return function(tx, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._reader_threads, run)

    @contextmanager
    def watch(self, topic: str) -> Iterator[asyncio.Event]:
        """An event that every transaction sets that told of `topic`, however many there were since it was cleared.

        Clear it, read, then wait for it: nothing is missed, and who does not wait is not asked.
        """
        news = asyncio.Event()
        self._watchers.setdefault(topic, set()).add(news)
        try:
            yield news
        finally:
            self._watchers[topic].discard(news)
            if not self._watchers[topic]:
                del self._watchers[topic]

    def wake_all(self) -> None:
        """Sets the event of everyone who watches anything."""
        self._wake(set(self._watchers))

    def _wake(self, topics: set[str]) -> None:
        for topic in topics:
            for news in self._watchers.get(topic, ()):
                news.set()

    def close(self) -> None:
        """Waits for the writes under way."""
        self._reader_threads.shutdown()
        self._writer_thread.submit(self._writer.dispose).result()
        self._writer_thread.shutdown()
        self._readers.dispose()

    def _migrate(self) -> None:
        with self._writer.begin() as tx:
            tables = sqlalchemy.inspect(tx).get_table_names()
            at = tx.scalar(text("select version_num from alembic_version")) if "alembic_version" in tables else None
        if at != HEAD:
            from tuneway.store.migrate import upgrade

            with self._writer.begin() as tx:
                upgrade(tx)


def after_commit(tx: Connection, later: Callable[[], None]) -> None:
    """Has `later` called on the writer thread once the transaction of `tx` is in; not at all if it fails."""
    tx.info["after_commit"].append(later)


def tell(tx: Connection, topic: str) -> None:
    """Has those who watch `topic` wake once the transaction of `tx` is in."""
    tx.info["topics"].add(topic)


@contextmanager
def _out_of_space() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        if isinstance(error.orig, sqlite3.Error) and error.orig.sqlite_errorcode == sqlite3.SQLITE_FULL:
            raise OutOfSpace from error
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpace from error
        raise


def _engine(url: str, *, pool_size: int, read_only: bool) -> Engine:
    engine = sqlalchemy.create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        hide_parameters=True,  # an error goes to the log, and what clients sent does not
        connect_args={"check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # we begin by ourselves, below
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
            connection.execute(f"PRAGMA {pragma}")
        if read_only:
            connection.execute("PRAGMA query_only=ON")

    @event.listens_for(engine, "begin")
    def _begin(tx: Connection) -> None:
        tx.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine
