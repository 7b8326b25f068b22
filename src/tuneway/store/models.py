"""Tuned models and checkpoints: rows of `models` and `checkpoints`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, select, update
from sqlalchemy.dialects.sqlite import insert as insert_or_ignore

from tuneway.store.schema import checkpoints, models
from tuneway.types import Checkpoint, Deployment, Hyperparameters, Model, Page


def insert(tx: Connection, model: Model) -> None:
    """Stores the model; storing the same name again only moves it to its new `upstream_model` and `deployment`."""
    values = asdict(model) | {"imported": int(model.imported)}
    del values["seq"]
    statement = insert_or_ignore(models).values(values)
    moved = {name: statement.excluded[name] for name in ("upstream_model", "deployment")}
    tx.execute(statement.on_conflict_do_update(index_elements=[models.c.id], set_=moved))


def get(tx: Connection, project: str, name: str) -> Model | None:
    row = tx.execute(_alive(project).where(models.c.id == name)).one_or_none()
    return None if row is None else _model(row)


def belongs_to_others(tx: Connection, project: str, provider: str, upstream: str) -> bool:
    """Whether what the provider calls `upstream` was tuned by other projects, and not by this one."""
    called = (models.c.upstream_model == upstream) | (models.c.deployment["name"].as_string() == upstream)
    owners = set(tx.scalars(select(models.c.project_id).where(models.c.provider == provider, called)))
    return bool(owners) and project not in owners


def every(tx: Connection, project: str) -> list[Model]:
    """All models of the project, newest first."""
    return [_model(row) for row in tx.execute(_alive(project).order_by(models.c.seq.desc()))]


def delete(tx: Connection, project: str, name: str, now: int) -> Model | None:
    """Marks the model deleted and returns what it was; None when there was none."""
    model = get(tx, project, name)
    if model is not None:
        tx.execute(update(models).where(models.c.seq == model.seq).values(deleted_at=now))
    return model


def insert_checkpoint(tx: Connection, project: str, checkpoint: Checkpoint) -> bool:
    """Stores the checkpoint; False when this step of the job is stored already."""
    values = asdict(checkpoint) | {"project_id": project, "metrics": dict(checkpoint.metrics)}
    del values["seq"]
    statement = insert_or_ignore(checkpoints).values(values)
    return bool(tx.execute(statement.on_conflict_do_nothing(index_elements=["job_id", "step_number"])).rowcount)


def checkpoint_page(
    tx: Connection, project: str, job_id: str, *, after: str | None, limit: int
) -> Page[Checkpoint] | None:
    """One page, highest step first; None when `after` is no checkpoint of the job."""
    query = (
        select(checkpoints)
        .where(checkpoints.c.project_id == project, checkpoints.c.job_id == job_id)
        .order_by(checkpoints.c.step_number.desc())
        .limit(limit + 1)
    )
    if after is not None:
        of_job = select(checkpoints.c.step_number).where(checkpoints.c.job_id == job_id, checkpoints.c.id == after)
        step = tx.scalar(of_job)
        if step is None:
            return None
        query = query.where(checkpoints.c.step_number < step)
    rows = tx.execute(query).all()
    return Page(tuple(_checkpoint(row) for row in rows[:limit]), len(rows) > limit)


def retire_checkpoints(tx: Connection, project: str, job_id: str, *, keep: int, now: int) -> list[Model]:
    """Deletes all but the newest `keep` checkpoints of the job with their models, which are returned."""
    mine = select(checkpoints).where(checkpoints.c.project_id == project, checkpoints.c.job_id == job_id)
    retired = []
    for row in tx.execute(mine.order_by(checkpoints.c.step_number.desc()).offset(keep)).all():
        tx.execute(checkpoints.delete().where(checkpoints.c.seq == row.seq))
        model = delete(tx, project, row.model, now)
        if model is not None:
            retired.append(model)
    return retired


def _alive(project: str) -> Any:
    return select(models).where(models.c.project_id == project, models.c.deleted_at.is_(None))


def _model(row: Row[Any]) -> Model:
    hyperparameters: Mapping[str, Any] = row.hyperparameters
    return Model(
        seq=row.seq,
        id=row.id,
        project_id=row.project_id,
        created_at=row.created_at,
        provider=row.provider,
        base=row.base,
        job_id=row.job_id,
        upstream_model=row.upstream_model,
        step_number=row.step_number,
        data_sha256=row.data_sha256,
        hyperparameters=Hyperparameters(**hyperparameters),
        deployment=None if row.deployment is None else Deployment(**row.deployment),
        imported=bool(row.imported),
    )


def _checkpoint(row: Row[Any]) -> Checkpoint:
    return Checkpoint(
        seq=row.seq,
        id=row.id,
        job_id=row.job_id,
        created_at=row.created_at,
        step_number=row.step_number,
        metrics=row.metrics,
        model=row.model,
    )
