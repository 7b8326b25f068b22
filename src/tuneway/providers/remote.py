"""A managed account: the provider seam over any vendor.

Knows jobs, and of vendors only what `vendor.Vendor` says. What starts a job is sent once; `find` tells after a failure
or a crash whether it arrived. Where the vendor has metadata, a pair of ours marks the job; else it is known by file,
model, suffix, seed and time.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import asdict, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from tuneway.errors import InvalidRequest, JobFailure, ProviderError, UnsupportedOperation
from tuneway.providers.base import LaunchUnclear, Preparation, Report, auto_epochs
from tuneway.providers.outgoing import Outgoing
from tuneway.providers.vendor import Json, Vendor, hyperparameters_of, is_lacking, is_unknown, same_job
from tuneway.types import (
    AUTO,
    TERMINAL_STATUSES,
    BaseModel,
    Candidate,
    DataFile,
    Deployment,
    EventLevel,
    Hyperparameters,
    JobError,
    JobHandle,
    JobRequest,
    JobResult,
    JobSpec,
    JobStatus,
    JobUpdate,
    LaunchSpec,
    Method,
    Model,
    NewEvent,
    Progress,
    ProviderCheckpoint,
    Resolved,
    Upstream,
)

MARK = "tuneway_job"
"""The key of the metadata pair by which a job is found."""
SENT_NAME, SENT_DIGITS = "tuneway-{}.jsonl", 32
"""What a file is called that was sent, with the first digits of its SHA-256."""
MAX_METADATA = 16
CLOCK_SECONDS = 5 * 60
"""How much earlier than our clock a vendor's may be."""
PAGE = 100
MAX_PAGES = 500
NAME_SECONDS = 30 * 60
"""How long a job that has succeeded may take to name its model."""
PIECE = 256 * 1024
UPLOADED_SECONDS = 10.0
"""How long a file may stay `uploaded` at a vendor that may have no other state for it."""
FILE_SECONDS = 30 * 60
"""How long a vendor may take until a file that was sent can be used."""
CONTEXT_LENGTH = 1 << 20
"""Rows are cut by the vendor, not here."""


