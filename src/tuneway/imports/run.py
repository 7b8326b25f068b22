"""One import on its way: files first, then each job with all that belongs to it, then the models without a job.

Everything may be done again: what has its place is left alone. So an import that a crash cut off goes on by beginning
anew, and reads only what it has not.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TypeVar

from tuneway.blobs import Blobs, Receiving
from tuneway.errors import PayloadTooLarge, ProviderError, ProviderSilent
from tuneway.files import drop_unneeded, store_blob
from tuneway.imports import values
from tuneway.imports.reading import Account
from tuneway.providers.remote import CLOCK_SECONDS, MARK, SENT_DIGITS, SENT_NAME
from tuneway.providers.vendor import Json
from tuneway.store import Store, Tx
from tuneway.store import imports as rows
from tuneway.types import TERMINAL_STATUSES, Import, ImportCounts, ImportState, JobStatus, Method, Model

log = logging.getLogger("tuneway.imports")

A = TypeVar("A")
B = TypeVar("B")

RESULTS = "fine-tune-results"
PURPOSES = ("fine-tune", RESULTS)
AHEAD = 4
"""Requests under way: an answer takes its time, and the account has others to serve."""
LARGEST_FILE = 8 * 2**30
"""In bytes; the most that OpenAI takes, in parts."""
MOST_PROBLEMS = 100


class Run:
    """`found` as the store has it; a run that goes on where one was cut off has counts already."""

    def __init__(self, store: Store, blobs: Blobs, account: Account, found: Import) -> None:
        self._store = store
        self._blobs = blobs
        self._account = account
        self._found = found
        self._problems = [problem for problem in found.problems if not problem.startswith(_MORE)]
        self._unlisted = 0
        # What a run before this one has stored will be met again, and is not skipped for that.
        before = found.counts.jobs + found.counts.files
        self._counts = Counter(asdict(replace(found.counts, skipped=-before, still_running=0)))

    async def read(self) -> None:
        """Raises GaveUp, and TunewayError for what cannot be read or stored at all."""
        theirs, our_files = await self._jobs()
        await self._read_files(theirs, our_files)
        models = await self._account.models()
        await self._read_jobs(theirs, {str(model["id"]) for model in models})
        await self._read_models(models)

    async def end(self, error: str | None) -> None:
        """Stores that the import is over: done, or, for this reason, failed."""
        state = ImportState.DONE if error is None else ImportState.FAILED
        self._found = replace(self._found, state=state, error=error, finished_at=int(time.time()))
        await self._progress(Stored())

    async def _jobs(self) -> tuple[Sequence[Json], set[str]]:
        """The jobs that were not started by this gateway, oldest first, and the files of those that were.

        One that may be the launch which the gateway is about to find waits for another import: were it stored here as
        somebody else's, the gateway would take its launch for lost and start, and pay for, another.
        """
        listed = await self._account.jobs()
        marks = {str((job.get("metadata") or {}).get(MARK)) for job in listed}
        # Behind the list: a job that has come into it since its launch was intended is known by one of these.
        ours = await self._store.read(rows.ours, self._found.provider)
        marked = await self._store.read(rows.jobs_of, marks)
        since = None if ours.starting_since is None else ours.starting_since - CLOCK_SECONDS
        theirs, own = [], []
        for job in reversed(listed):
            if job["id"] in ours.jobs or (job.get("metadata") or {}).get(MARK) in marked:
                own.append(job)
            elif since is not None and (job.get("created_at") or since) >= since:
                self._note(f"{job['id']} may be a job that this gateway is starting; it waits for another import.")
            else:
                theirs.append(job)
        self._count(skipped=len(own))
        return theirs, {*roles(own), *ours.files}

    # ------------------------------------------------------------------------------------------------------- files

    async def _read_files(self, jobs: Sequence[Json], ours: set[str]) -> None:
        """The files of the account and those that `jobs` name, oldest first, without those that are the gateway's."""
        listed = [file for purpose in PURPOSES for file in reversed(await self._account.files(purpose))]
        named = roles(jobs)
        wanted = {
            str(file["id"]): file
            for file in listed
            if file["id"] in named or not (file["id"] in ours or await self._was_sent(file))
        }
        self._count(skipped=len(listed) - len(wanted))
        oldest_first = sorted(wanted.values(), key=lambda file: file.get("created_at") or 0)
        unlisted: list[Json] = [{"id": file_id} for file_id in named if file_id not in wanted]
        arriving = in_order([*unlisted, *oldest_first], self._download, drop=_discard)
        async with aclosing(arriving):
            async for arrived in arriving:
                try:
                    await self._store_file(arrived)
                except BaseException:
                    await _discard(arrived)
                    raise
                if arrived.problem is not None:
                    self._note(_about_file(arrived, named))
        await self._progress(Stored())

    async def _was_sent(self, file: Json) -> bool:
        """Whether a file bears the name that the gateway gives to what it sends, and its bytes are or were here."""
        sent = _SENT.fullmatch(str(file.get("filename")))
        return sent is not None and await self._store.read(rows.has_data, sent[1])

    async def _download(self, file: Json) -> Arrived:
        """The file, or the reason why there is none; neither where it is here."""
        file_id = str(file["id"])
        place = await self._store.read(rows.file_at, file_id)
        if place is not None:
            elsewhere = None if place.project == self._found.project_id else _ELSEWHERE
            return Arrived(file, problem=elsewhere, is_here=elsewhere is None)
        try:
            if len(file) == 1:
                file = {**await self._account.file(file_id), **file}
            received, problem = await self._bytes(file)
        except (ProviderError, ProviderSilent, PayloadTooLarge) as error:
            if isinstance(error, ProviderError) and error.status == 401:
                raise
            return Arrived(file, problem=f"cannot be read at {self._account.name}: {_sentence(error.message)}")
        return Arrived(file, received, problem)

    async def _bytes(self, file: Json) -> tuple[Receiving, str | None]:
        """What came, and what is odd about it."""
        file_id, table = str(file["id"]), file.get("purpose") == RESULTS

        def receive() -> Receiving:
            return self._blobs.receive(LARGEST_FILE)

        try:
            received = await self._account.download(file_id, receive, table=table)
        except ValueError as error:
            received = await self._account.download(file_id, receive, table=False)
            return received, f"was stored as it came: {error}."
        size = file.get("bytes")
        if not table and isinstance(size, int) and size != received.bytes:
            return received, f"has {size} bytes at {self._account.name}, of which {received.bytes} came."
        return received, None

    async def _store_file(self, arrived: Arrived) -> None:
        if arrived.is_here:
            self._count(skipped=1)
        if arrived.received is None:
            return
        file = values.file(arrived.file, arrived.received, project=self._found.project_id)

        def insert(tx: Tx) -> Stored:
            if rows.insert_file(tx, file):
                return Stored({"files": 1, "bytes": file.bytes})
            drop_unneeded(tx, self._blobs, [file.sha256])
            return Stored()

        self._take(await store_blob(self._store, self._blobs, arrived.received, self._saving(insert)))

    # -------------------------------------------------------------------------------------------------------- jobs

    async def _read_jobs(self, jobs: Sequence[Json], models: set[str]) -> None:
        """Oldest first, each whole or not at all. `models` are those that the account still has."""
        ended = []
        for job in jobs:
            if JobStatus(job["status"]) in TERMINAL_STATUSES:
                ended.append(job)
                continue
            self._count(still_running=1)
            if word := job["tuneway"].get("unknown_status"):
                self._note(f"{job['id']} is '{word}', which this gateway does not know; it waits for another import.")
        arriving = in_order(ended, self._histories)
        async with aclosing(arriving):
            async for history in arriving:
                if history is not None:
                    insert = partial(self._insert_job, history=history, models=models)
                    self._take(await self._store.write(self._saving(insert)))
        await self._progress(Stored())

    async def _histories(self, job: Json) -> History | None:
        """A job's events and checkpoints; None for one that has its place."""
        job_id = str(job["id"])
        place = await self._store.read(rows.job_at, job_id)
        if place is not None:
            if place.project != self._found.project_id:
                self._note(f"{job_id} {_ELSEWHERE}")
                return None
            self._count(skipped=1)
            if not place.sha256:
                await self._store.write(self._complete, job)
            return None
        kind = (job.get("method") or {}).get("type") or Method.SUPERVISED.value
        if kind not in set(Method):
            self._note(f"{job_id} was trained by '{kind}', which this gateway does not know; it was left out.")
            return None
        return History(
            job,
            await self._list_of(job_id, "events", self._account.events),
            await self._list_of(job_id, "checkpoints", self._account.checkpoints),
        )

    async def _list_of(self, job_id: str, what: str, ask: Callable[[str], Awaitable[list[Json]]]) -> list[Json]:
        try:
            return await ask(job_id)
        except ProviderError as error:
            if error.status not in (400, 403, 404, 410):
                raise
            self._note(f"The {what} of {job_id} cannot be read at {self._account.name}: {_sentence(error.message)}")
            return []

    def _insert_job(self, tx: Tx, history: History, models: set[str]) -> Stored:
        project, raw = self._found.project_id, history.job
        training, validation = self._data(tx, raw)
        job = values.job(
            raw,
            project=project,
            provider=self._found.provider,
            training_sha256=training,
            validation_sha256=validation,
        )
        events = values.events(history.events)
        if not rows.insert_job(tx, job, events):
            return Stored()
        checkpoints = values.checkpoints(history.checkpoints, job)
        kept, problems = [], []
        for model in values.models(job, checkpoints):
            # A list of models may leave checkpoints out; where the model itself is gone, they are too.
            if model.id in models or (model.step_number is not None and job.fine_tuned_model in models):
                kept.append(model)
            elif model.step_number is None:
                problems.append(f"{model.id}, the model of {job.id}, is not at {self._account.name} any more.")
        stored = self._insert_models(tx, kept)
        counts = {"jobs": 1, "events": len(events), "checkpoints": rows.insert_checkpoints(tx, project, checkpoints)}
        return Stored({**stored.counts, **counts}, [*problems, *stored.problems])

    def _insert_models(self, tx: Tx, models: Iterable[Model]) -> Stored:
        places = [(model.id, rows.insert_model(tx, model)) for model in models]
        others = [name for name, place in places if place is not None and place.project != self._found.project_id]
        counts = {"models": sum(place is None for _, place in places)}
        return Stored(counts, [f"The model {name} {_ELSEWHERE}" for name in others])

    def _complete(self, tx: Tx, job: Json) -> None:
        """A job that came without its data, which may be here by now."""
        training, validation = self._data(tx, job)
        if training:
            rows.complete(tx, self._found.project_id, str(job["id"]), training, validation)

    def _data(self, tx: Tx, job: Json) -> tuple[str, str | None]:
        """The hashes of a job's files: "" and None for those that are not here."""
        found = []
        for file_id in (job.get("training_file"), job.get("validation_file")):
            place = None if file_id is None else rows.file_at(tx, file_id)
            found.append(place.sha256 if place and place.project == self._found.project_id else "")
        return found[0], found[1] or None

    # ------------------------------------------------------------------------------------------------------ models

    async def _read_models(self, models: Sequence[Json]) -> None:
        """Tuned models whose jobs are not here, such as those of another project of the vendor's organisation.

        While the gateway has jobs there, models that are younger may be theirs, and wait for another import.
        """
        project, provider = self._found.project_id, self._found.provider
        ours = await self._store.read(rows.ours, provider)
        since = None if ours.running_since is None else ours.running_since - CLOCK_SECONDS
        tuned, waiting = [], 0
        for raw in sorted(models, key=lambda model: model["created"]):
            if not str(raw["id"]).startswith(values.TUNED) or raw["id"] in ours.models:
                continue
            if since is None or raw["created"] < since or await self._store.read(rows.model_at, str(raw["id"])):
                tuned.append(values.model(raw, project=project, provider=provider))
            else:
                waiting += 1
        if waiting:
            self._note(f"{waiting} models may come from jobs of this gateway that run there; import again later.")
        self._take(await self._store.write(self._saving(lambda tx: self._insert_models(tx, tuned))))

    # ------------------------------------------------------------------------------------------------- what is told

    def _saving(self, insert: Callable[[Tx], Stored]) -> Callable[[Tx], Stored]:
        """`insert` with the import's row, so that its counts are what is there whenever a crash comes."""

        def store(tx: Tx) -> Stored:
            stored = insert(tx)
            rows.save(tx, self._with(stored))
            return stored

        return store

    async def _progress(self, stored: Stored) -> None:
        self._take(await self._store.write(self._saving(lambda _: stored)))

    def _with(self, stored: Stored) -> Import:
        """The import with what a transaction stores; on the writer's thread, where nothing of this is changed."""
        counts = Counter(self._counts)
        counts.update(stored.counts)
        counts["skipped"] = max(0, counts["skipped"])
        problems = [*self._problems, *stored.problems]
        unlisted = self._unlisted + len(problems[MOST_PROBLEMS - 1 :])
        if unlisted:
            problems = [*problems[: MOST_PROBLEMS - 1], f"{_MORE}{unlisted} more, which are in the gateway's log."]
        return replace(self._found, counts=ImportCounts(**counts), problems=tuple(problems))

    def _take(self, stored: Stored) -> None:
        self._count(**stored.counts)
        for problem in stored.problems:
            self._note(problem)

    def _count(self, **more: int) -> None:
        self._counts.update(more)

    def _note(self, problem: str) -> None:
        """Once; those behind the first hundred are counted, and in the log only."""
        if problem in self._problems:
            return
        if len(self._problems) < MOST_PROBLEMS - 1:
            self._problems.append(problem)
            return
        self._unlisted += 1
        log.warning("%s: %s", self._found.id, problem)


