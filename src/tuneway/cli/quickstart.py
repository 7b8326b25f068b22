"""`tuneway quickstart`: from nothing to a tuned model that answers better, with a gateway of its own."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneway.cli.child import GatewayProcess
from tuneway.cli.client import gateway
from tuneway.cli.comparison import AT_ONCE, Row, Score, ask, read_rows, score, shown
from tuneway.cli.exits import Exit, Failure
from tuneway.cli.files import send
from tuneway.cli.options import DEFAULT_MODEL, Json
from tuneway.cli.output import document, duration, lines, note
from tuneway.cli.recipe import Recipe
from tuneway.cli.signals import Interrupted, Signals
from tuneway.cli.tune import create
from tuneway.cli.watch import display, follow
from tuneway.types import TERMINAL_STATUSES

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

TRAIN, VALID, TEST = "support_train.jsonl", "support_valid.jsonl", "support_test.jsonl"
SUFFIX = "support"
SEED = 7
HYPERPARAMETERS: Mapping[str, int | float] = {"n_epochs": 2, "batch_size": 6}
"""What differs from `auto`: it keeps a laptop under six minutes. Five epochs take twice as long and answer better."""
SAMPLES = 3
LONGEST_SHOWN = 160
"""Characters of an answer in the table; an untuned model can go on for long."""

Folder = Annotated[Path, typer.Option("--data", metavar="DIR", help="Where the gateway keeps its state.")]
Examples = Annotated[
    Path | None,
    typer.Option("--examples", metavar="DIR", help=f"Folder with {TRAIN} and its siblings [default: ours]."),
]
Base = Annotated[str, typer.Option("--model", help="The base model.")]
Again = Annotated[bool, typer.Option("--again", help="Train again, even if a model was already tuned on this data.")]
Running = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="Use a gateway that runs instead of starting one.")
]


@dataclass(frozen=True, slots=True)
class Outcome:
    recipe: Recipe
    trained: bool
    base: Score
    tuned: Score
    samples: list[dict[str, Any]]


def quickstart(
    data: Folder = Path(".quickstart"),
    examples: Examples = None,
    model: Base = DEFAULT_MODEL,
    again: Again = False,
    url: Running = None,
    as_json: Json = False,
) -> None:
    """Fine-tune the sample data and compare with the base.

    Starts a gateway on a free port for as long as it runs. Ctrl-C leaves nothing running; the next call reuses the
    uploaded files and goes on with the job, or uses the model that it made.
    """
    started = time.monotonic()
    folder = examples or examples_folder()
    here = Path.cwd()
    folder = folder.relative_to(here) if folder.is_relative_to(here) else folder
    rows = read_rows(folder / TEST)
    signals = Signals()
    try:
        with signals.handled(), running(url, data.absolute(), signals) as at:
            outcome = tune_and_compare(at, folder, rows, model, again=again)
    except Interrupted as interrupted:
        note("\nStopped; nothing is left running. The next `tuneway quickstart` goes on from here.")
        raise typer.Exit(128 + interrupted.number) from None
    seconds = time.monotonic() - started
    peak = peak_memory() if url is None else None
    if as_json:
        return document(
            {**asdict(outcome), "url": url, "data": str(data), "seconds": round(seconds, 1), "peak_memory_bytes": peak}
        )
    present(outcome)
    typer.echo(outcome.recipe.text(folder, data=None if url else data, url=url))
    memory = "" if peak is None else f"; the largest process took {peak / 2**30:.2f} GiB"
    note(f"\nDone in {duration(seconds)}{memory}.")


@contextmanager
def running(url: str | None, data: Path, signals: Signals) -> Iterator[str]:
    """The URL of a gateway: the one given, or one that runs for the length of the block."""
    if url is not None:
        yield url
        return
    note(f"Starting a gateway on this machine; its state is in {data}")
    command = [sys.executable, "-m", "tuneway", "serve", "--port", "0", "--data", str(data), "--json", "--stop-on-eof"]
    with GatewayProcess(command, data, signals) as child:
        note(f"The gateway is ready at {child.url}")
        try:
            yield child.url
        except Failure as failure:
            failure.hint = f"The gateway's log is {child.log}; `tuneway doctor` checks this machine. Then try again."
            raise


def tune_and_compare(url: str, folder: Path, rows: Sequence[Row], base: str, *, again: bool) -> Outcome:
    """Uploads, trains and asks, with the official client; reuses files and a model that are there already."""
    with gateway(url) as client:
        train, valid = (uploaded(client, folder / name) for name in (TRAIN, VALID))
        job = None if again else earlier(client, base, train, valid)
        trained = job is None or job.status not in TERMINAL_STATUSES
        if job is None:
            job = create(
                client,
                model=base,
                training_file=train,
                validation_file=valid,
                suffix=SUFFIX,
                seed=SEED,
                hyperparameters=HYPERPARAMETERS,
            )
            note(f"Created {job.id}: {base} learns from {TRAIN}")
        else:
            note(f"Found {job.id} on the same data" + (", still at work" if trained else "; --again trains anew"))
        if trained:
            with display() as to:
                job = follow(client, job.id, to)
        tuned = finished(job)
        note(f"Asking {base} and {tuned} the same {len(rows)} held-out messages, {AT_ONCE} at a time")
        with display() as to:
            asked = client.with_options(max_retries=0)
            plain, better = ask(asked, base, rows, "base answers", to), ask(asked, tuned, rows, "tuned answers", to)
    samples = [
        {"message": rows[i].text, "expected": rows[i].expected, "base": plain[i], "tuned": better[i]}
        for i in shown(rows, SAMPLES)
    ]
    recipe = Recipe(base, train, valid, SUFFIX, SEED, HYPERPARAMETERS, job.id, tuned, rows[0].messages)
    return Outcome(recipe, trained, score(rows, plain), score(rows, better), samples)


def examples_folder() -> Path:
    """The sample data: packaged in a wheel, or at the root of a checkout."""
    here = Path(__file__).resolve()
    for folder in (here.parents[1] / "examples", here.parents[3] / "examples"):
        if (folder / TRAIN).exists():
            return folder
    raise Failure("The sample data is not here.", hint="--examples DIR names the folder with it.", code=Exit.USAGE)


def uploaded(client: OpenAI, path: Path) -> str:
    """The id of the file at the gateway; uploads it unless the same bytes are there under its name."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}.", code=Exit.USAGE) from error
    for file in client.files.list(purpose="fine-tune"):
        if (file.filename, file.bytes) == (path.name, len(content)):
            there = hashlib.sha256(client.files.content(file.id).content)
            if there.digest() == hashlib.sha256(content).digest():
                note(f"{path.name} is already there as {file.id}")
                return file.id
    sent = send(client, path)
    note(f"Uploaded {path.name} as {sent.id}")
    return sent.id