class Remote:
    """`name` is the account's; the same vendor may have several."""

    def __init__(self, name: str, vendor: Vendor) -> None:
        self.name = name
        self.capabilities = vendor.capabilities
        self.vendor = vendor

    # ----------------------------------------------------------------------------------------------- before the job

    def base_models(self) -> Sequence[BaseModel]:
        return [replace(base, provider=self.name) for base in self.vendor.base_models()]

    def check(self, request: JobRequest, base: str) -> None:
        if MARK in (request.metadata or {}):
            raise InvalidRequest(
                f"The metadata key '{MARK}' is the gateway's own: by it a job is found again. Choose another.",
                param="metadata",
                code="invalid_value",
            )
        spec = JobSpec(
            model=base,
            training_file="file",
            provider=self.name,
            method=request.method,
            hyperparameters=request.hyperparameters,
            validation_file=None if request.validation_file is None else "file",
            suffix=request.suffix,
            seed=request.seed or 0,
            metadata=request.metadata,
            integrations=request.integrations,
            reinforcement=request.reinforcement,
            learning_rate=request.learning_rate,
            options=request.options,
        )
        self.vendor.translate(self._asked(LaunchSpec("", spec, request.hyperparameters, 1)))

    async def prepare(self, base: str, report: Report) -> Preparation:
        return Preparation(CONTEXT_LENGTH)

    def resolve(self, spec: JobSpec, n_examples: int) -> Resolved:
        """What is "auto" stays so and becomes a number when the vendor says which, but for vendors without "auto"."""
        asked = asdict(spec.hyperparameters)
        reasons = {name: f"{self.name} chooses" if value == AUTO else "as requested" for name, value in asked.items()}
        if spec.hyperparameters.n_epochs == AUTO and not self.vendor.chooses_numbers:
            epochs = auto_epochs(n_examples)
            asked["n_epochs"] = epochs
            reasons["n_epochs"] = f"auto, for {n_examples} examples, as {self.name} chooses none"
        return Resolved(Hyperparameters(**asked), reasons)

    def workplace(self, key: str) -> Path | None:
        return None

    async def send(self, file: DataFile, known: str | None) -> str | None:
        """By a name that holds the content's hash, so that a crash in between leaves nothing that is sent twice."""
        name = SENT_NAME.format(file.sha256[:SENT_DIGITS])
        form = Outgoing(file, bom=self.vendor.wants_bom)
        size = await asyncio.to_thread(form.size)
        if known is not None and not await self._still_there(known):
            known = None
        elif known is None and not self.vendor.chooses_ids:
            known = await self._sent(name, size)
        if known is None:
            rows = await asyncio.to_thread(form.rows) if self.vendor.counts_rows else None
            sent = await self.vendor.upload(name, "fine-tune", form.pieces(), size, rows)
            known = str(sent["id"])
        await self._usable(known)
        return known

    # ------------------------------------------------------------------------------------------------- the job's life

    async def launch(self, spec: LaunchSpec) -> JobHandle:
        if spec.provider_job_id is not None:
            job = await self.vendor.job(spec.provider_job_id)
            if job["status"] == JobStatus.PAUSED:
                await self.vendor.change_job(spec.provider_job_id, "resume")
            return JobHandle(self.name, spec.provider_job_id)
        job = await self.vendor.create_job(self._asked(spec))
        return JobHandle(self.name, str(job["id"]))

    async def find(self, spec: LaunchSpec) -> JobHandle | None:
        if spec.provider_job_id is not None:
            return JobHandle(self.name, spec.provider_job_id)
        if self.vendor.chooses_ids:
            ours = await self.vendor.job_by_key(spec.key)
            return None if ours is None else JobHandle(self.name, str(ours["id"]))
        asked = self._asked(spec)
        marked = (asked.get("metadata") or {}).get(MARK) == spec.key
        # The mark says which job it is, whatever anybody's clock says.
        since = 0.0 if marked else (spec.intended_at or 0) - CLOCK_SECONDS
        by_mark, by_match = [], []
        async for job in self._jobs_since(since, {f"metadata[{MARK}]": spec.key} if marked else {}):
            if str(job["id"]) in spec.taken:
                continue
            if marked and (job.get("metadata") or {}).get(MARK) == spec.key:
                by_mark.append(job)
            # Who takes metadata need not show it.
            elif (not marked or "metadata" not in job) and same_job(asked, job, 0):
                by_match.append(job)
        found = by_mark or by_match
        if not found:
            return None
        if len(found) == 1:
            return JobHandle(self.name, str(found[0]["id"]))
        candidates = tuple(
            Candidate(str(job["id"]), int(job.get("created_at") or 0), str(job["status"])) for job in found
        )
        raise LaunchUnclear(
            f"The gateway was interrupted while it started this job at {self.name}, which now has {len(found)} jobs "
            "that it may be: the same file, model, suffix and seed, made at that time. Starting another could bill "
            "twice. Choose one by `tuneway jobs adopt`, or, if it is none of them, `tuneway jobs relaunch`; or cancel "
            "the job.",
            candidates,
        )

    async def poll(self, handle: JobHandle, cursor: str | None) -> JobUpdate:
        seen: Json = json.loads(cursor) if cursor else {}
        job = await self.vendor.job(handle.provider_job_id)
        status = JobStatus(job["status"])
        word = str(job.get("tuneway", {}).get("provider_status", status.value))
        events, newest = await self._events_since(handle.provider_job_id, seen.get("event"))
        checkpoints = await self._checkpoints(handle.provider_job_id, job)
        if word != seen.get("word") and (newest == seen.get("event") or "unknown_status" in job.get("tuneway", {})):
            events.append(self._status_event(job, word))
        chosen = _resolved(job)
        error = _error(job) if status is JobStatus.FAILED else None
        result, nameless = None, None
        if status is JobStatus.SUCCEEDED:
            result = await self._result(job, events)
            if result is None:
                # Some name the model a moment after they say that they are done.
                nameless = seen.get("nameless") or int(time.time())
                status = JobStatus.RUNNING
                if time.time() - nameless > NAME_SECONDS:
                    said = f"{self.name} says that the job has succeeded, but names no tuned model."
                    status, error = JobStatus.FAILED, JobError("server_error", said)
        now_seen = {
            "event": newest,
            "word": word,
            "checkpoints": [checkpoint.upstream_model for checkpoint in checkpoints],
            "chosen": None if chosen is None else asdict(chosen),
            "finish": job.get("estimated_finish"),
            "nameless": nameless,
        }
        return JobUpdate(
            cursor=json.dumps(now_seen, sort_keys=True),
            status=status,
            provider_status=word,
            events=tuple(events),
            checkpoints=tuple(checkpoints),
            progress=_progress(events),
            result=result,
            error=error,
            hyperparameters=chosen,
            estimated_finish=job.get("estimated_finish"),
        )

    async def cancel(self, handle: JobHandle) -> None:
        """Asks the vendor to cancel; `poll` says when it has. One that has ended is left as it is."""
        await self._change(handle, "cancel")

    async def pause(self, handle: JobHandle) -> None:
        job = await self.vendor.job(handle.provider_job_id)
        if JobStatus(job["status"]) not in TERMINAL_STATUSES | {JobStatus.PAUSED}:
            await self.vendor.change_job(handle.provider_job_id, "pause")

    async def release(self, key: str) -> None:
        """A vendor's job holds nothing once it has ended."""

    # ---------------------------------------------------------------------------------------------------- its model

    async def settle(self, model: Model, report: Report) -> Deployment | None:
        return await self.vendor.serve(model, report)

    async def upstream(self, base: str, model: Model | None) -> Upstream:
        name = base if model is None else model.deployment.name if model.deployment else model.upstream_model
        return replace(await self.vendor.chat(name), model=name)

    async def forget(self, model: Model) -> None:
        await self.vendor.withdraw(model)

    async def close(self) -> None:
        """Nothing of it runs here."""

    # ------------------------------------------------------------------------------------------------------- details

    def _asked(self, spec: LaunchSpec) -> Json:
        """The create in OpenAI's shape, with our mark where there is room for it."""
        job, numbers = spec.job, {name: v for name, v in asdict(spec.hyperparameters).items() if v is not None}
        body: Json = {"model": job.model, "training_file": spec.training_file or job.training_file}
        validation = spec.validation_file or job.validation_file
        if validation is not None:
            body["validation_file"] = validation
        if job.suffix is not None:
            body["suffix"] = job.suffix
        if self.capabilities.seed:
            body["seed"] = job.seed
        metadata = dict(job.metadata or {})
        if self.capabilities.metadata and spec.key and len(metadata) < MAX_METADATA:
            metadata[MARK] = spec.key
        if metadata:
            body["metadata"] = metadata
        if job.integrations:
            body["integrations"] = [dict(each) for each in job.integrations]
        kind = job.method.value
        options = dict(job.reinforcement or {}) if job.method is Method.REINFORCEMENT else {}
        options["hyperparameters"] = {**(options.get("hyperparameters") or {}), **numbers}
        body["method"] = {"type": kind, kind: options}
        extension: Json = {"learning_rate": job.learning_rate, "options": dict(job.options)}
        if self.vendor.chooses_ids:
            extension["key"] = spec.key
        extension = {name: value for name, value in extension.items() if value}
        return {**body, "tuneway": extension} if extension else body

    async def _sent(self, name: str, size: int) -> str | None:
        """The vendor's id of a file that was sent under this name before."""
        query = {"purpose": "fine-tune", "limit": "100"}
        for _ in range(MAX_PAGES):
            try:
                found = await self.vendor.list_files(query)
            except UnsupportedOperation:
                return None
            for file in found["data"]:
                if file.get("filename") == name and file.get("bytes") in (size, None) and file.get("status") != "error":
                    return str(file["id"])
            if not found["has_more"] or not found["data"]:
                return None
            query = {**query, "after": str(found["data"][-1]["id"])}
        return None

    async def _still_there(self, file_id: str) -> bool:
        try:
            return (await self.vendor.file(file_id)).get("status") != "error"
        except ProviderError as error:
            if is_unknown(error):
                return False
            raise

    async def _usable(self, file_id: str) -> None:
        """Waits until the vendor has looked at the file. Raises JobFailure for one that it does not take."""
        began = time.monotonic()
        while True:
            file = await self.vendor.file(file_id)
            status, waited = file.get("status"), time.monotonic() - began
            if status in (None, "processed"):
                return
            if status == "uploaded" and waited > UPLOADED_SECONDS and not self.vendor.processes_files:
                return
            if status == "error":
                said = file.get("status_details") or "it gave no reason"
                raise JobFailure(
                    f"{self.name} does not take the file: {said}", code="invalid_training_file", param="training_file"
                )
            if waited > FILE_SECONDS:
                raise JobFailure(f"{self.name} did not make the file usable in {FILE_SECONDS // 60} minutes.")
            await asyncio.sleep(min(2.0, self.capabilities.poll_seconds))

    async def _jobs_since(self, since: float, query: Mapping[str, str]) -> AsyncIterator[Json]:
        """The vendor's jobs made since then, by the vendor's clock, in whatever order it lists them."""
        asked = {"limit": str(PAGE), **query}
        for _ in range(MAX_PAGES):
            found = await self.vendor.list_jobs(asked)
            behind = min(0.0, _clock_difference(self.vendor.line.last_headers))
            times = [job.get("created_at") for job in found["data"]]
            for job, created in zip(found["data"], times, strict=True):
                if not isinstance(created, int) or created >= since + behind:
                    yield job
            known = [time for time in times if isinstance(time, int)]
            ended = (
                known and known == sorted(known, reverse=True) and known[0] != known[-1] and known[-1] < since + behind
            )
            if ended or not found["has_more"] or not found["data"]:
                return
            asked = {**asked, "after": str(found["data"][-1]["id"])}

    async def _events_since(self, job_id: str, seen: str | None) -> tuple[list[NewEvent], str | None]:
        """Events behind the one that was seen last, oldest first, and the newest one's id.

        And those beside it on its page: one that its vendor puts in later, of the same second, would be missed. What is
        stored already is not stored again.
        """
        found: list[Json] = []
        query = {"limit": str(PAGE)}
        for _ in range(MAX_PAGES):
            some = await _if_there(self.vendor.events(job_id, query))
            if some is None:
                break
            found += some["data"]
            rising = len(found) > 1 and _moment(found[0]) < _moment(found[-1])
            known = any(event.get("id") == seen for event in some["data"]) and not rising
            if known or not some["has_more"] or not some["data"]:
                break
            query = {**query, "after": str(some["data"][-1]["id"])}
        if not (len(found) > 1 and _moment(found[0]) < _moment(found[-1])):
            found.reverse()
        newest = str(found[-1]["id"]) if found else seen
        return [self._event(event) for event in found], newest

    def _event(self, event: Json) -> NewEvent:
        """Metrics as they are; a vendor's sentence with its name before it, as the gateway says some of its own."""
        metrics = event.get("type") == "metrics"
        message = str(event.get("message", ""))
        level = event.get("level")
        return NewEvent(
            key=f"upstream:{event['id']}",
            message=message if metrics else f"{self.name}: {message}",
            created_at=int(event.get("created_at") or time.time()),
            level=EventLevel(level) if level in set(EventLevel) else EventLevel.INFO,
            type="metrics" if metrics else "message",
            data=event.get("data") or {},
        )

    def _status_event(self, job: Json, word: str) -> NewEvent:
        unknown = "unknown_status" in job.get("tuneway", {})
        message = f"{self.name} says: {word}"
        if unknown:
            message += ", which this gateway does not know; the job shows as running until it says something else"
        level = EventLevel.WARN if unknown else EventLevel.INFO
        now = int(time.time())  # in the key, as a job may come back to a status; the cursor keeps it from coming twice
        return NewEvent(f"status:{word}:{now}", message, now, level, data={"provider_status": word})

    async def _checkpoints(self, job_id: str, job: Json) -> list[ProviderCheckpoint]:
        """Those that are models of their own, lowest step first; the last one is the tuned model where names agree."""
        found = await _if_there(self.vendor.checkpoints(job_id, {"limit": str(PAGE)}))
        known = []
        for each in [] if found is None else found["data"]:
            name = each.get("fine_tuned_model_checkpoint")
            if not name:
                continue
            metrics = {k: v for k, v in (each.get("metrics") or {}).items() if isinstance(v, int | float)}
            known.append(
                ProviderCheckpoint(
                    step_number=int(each.get("step_number") or 0),
                    metrics=metrics,
                    upstream_model=str(name),
                    created_at=int(each.get("created_at") or time.time()),
                    final=name == job.get("fine_tuned_model"),
                )
            )
        return sorted(known, key=lambda checkpoint: checkpoint.step_number)

    async def _result(self, job: Json, events: list[NewEvent]) -> JobResult | None:
        """None while the job names no model; a result file that is not there is told of in `events`."""
        model = await self.vendor.tuned_model(job)
        if model is None:
            return None
        csv = await _if_there(self.vendor.result_csv(job))
        if csv is None and job.get("result_files"):
            said = f"{self.name} has no result file {job['result_files'][0]} any more; the metrics are in the events."
            events.append(NewEvent("no-result-file", said, int(time.time()), EventLevel.WARN))
        return JobResult(
            upstream_model=model,
            trained_tokens=job.get("trained_tokens"),
            finished_at=int(job.get("finished_at") or time.time()),
            metrics_csv=csv,
        )

    async def _change(self, handle: JobHandle, verb: Any) -> None:
        try:
            await self.vendor.change_job(handle.provider_job_id, verb)
        except ProviderError:
            job = await self.vendor.job(handle.provider_job_id)
            if JobStatus(job["status"]) not in TERMINAL_STATUSES:
                raise


