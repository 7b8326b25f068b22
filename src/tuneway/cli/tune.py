"""`tuneway tune`: upload, create the job, watch it, print the model's name."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneway.cli.client import gateway
from tuneway.cli.files import send
from tuneway.cli.options import DEFAULT_MODEL, Json, Url
from tuneway.cli.output import document, note, wire
from tuneway.cli.watch import conclude, watch

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

Examples = Annotated[
    str,
    typer.Argument(metavar="FILE", help="A JSONL file of examples, or the id of an uploaded one.", show_default=False),
]
Base = Annotated[str, typer.Option("--model", help="The base model, or a tuned model to go on from.")]
Validation = Annotated[str | None, typer.Option("--validation", metavar="FILE", help="Examples to validate with.")]
Suffix = Annotated[str | None, typer.Option("--suffix", help="A part of the new model's name.")]
Epochs = Annotated[int | None, typer.Option("--epochs", min=1, help="Passes over the file [default: auto].")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, help="Examples per step [default: auto].")]
Rate = Annotated[
    float | None,
    typer.Option("--learning-rate-multiplier", help="Scales the base model's learning rate [default: auto]."),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Makes the job repeatable [default: random].")]
Detach = Annotated[bool, typer.Option("--detach", help="Print the job's id and do not wait.")]


def tune(
    file: Examples,
    model: Base = DEFAULT_MODEL,
    validation: Validation = None,
    suffix: Suffix = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate_multiplier: Rate = None,
    seed: Seed = None,
    detach: Detach = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a model on FILE; prints the tuned model's name."""
    asked = {"n_epochs": epochs, "batch_size": batch_size, "learning_rate_multiplier": learning_rate_multiplier}
    with gateway(url) as client:
        job = create(
            client,
            model=model,
            training_file=file_id(client, file),
            validation_file=validation and file_id(client, validation),
            suffix=suffix,
            seed=seed,
            hyperparameters={name: value for name, value in asked.items() if value is not None},
        )
        if detach:
            return document(wire(job)) if as_json else typer.echo(job.id)
        note(f"Created {job.id}")
        ended = watch(client, job.id)
    code = conclude(ended, as_json=as_json)
    if not as_json and ended.fine_tuned_model:
        typer.echo(ended.fine_tuned_model)
    raise typer.Exit(code)


def file_id(client: OpenAI, named: str) -> str:
    """The id of a local file, after uploading it, or of an uploaded one."""
    path = Path(named)
    if named.startswith("file-") and not path.exists():
        return named
    uploaded = send(client, path)
    note(f"Uploaded {path} as {uploaded.id}")
    return uploaded.id


def create(
    client: OpenAI,
    *,
    model: str,
    training_file: str,
    validation_file: str | None,
    suffix: str | None,
    seed: int | None,
    hyperparameters: Mapping[str, int | float],
) -> FineTuningJob:
    """Creates the job, once: the client's own retries carry the same idempotency key."""
    from openai import omit
    from openai.types.fine_tuning.supervised_hyperparameters_param import SupervisedHyperparametersParam

    used: SupervisedHyperparametersParam = {**hyperparameters}  # type: ignore[typeddict-item]  # names are ours
    return client.fine_tuning.jobs.create(
        model=model,
        training_file=training_file,
        validation_file=validation_file or omit,
        suffix=suffix or omit,
        seed=omit if seed is None else seed,
        method={"type": "supervised", "supervised": {"hyperparameters": used}} if hyperparameters else omit,
        extra_headers={"Idempotency-Key": str(uuid.uuid4())},
    )
