"""What a job leaves behind: its checkpoints and its tuned model, which are models, and its result file."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from tuneway import ids
from tuneway.blobs import Blobs, Receiving
from tuneway.store import Tx
from tuneway.store import models as model_rows
from tuneway.types import Checkpoint, File, Hyperparameters, Job, Model, NewEvent, ProviderCheckpoint

RESULT_PURPOSE = "fine-tune-results"
RESULT_NAME = "step_metrics.csv"


def publish(tx: Tx, job: Job, found: ProviderCheckpoint) -> list[NewEvent]:
    """Makes a checkpoint a model one can chat with. The last one bears the name of the tuned model."""
    name = job.planned_model
    if not found.final:
        name = f"{ids.tuned_model(job.spec.model, job.project_id, job.spec.suffix)}:ckpt-step-{found.step_number}"
    checkpoint = Checkpoint(
        seq=0,
        id=ids.checkpoint_id(),
        job_id=job.id,
        created_at=found.created_at,
        step_number=found.step_number,
        metrics=found.metrics,
        model=name,
    )
    if not model_rows.insert_checkpoint(tx, job.project_id, checkpoint):
        return []
    model_rows.insert(tx, model_of(job, name, found.upstream_model, found.step_number, found.created_at))
    if found.final:
        return []
    message = f"Checkpoint created at step {found.step_number} with Snapshot ID: {name}"
    return [NewEvent(f"published:{found.step_number}", message, found.created_at)]


def model_of(job: Job, name: str, upstream_model: str, step_number: int | None, created_at: int) -> Model:
    return Model(
        seq=0,
        id=name,
        project_id=job.project_id,
        created_at=created_at,
        provider=job.spec.provider,
        base=job.spec.model,
        job_id=job.id,
        upstream_model=upstream_model,
        step_number=step_number,
        data_sha256=job.training_sha256,
        hyperparameters=job.resolved or Hyperparameters(),
    )


def result_file(job: Job, csv: Receiving) -> File:
    return File(
        seq=0,
        id=ids.file_id(),
        project_id=job.project_id,
        created_at=int(time.time()),
        filename=RESULT_NAME,
        purpose=RESULT_PURPOSE,
        bytes=csv.bytes,
        sha256=csv.sha256,
    )


async def receive(blobs: Blobs, csv: Path | bytes) -> Receiving:
    received = blobs.receive(limit=2**40)
    try:
        await received.write(csv if isinstance(csv, bytes) else await asyncio.to_thread(csv.read_bytes))
        await received.sync()
    except BaseException:
        await received.discard()
        raise
    return received