@dataclass(frozen=True, slots=True)
class Stored:
    """What one transaction has stored, by the names of `ImportCounts`, and what it could not."""

    counts: Mapping[str, int] = field(default_factory=dict)
    problems: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Arrived:
    """A file of the account, with its bytes where they came; `is_here`: it was here before."""

    file: Json
    received: Receiving | None = None
    problem: str | None = None
    is_here: bool = False


@dataclass(frozen=True, slots=True)
class History:
    """A job that has ended, and what is told of it, newest first."""

    job: Json
    events: Sequence[Json]
    checkpoints: Sequence[Json]


_SENT = re.compile(SENT_NAME.replace(".", r"\.").format(rf"([0-9a-f]{{{SENT_DIGITS}}})"))
_ELSEWHERE = "is another project's here already, and was left there."
_MORE = "And "
_TRAINING = "training file"
_ROLES = {"training_file": _TRAINING, "validation_file": "validation file"}


def roles(jobs: Iterable[Json]) -> Mapping[str, Mapping[str, Sequence[str]]]:
    """What jobs use files for: by the file's id and its role, the jobs' ids."""
    found: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for job in jobs:
        for name, role in _ROLES.items():
            if job.get(name):
                found[str(job[name])][role].append(str(job["id"]))
        for file_id in job.get("result_files") or ():
            found[str(file_id)]["result file"].append(str(job["id"]))
    return found


