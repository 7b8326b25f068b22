"""`tuneway jobs`: what is training, what has trained."""

from typing import Annotated, Any

import typer

from tuneway.cli.client import gateway
from tuneway.cli.options import JobId, Json, Limit, Url
from tuneway.cli.output import document, facts, lines, when, wire
from tuneway.cli.watch import conclude, extension, figures, state, watch

app = typer.Typer(help="List, watch, pause and cancel fine-tuning jobs.", no_args_is_help=True)


ProviderJob = Annotated[
    str, typer.Argument(metavar="PROVIDER_JOB", help="What the provider calls the job.", show_default=False)
]


@app.command("list")
def list_jobs(limit: Limit = 20, url: Url = None, as_json: Json = False) -> None:
    """List jobs, newest first."""
    with gateway(url) as client:
        page = client.fine_tuning.jobs.list(limit=limit)
    if as_json:
        return document(wire(page))
    rows = [(job.id, state(job), job.model, when(job.created_at), job.fine_tuned_model) for job in page.data]
    lines(("ID", "STATE", "BASE", "CREATED", "MODEL"), rows)


@app.command()
def show(job: JobId, url: Url = None, as_json: Json = False) -> None:
    """Show one job."""
    with gateway(url) as client:
        found = client.fine_tuning.jobs.retrieve(job)
        if as_json:
            return document(wire(found))
        checkpoints = client.fine_tuning.jobs.checkpoints.list(job).data
    more = extension(found)
    progress, waits = more.get("progress"), more.get("attention") or {}
    used = found.hyperparameters
    facts(
        [
            ("id", found.id),
            ("state", state(found)),
            ("provider", more.get("provider")),
            ("provider's job", more.get("provider_job_id")),
            ("base", found.model),
            ("model", found.fine_tuned_model),
            ("training file", found.training_file),
            ("validation file", found.validation_file),
            ("epochs", used.n_epochs),
            ("batch size", used.batch_size),
            ("learning rate multiplier", used.learning_rate_multiplier),
            ("seed", found.seed),
            ("created", when(found.created_at)),
            ("finished", when(found.finished_at)),
            ("trained tokens", found.trained_tokens),
            ("result file", ", ".join(found.result_files) or None),
            ("progress", progress and f"step {progress['step']}/{progress['total_steps']}  {figures(progress)}"),
            ("error", found.error and found.error.message),
            ("waits for you", waits.get("reason")),
        ]
    )
    if waits:
        typer.echo()
        rows = [(one["provider_job_id"], when(one["created_at"]), one["status"]) for one in waits["candidates"]]
        lines(("IT MAY BE", "CREATED", "STATUS"), rows)
    if checkpoints:
        typer.echo()
        lines(("STEP", "CHECKPOINT"), [(one.step_number, one.fine_tuned_model_checkpoint) for one in checkpoints])


@app.command("watch")
def watch_job(job: JobId, url: Url = None, as_json: Json = False) -> None:
    """Follow a job until it ends; exits 0, 4 (failed) or 5 (cancelled)."""
    with gateway(url) as client:
        ended = watch(client, job)
    code = conclude(ended, as_json=as_json)
    if not as_json:
        typer.echo(" ".join(filter(None, (ended.id, ended.status, ended.fine_tuned_model))))
    raise typer.Exit(code)


@app.command()
def pause(job: JobId, url: Url = None, as_json: Json = False) -> None:
    """Pause a job: it saves its work and gives its place to another."""
    with gateway(url) as client:
        paused = client.fine_tuning.jobs.pause(job)
    document(wire(paused)) if as_json else typer.echo(f"{paused.id} {state(paused)}")


@app.command()
def resume(job: JobId, url: Url = None, as_json: Json = False) -> None:
    """Resume a paused job, from where it stopped."""
    with gateway(url) as client:
        resumed = client.fine_tuning.jobs.resume(job)
    document(wire(resumed)) if as_json else typer.echo(f"{resumed.id} {state(resumed)}")


@app.command()
def cancel(job: JobId, url: Url = None, as_json: Json = False) -> None:
    """Cancel a job."""
    with gateway(url) as client:
        cancelled = client.fine_tuning.jobs.cancel(job)
    document(wire(cancelled)) if as_json else typer.echo(f"{cancelled.id} {state(cancelled)}")


@app.command()
def adopt(job: JobId, provider_job: ProviderJob, url: Url = None, as_json: Json = False) -> None:
    """Say which of the provider's jobs a job that waits for you is."""
    _adopt(job, provider_job, url, as_json=as_json)


@app.command()
def relaunch(job: JobId, url: Url = None, as_json: Json = False) -> None:
    """Say that a job that waits for you is none of the provider's jobs; it is started."""
    _adopt(job, None, url, as_json=as_json)


def _adopt(job: str, provider_job: str | None, url: Url, *, as_json: bool) -> None:
    with gateway(url) as client:
        body = {"provider_job_id": provider_job}
        adopted = client.post(f"/tuneway/jobs/{job}/adopt", body=body, cast_to=dict[str, Any])
    document(adopted) if as_json else typer.echo(f"{adopted['id']} {adopted['tuneway']['state']}")