T = TypeVar("T")


async def _if_there(asked: Awaitable[T]) -> T | None:
    """None for what the vendor does not have: nothing beside a job may keep its end from it."""
    try:
        return await asked
    except UnsupportedOperation:
        return None
    except ProviderError as error:
        if is_lacking(error):
            return None
        raise


def _moment(event: Json) -> int:
    created = event.get("created_at")
    return created if isinstance(created, int) else 0


def _clock_difference(headers: Mapping[str, str]) -> float:
    """Seconds by which a vendor's clock is ahead of ours, by the header Date of its answer; 0 where it has none."""
    try:
        return parsedate_to_datetime(headers["date"]).timestamp() - time.time()
    except (KeyError, ValueError, TypeError):
        return 0.0


def _resolved(job: Json) -> Hyperparameters | None:
    """The numbers of a job, once its vendor has chosen them; what is no number of the right kind is not shown."""
    kinds: Mapping[str, tuple[type, ...]] = {
        "n_epochs": (int,),
        "batch_size": (int,),
        "learning_rate_multiplier": (int, float),
        "beta": (int, float),
    }
    found = {
        name: value
        for name, value in hyperparameters_of(job).items()
        if name in kinds and ((isinstance(value, kinds[name]) and not isinstance(value, bool)) or value == AUTO)
    }
    if not any(isinstance(value, int | float) for value in found.values()):
        return None
    return Hyperparameters(**found)


def _error(job: Json) -> JobError:
    error = job.get("error") or {}
    message = error.get("message") or "The provider gave no reason."
    return JobError(str(error.get("code") or "server_error"), str(message), error.get("param"))


def _progress(events: Sequence[NewEvent]) -> Progress | None:
    """Of the newest metrics that tell a step."""
    for event in reversed(events):
        step, total = event.data.get("step"), event.data.get("total_steps")
        if event.type == "metrics" and isinstance(step, int):
            loss, valid = event.data.get("train_loss"), event.data.get("valid_loss")
            return Progress(
                step,
                total if isinstance(total, int) else step,
                train_loss=loss if isinstance(loss, int | float) else None,
                valid_loss=valid if isinstance(valid, int | float) else None,
            )
    return None
