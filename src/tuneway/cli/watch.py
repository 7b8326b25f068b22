"""Following a job: its progress and new events, on a live bar or as plain lines, through restarts of the gateway."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

from tuneway.cli.exits import Exit, Failure
from tuneway.cli.output import document, duration, note, wire
from tuneway.types import TERMINAL_STATUSES

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob
    from rich.progress import Progress, TaskID

LOOK_SECONDS = 1.0
"""How often, at most, the job itself is read for its speed and the time that is left."""
AWAY_SECONDS = 1.0
"""How long to wait before a gateway that is away is asked again."""
SILENCE_SECONDS = 40.0
"""A gateway that sends nothing for so long is away: an idle stream has a comment every 15 seconds."""
PATIENCE_SECONDS = 120.0
"""How long a gateway may be away, for a restart, before watching gives up."""
LINE_SECONDS = 5.0
"""Plain lines of progress are at least this far apart."""


class Display(Protocol):
    """Where progress is shown."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def say(self, text: str) -> None:
        """A line that stays."""

    def advance(self, what: str, done: int, total: int | None, figures: str = "") -> None:
        """`done` of `total` of `what`; a total of None is not known yet."""


class Bar:
    """A live bar for a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[figures]}", markup=False),
        )
        self._progress: Progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task: TaskID = self._progress.add_task("", total=None, visible=False, figures="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def advance(self, what: str, done: int, total: int | None, figures: str = "") -> None:
        count = "" if total is None else f"{done}/{total}  "
        self._progress.update(
            self._task, description=what, completed=done, total=total, figures=count + figures, visible=True
        )


class Lines:
    """Plain lines, for logs and pipes."""

    def __init__(self) -> None:
        self._last: tuple[str, int] | None = None
        self._at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def say(self, text: str) -> None:
        note(text)

    def advance(self, what: str, done: int, total: int | None, figures: str = "") -> None:
        now = time.monotonic()
        due = now - self._at >= LINE_SECONDS or done == total
        if total is None or not due or self._last == (what, done):
            return
        self._last, self._at = (what, done), now
        note(f"{what} {done}/{total}  {figures}".rstrip())


def display() -> Display:
    """A live bar when stderr is a terminal, else plain lines."""
    from rich.console import Console

    return Bar() if Console(stderr=True).is_terminal else Lines()


def extension(job: FineTuningJob) -> Mapping[str, Any]:
    """The object `tuneway` of a job: exact state, provider, progress."""
    return (job.model_extra or {}).get("tuneway") or {}


def state(job: FineTuningJob) -> str:
    """The exact state, where the gateway says it."""
    return str(extension(job).get("state") or job.status)


def figures(progress: Mapping[str, Any]) -> str:
    """Loss, validation loss, tokens per second and time left, as far as they are known."""
    shown = (
        ("loss {:.3f}", progress.get("train_loss")),
        ("valid {:.3f}", progress.get("valid_loss")),
        ("{:.0f} tok/s", progress.get("tokens_per_second")),
    )
    parts = [form.format(value) for form, value in shown if value is not None]
    if (left := progress.get("seconds_left")) is not None:
        parts.append(f"{duration(left)} left")
    return "  ".join(parts)


def follow(client: OpenAI, job_id: str, to: Display) -> FineTuningJob:
    """Shows the job until it has ended; the job as it was last read.

    A gateway that is away is asked again for `PATIENCE_SECONDS`; then its connection error is raised.
    """
    import httpx2
    from openai import APIConnectionError, InternalServerError

    watching = _Watching(client.with_options(max_retries=0, timeout=SILENCE_SECONDS), job_id, to)
    while True:
        try:
            ended = watching.show_events()
            job = watching.look()
            if ended or job.status in TERMINAL_STATUSES:
                return job
        except (APIConnectionError, InternalServerError, httpx2.TransportError) as error:
            if watching.away is None:
                watching.away = time.monotonic()
                to.say(f"The gateway does not answer; asking again for {PATIENCE_SECONDS:.0f} s.")
            if time.monotonic() - watching.away > PATIENCE_SECONDS:
                if isinstance(error, httpx2.TransportError):  # in the middle of an answer; the client does not wrap it
                    raise APIConnectionError(request=error.request) from error
                raise
        time.sleep(AWAY_SECONDS)


class _Watching:
    """What of a job has been shown, from one connection to the next; since when the gateway has been `away`."""

    def __init__(self, client: OpenAI, job_id: str, to: Display) -> None:
        self._client = client
        self._job_id = job_id
        self._to = to
        self.away: float | None = None
        self._newest: str | None = None
        self._progress: Mapping[str, Any] = {}
        self._looked: float | None = None

    def look(self) -> FineTuningJob:
        """Reads the job and shows how far it is."""
        job = self._client.fine_tuning.jobs.retrieve(self._job_id)
        self._looked = time.monotonic()
        if progress := extension(job).get("progress"):
            self._advance(progress)
        elif job.status not in TERMINAL_STATUSES:
            self._to.advance(state(job).replace("_", " "), 0, None)
        return job

    def show_events(self) -> bool:
        """Shows new events as they come; whether the gateway said that these were all."""
        for event in self._events():
            if event is None:
                return True
            self._newest = event["id"]
            data = event.get("data") or {}
            if event["type"] == "metrics" and "total_steps" in data:
                known = ("step", "total_steps", "train_loss", "valid_loss")
                self._advance({**self._progress, **{name: data[name] for name in known if name in data}})
            elif event["type"] != "metrics":
                self._to.say(event["message"] if event["level"] == "info" else f"{event['level']}: {event['message']}")
            if self._looked is None or time.monotonic() - self._looked >= LOOK_SECONDS:
                self.look()
        return False

    def _events(self) -> Iterator[dict[str, Any] | None]:
        """The events after the newest that was seen, then None; a stream that broke off ends without None."""
        with self._client.fine_tuning.jobs.with_streaming_response.list_events(
            self._job_id,
            extra_query={"stream": "true"},
            extra_headers={} if self._newest is None else {"Last-Event-ID": self._newest},
        ) as response:
            if self.away is not None:
                self._to.say("The gateway answers again.")
                self.away = None
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    yield None
                elif line.startswith("data: "):
                    yield json.loads(line.removeprefix("data: "))

    def _advance(self, progress: Mapping[str, Any]) -> None:
        """Shows the progress, unless a later step was shown."""
        if progress["step"] >= self._progress.get("step", 0):
            self._progress = progress
            self._to.advance("step", progress["step"], progress["total_steps"], figures(progress))


def watch(client: OpenAI, job_id: str) -> FineTuningJob:
    """`follow` on the display that fits; Ctrl-C ends the watching and says that the job goes on."""
    try:
        with display() as to:
            return follow(client, job_id, to)
    except KeyboardInterrupt:
        raise Failure(
            f"Stopped watching {job_id}. The job goes on.",
            hint=f"`tuneway jobs watch {job_id}` watches it again, `tuneway jobs cancel {job_id}` stops it.",
            code=Exit.INTERRUPTED,
        ) from None


def conclude(job: FineTuningJob, *, as_json: bool) -> Exit:
    """Prints the job as a document if asked, says on stderr why it failed; the code to exit with."""
    if as_json:
        document(wire(job))
    if job.status == "failed":
        reason = job.error.message if job.error else "no reason was given"
        note(f"error: {job.id} failed: {reason}")
        return Exit.JOB_FAILED
    if job.status == "cancelled":
        note(f"{job.id} was cancelled.")
        return Exit.JOB_CANCELLED
    return Exit.OK