async def in_order(
    items: Iterable[A], read: Callable[[A], Awaitable[B]], *, drop: Callable[[B], Awaitable[None]] | None = None
) -> AsyncGenerator[B]:
    """What `read` gives for each item, in their order, with `AHEAD` of them under way.

    Whoever stops early closes the iterator: what was read and not given is handed to `drop`.
    """
    waiting: deque[asyncio.Future[B]] = deque()
    try:
        for item in items:
            waiting.append(asyncio.ensure_future(read(item)))
            if len(waiting) == AHEAD:
                await waiting[0]
                yield waiting.popleft().result()
        while waiting:
            await waiting[0]
            yield waiting.popleft().result()
    finally:
        for task in waiting:
            task.cancel()
        for left in await asyncio.gather(*waiting, return_exceptions=True):
            if drop is not None and not isinstance(left, BaseException):
                await drop(left)


async def _discard(arrived: Arrived) -> None:
    if arrived.received is not None:
        await arrived.received.discard()


def _about_file(arrived: Arrived, named: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    """What is wrong with a file, and for whom."""
    used = named.get(str(arrived.file["id"]), {})
    name = " and ".join(f"the {role} of {_some(jobs)}" for role, jobs in used.items())
    said = f"{arrived.file['id']}{f', {name},' if name else ''} {arrived.problem}"
    if arrived.received is None and _TRAINING in used:
        said += " Such a job can be looked at, but not trained again until its data is uploaded here."
    return said


def _some(jobs: Sequence[str]) -> str:
    return jobs[0] if len(jobs) == 1 else f"{jobs[0]} and {len(jobs) - 1} more"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