def earlier(client: OpenAI, base: str, train: str, valid: str) -> FineTuningJob | None:
    """The newest job on the same files and base that is at work, or whose model still exists."""
    models = {model.id for model in client.models.list()}
    for job in client.fine_tuning.jobs.list():
        same = (job.model, job.training_file, job.validation_file) == (base, train, valid)
        if same and (job.status not in TERMINAL_STATUSES or job.fine_tuned_model in models):
            return job
    return None


def finished(job: FineTuningJob) -> str:
    """The name of the tuned model. Raises Failure when the job ended without one."""
    if job.fine_tuned_model is not None:
        return job.fine_tuned_model
    if job.status == "cancelled":
        raise Failure(f"{job.id} was cancelled.", code=Exit.JOB_CANCELLED)
    reason = job.error.message if job.error else "no reason was given"
    raise Failure(f"{job.id} failed: {reason}", code=Exit.JOB_FAILED)


def present(outcome: Outcome) -> None:
    """Both accuracies, and the sample rows side by side, on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    total = outcome.base.rows
    names = (("category exactly right", "category"), ("valid JSON", "valid_json"), ("all four keys right", "all_keys"))
    measured = []
    for title, field in names:
        counts = (getattr(outcome.base, field), getattr(outcome.tuned, field))
        measured.append((title, *(f"{count:>3} of {total}  {count / total:>4.0%}" for count in counts)))
    typer.echo()
    lines(("HELD-OUT MESSAGES", "BASE", "TUNED"), measured)
    typer.echo()
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    table = Table(show_lines=True)
    for title in ("message", "base", "tuned"):
        table.add_column(title, overflow="fold", ratio=1)
    for sample in outcome.samples:
        asked = f"{sample['message']}\n\nexpected: {json.dumps(sample['expected'], ensure_ascii=False)}"
        answers = (" ".join(sample[name].split()) for name in ("base", "tuned"))
        cut = (text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + " ..." for text in answers)
        table.add_row(*(Text(text) for text in (asked, *cut)))
    console.print(table)


def peak_memory() -> int:
    """Peak resident bytes of the largest process below this one that has ended: the trainer, when one ran."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
