"""Imports of accounts, and what they leave in other tables under a vendor's own ids.

Ids are looked for in all projects: a vendor's id is one thing, whoever reads it, and is stored once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, func, select, update
from sqlalchemy.dialects.sqlite import insert as insert_or_ignore

from tuneway.store import files as file_rows
from tuneway.store import jobs as job_rows
from tuneway.store.schema import checkpoints, effects, files, imports, jobs, models, sent_files
from tuneway.types import (
    TERMINAL_STATUSES,
    Checkpoint,
    File,
    Import,
    ImportCounts,
    ImportState,
    Job,
    Model,
    NewEvent,
    Page,
)


@dataclass(frozen=True, slots=True)
class Ours:
    """What a provider calls things that this gateway made there: they are here already, under names of the gateway."""

    jobs: frozenset[str]
    files: frozenset[str]
    models: frozenset[str]
    starting_since: int | None = None
    """When the oldest launch was intended of which it is not known yet whether it arrived, in unix seconds."""
    running_since: int | None = None
    """When the oldest of the gateway's jobs there was made that has not ended, as far as the gateway knows."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an id is taken. `sha256` is that of a file, or of a job's training data; "" where it never came."""

    project: str
    sha256: str = ""


def begin(tx: Connection, asked: Import) -> Import:
    """The import of the project that reads this account already, else the one asked for, stored."""
    mine = (imports.c.project_id == asked.project_id) & (imports.c.provider == asked.provider)
    running = tx.execute(select(imports).where(mine, imports.c.state == ImportState.RUNNING)).first()
    if running is not None:
        return _import(running)
    (seq,) = tx.execute(imports.insert().values(_values(asked))).inserted_primary_key or (0,)
    return replace(asked, seq=seq)


def save(tx: Connection, changed: Import) -> None:
    tx.execute(update(imports).where(imports.c.id == changed.id).values(_values(changed)))


def get(tx: Connection, project: str, import_id: str) -> Import | None:
    row = tx.execute(select(imports).where(imports.c.project_id == project, imports.c.id == import_id)).one_or_none()
    return None if row is None else _import(row)


def page(tx: Connection, project: str, *, after: str | None, limit: int) -> Page[Import] | None:
    """One page, newest first; None when `after` is no import of the project."""
    query = select(imports).where(imports.c.project_id == project).order_by(imports.c.seq.desc()).limit(limit + 1)
    if after is not None:
        found = get(tx, project, after)
        if found is None:
            return None
        query = query.where(imports.c.seq < found.seq)
    rows = tx.execute(query).all()
    return Page(tuple(_import(row) for row in rows[:limit]), len(rows) > limit)


def unfinished(tx: Connection) -> list[Import]:
    """Those of all projects that a gateway which is gone has left, oldest first."""
    query = select(imports).where(imports.c.state == ImportState.RUNNING).order_by(imports.c.seq)
    return [_import(row) for row in tx.execute(query)]


# ------------------------------------------------------------------------------------------------------- what is here


def ours(tx: Connection, provider: str) -> Ours:
    """Of all projects, deleted things too: what one project made there is not for another to read."""
    of_jobs = select(jobs.c.upstream_job_id).where(jobs.c.provider == provider, jobs.c.imported == 0)
    of_files = select(sent_files.c.upstream_file_id).where(sent_files.c.provider == provider)
    of_models = select(models.c.upstream_model).where(models.c.provider == provider, models.c.imported == 0)
    unended = (jobs.c.provider == provider) & jobs.c.status.not_in(TERMINAL_STATUSES)
    launches = select(func.min(effects.c.created_at)).join(jobs, jobs.c.id == effects.c.job_id)
    intent = (effects.c.kind == job_rows.LAUNCH) & (effects.c.state == "intent")
    return Ours(
        frozenset(tx.scalars(of_jobs.where(jobs.c.upstream_job_id.is_not(None)))),
        frozenset(tx.scalars(of_files)),
        frozenset(tx.scalars(of_models)),
        tx.scalar(launches.where(jobs.c.provider == provider, intent)),
        tx.scalar(select(func.min(jobs.c.created_at)).where(unended)),
    )


def jobs_of(tx: Connection, ids: Collection[str]) -> frozenset[str]:
    """Those of the ids that are jobs of this gateway."""
    return frozenset(tx.scalars(select(jobs.c.id).where(jobs.c.id.in_(ids))))


def has_data(tx: Connection, start: str) -> bool:
    """Whether a file whose SHA-256 starts so is, or was, here."""
    return (
        tx.execute(select(files.c.seq).where(files.c.sha256.between(start, f"{start}g")).limit(1)).first() is not None
    )


def file_at(tx: Connection, file_id: str) -> Place | None:
    """A deleted file has its place still: what was deleted here stays deleted."""
    row = tx.execute(select(files.c.project_id, files.c.sha256).where(files.c.id == file_id)).one_or_none()
    return None if row is None else Place(row.project_id, row.sha256)


def job_at(tx: Connection, job_id: str) -> Place | None:
    row = tx.execute(select(jobs.c.project_id, jobs.c.training_sha256).where(jobs.c.id == job_id)).one_or_none()
    return None if row is None else Place(row.project_id, row.training_sha256)


def model_at(tx: Connection, name: str) -> Place | None:
    row = tx.execute(select(models.c.project_id, models.c.data_sha256).where(models.c.id == name)).one_or_none()
    return None if row is None else Place(row.project_id, row.data_sha256)


# ------------------------------------------------------------------------------------------------------- what is read


def insert_file(tx: Connection, file: File) -> bool:
    """False when the id is taken."""
    if file_at(tx, file.id) is not None:
        return False
    file_rows.insert(tx, file)
    return True


def insert_job(tx: Connection, job: Job, events: Iterable[NewEvent]) -> bool:
    """Stores a job that has ended elsewhere, as it ended: nobody is told, and no worker looks at it. False when its id
    is taken.
    """
    if job_at(tx, job.id) is not None:
        return False
    job_rows.insert(tx, job, events)
    resolved = None if job.resolved is None else asdict(job.resolved)
    tx.execute(
        update(jobs)
        .where(jobs.c.id == job.id)
        .values(
            resolved=resolved and {name: value for name, value in resolved.items() if value is not None},
            error=None if job.error is None else asdict(job.error),
            fine_tuned_model=job.fine_tuned_model,
            finished_at=job.finished_at,
            trained_tokens=job.trained_tokens,
            result_files=list(job.result_files),
            provider_status=job.provider_status,
            upstream_job_id=job.provider_job_id,
            imported=1,
            released=1,
        )
    )
    return True


def insert_checkpoints(tx: Connection, project: str, found: Sequence[Checkpoint]) -> int:
    """How many were stored; one whose id or whose step of the job is taken is left out."""
    stored = 0
    for checkpoint in found:
        values = asdict(checkpoint) | {"project_id": project, "metrics": dict(checkpoint.metrics)}
        del values["seq"]
        stored += tx.execute(insert_or_ignore(checkpoints).values(values).on_conflict_do_nothing()).rowcount
    return stored


def insert_model(tx: Connection, model: Model) -> Place | None:
    """Stores an imported model; where its name is taken, returns by whom, and changes nothing.

    But one that was imported without its job, which ran then, gets its job. A deleted one stays deleted: requests for
    its name go where `model_map` says.
    """
    values = asdict(model) | {"imported": 1}
    del values["seq"]
    statement = insert_or_ignore(models).values(values)
    lineage = ("job_id", "base", "step_number", "data_sha256", "hyperparameters", "created_at")
    unknown = (models.c.imported == 1) & (models.c.job_id == "") & (models.c.project_id == model.project_id)
    adopted = statement.on_conflict_do_update(
        index_elements=[models.c.id],
        set_={name: statement.excluded[name] for name in lineage},
        where=unknown & (models.c.provider == model.provider) & (statement.excluded.job_id != ""),
    )
    return None if tx.execute(adopted).rowcount else model_at(tx, model.id)


def complete(tx: Connection, project: str, job_id: str, training_sha256: str, validation_sha256: str | None) -> None:
    """Gives an imported job the data that it came without, and its models."""
    mine = (jobs.c.project_id == project) & (jobs.c.id == job_id) & (jobs.c.imported == 1)
    data = {"training_sha256": training_sha256, "validation_sha256": validation_sha256}
    tx.execute(update(jobs).where(mine, jobs.c.training_sha256 == "").values(data))
    of_job = (models.c.project_id == project) & (models.c.job_id == job_id) & (models.c.data_sha256 == "")
    tx.execute(update(models).where(of_job).values(data_sha256=training_sha256))


def _values(found: Import) -> dict[str, Any]:
    values = asdict(found) | {"problems": list(found.problems)}
    del values["seq"]
    return values


def _import(row: Row[Any]) -> Import:
    return Import(
        seq=row.seq,
        id=row.id,
        project_id=row.project_id,
        created_at=row.created_at,
        provider=row.provider,
        state=ImportState(row.state),
        counts=ImportCounts(**row.counts),
        problems=tuple(row.problems),
        error=row.error,
        finished_at=row.finished_at,
    )
