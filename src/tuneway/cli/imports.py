"""`tuneway import`: what is at another vendor, read into the gateway before the vendor closes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneway.cli.client import gateway
from tuneway.cli.exits import Exit, Failure
from tuneway.cli.options import DEFAULT_MODEL, Json, Url
from tuneway.cli.output import document, lines, note
from tuneway.cli.watch import AWAY_SECONDS, LINE_SECONDS, PATIENCE_SECONDS, extension

if TYPE_CHECKING:
    from openai import OpenAI

app = typer.Typer(help="Bring what is at a vendor into the gateway.", no_args_is_help=True)

PATH = "/tuneway/imports"
LOOK_SECONDS = 0.5
Answer = dict[str, Any]

Provider = Annotated[str, typer.Option("--provider", metavar="NAME", help="The account to read, as it is called here.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until everything is read.")]


# A callback keeps this a group of commands, with one so far.
@app.callback()
def group() -> None:
    pass


@app.command("openai")
def import_openai(provider: Provider = "openai", wait: Wait = True, url: Url = None, as_json: Json = False) -> None:
    """Read an OpenAI account: files, jobs, events, checkpoints and tuned models. Nothing is changed there.

    Running it again reads what is new.
    """
    with gateway(url) as client:
        found = client.post(PATH, body={"provider": provider}, cast_to=Answer)
        if wait:
            note(f"{found['id']} reads the account {provider}; it goes on in the gateway when this command ends.")
            found = _wait(client, found)
        example = None if as_json or found["state"] != "done" else _trained_there(client, provider)
    if as_json:
        document(found)
        raise typer.Exit(Exit.FAILED if found["state"] == "failed" else Exit.OK)
    if found["state"] == "running":
        note("`tuneway import openai` waits for it.")
        return typer.echo(found["id"])
    _report(found)
    if found["state"] == "failed":
        raise Failure(found["error"], hint="What was read is kept. `tuneway import openai` reads the rest.")
    if found["counts"]["still_running"]:
        typer.echo(f"\n{found['counts']['still_running']} jobs have not ended there yet; import again when they have.")
    next_step = "tuneway jobs list"
    if example is not None:
        next_step = f"tuneway retrain {example} --provider local --model {DEFAULT_MODEL}"
    typer.echo(f"\nNext: {next_step}")


def _wait(client: OpenAI, found: Answer) -> Answer:
    """The import when it has ended; shows how far it is, and outlasts a restart of the gateway."""
    from openai import APIConnectionError, InternalServerError

    shown, shown_at, away = "", 0.0, None
    try:
        while found["state"] == "running":
            time.sleep(LOOK_SECONDS if away is None else AWAY_SECONDS)
            try:
                found = client.get(f"{PATH}/{found['id']}", cast_to=Answer)
                away = None
            except (APIConnectionError, InternalServerError):
                if away is None:
                    away = time.monotonic()
                    note(f"The gateway does not answer; asking again for {PATIENCE_SECONDS:.0f} s.")
                if time.monotonic() - away > PATIENCE_SECONDS:
                    raise
                continue
            said = _so_far(found["counts"])
            if said != shown and (time.monotonic() - shown_at >= LINE_SECONDS):
                shown, shown_at = said, time.monotonic()
                note(said)
    except KeyboardInterrupt:
        raise Failure(
            f"Stopped waiting for {found['id']}. It goes on.",
            hint="`tuneway import openai` waits for it again.",
            code=Exit.INTERRUPTED,
        ) from None
    return found


def _trained_there(client: OpenAI, provider: str) -> str | None:
    """The newest job that has succeeded at the account, among the newest hundred."""
    for job in client.fine_tuning.jobs.list(limit=100).data:
        if job.status == "succeeded" and extension(job).get("provider") == provider:
            return job.id
    return None


def _so_far(counts: Answer) -> str:
    return f"{counts['files']} files ({_size(counts['bytes'])}), {counts['jobs']} jobs, {counts['models']} models"


def _report(found: Answer) -> None:
    counts = found["counts"]
    names = ("jobs", "events", "checkpoints", "models", "files")
    rows: list[tuple[str, object]] = [(name, counts[name]) for name in names]
    rows += [("bytes of files", _size(counts["bytes"])), ("here before", counts["skipped"])]
    lines(("WHAT", "READ"), rows)
    if found["problems"]:
        typer.echo("\nProblems:")
        for problem in found["problems"]:
            typer.echo(f"  {problem}")


def _size(number: int) -> str:
    size, units = float(number), ["B", "kB", "MB", "GB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"
