"""Fireworks' API: datasets, supervised and DPO jobs, and (in `fireworks_serving`) what serves their models.

Fields, paths and words are those of the SDK fireworks-ai 1.2.30 and of the vendor's documentation. Assumed, for neither
says it: that unknown fields are refused, and what a job does with rows of the wrong kind. A job, a dataset and a
deployment may be named by their client, and a name that is taken is refused (409): so a create can be repeated safely.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from tests.simulators import fireworks_bodies as bodies
from tests.simulators.base import Answer, Handler, Refused, Request, as_json
from tests.simulators.fireworks_serving import PRECONDITION, UNSET, FireworksServing, Wire, now
from tests.simulators.shapes import fields, text


@dataclass
class Slot:
    """Where a signed URL leads."""

    dataset: str
    file: str
    size: int
    has_arrived: bool = False
    content: bytes | None = None


class FireworksSimulator(FireworksServing):
    """Everything goes by its whole name, `accounts/{account}/{kind}/{id}`. Every GET of a job moves it one state on.

    `stop_at` names the state that no job goes beyond, `destroyed` are the jobs whose records were deleted, and `leaks`
    also tells of a credential that was sent to a signed URL.
    """

    states: ClassVar = tuple(
        f"JOB_STATE_{word}" for word in ("CREATING", "VALIDATING", "PENDING", "RUNNING", "WRITING_RESULTS", "COMPLETED")
    )
    terminal: ClassVar = frozenset(
        f"JOB_STATE_{word}" for word in ("COMPLETED", "EARLY_STOPPED", "FAILED", "EXPIRED", "CANCELLED")
    )

    def __init__(self, key: str = "fw-simulated", account: str = "acme") -> None:
        super().__init__(key, account)
        self.upload_limit = 150 * 1024**2
        self.stop_at: str | None = None
        self.destroyed: list[str] = []
        self.contents: dict[str, bytes | None] = {}
        self._signed: dict[str, Slot] = {}

    def finish_job(self, job_id: str, state: str = "JOB_STATE_COMPLETED") -> None:
        """Takes a job to a state at once, whatever `stop_at` says."""
        with self.lock:
            self.enter(self.jobs[job_id], state)

    def routes(self) -> Iterable[tuple[str, str, str, Handler]]:
        root = "/v1/accounts/{account}"
        for kind in bodies.JOBS:
            job = f"{root}/{kind}/{{id}}"
            yield "POST", f"{job}:cancel", "cancel_job", partial(self.cancel_job, kind)
            yield "POST", f"{job}:resume", "resume_job", partial(self.resume_job, kind)
            yield "POST", f"{root}/{kind}", "create_job", partial(self.create_job, kind)
            yield "GET", f"{root}/{kind}", "jobs", partial(self.page, kind, self.jobs)
            yield "GET", job, "job", partial(self.get_job, kind)
            yield "DELETE", job, "delete_job", partial(self.delete_job, kind)
        file = f"{root}/datasets/{{id}}"
        yield "POST", f"{file}:upload", "upload_file", self.upload_file
        yield "POST", f"{file}:getUploadEndpoint", "upload_endpoint", self.sign_upload
        yield "POST", f"{file}:validateUpload", "validate_upload", self.validate_upload
        yield "PUT", "/signed/{token}", "signed", self.put_signed
        yield "POST", f"{root}/datasets", "create_file", self.create_file
        yield "GET", f"{root}/datasets", "files", partial(self.page, "datasets", self.files)
        yield "GET", file, "file", self.get_file
        yield "DELETE", file, "delete_file", self.delete_file
        yield from super().routes()

    def authorize(self, request: Request, operation: str) -> None:
        if operation != "signed":
            super().authorize(request, operation)
        elif "authorization" in request.seen.headers:
            self.leaks.append("header authorization to a signed URL")
            raise Refused(400, "Only one auth mechanism is allowed.", code="InvalidArgument")

    def refusal(self, refused: Refused, path: str) -> Answer:
        if not path.startswith("/signed/"):
            return super().refusal(refused, path)
        told = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{refused.code}</Code></Error>"
        return Answer([told.encode()], refused.status, {"content-type": "application/xml; charset=UTF-8"})

    # Datasets.

    def create_file(self, request: Request) -> Answer:
        asked = request.object()
        bodies.DATASET(asked, "")
        name = self.named("datasets", asked["datasetId"])
        if name in self.files:
            raise Refused(409, f"{name} already exists")
        made = {"name": name, "state": "UPLOADING", "status": UNSET, "createTime": now(), "updateTime": now()}
        self.files[name] = {"format": "CHAT"} | asked["dataset"] | made
        return as_json(self.files[name])

    def find_open(self, request: Request) -> Wire:
        """A dataset that still waits for its content."""
        found = self.find("datasets", self.files, request)
        if found["name"] in self.contents:
            raise Refused(400, f"{found['name']} has its content", code=PRECONDITION)
        return found

    def upload_file(self, request: Request) -> Answer:
        dataset, form = self.find_open(request), request.form
        part = form.part("file") if form and form.whole and len(form.parts) == 1 else None
        if part is None or not part.filename or not part.size:
            raise Refused(400, "a multipart body with one part 'file' is needed")
        if part.size > self.upload_limit:
            raise Refused(413, "the file is too large, use getUploadEndpoint")
        self.contents[dataset["name"]] = None if part.content is None else bytes(part.content)
        answer = {"id": request.params["id"], "object": "file", "bytes": part.size, "purpose": "fine-tune"}
        return as_json(answer | {"created_at": int(time.time()), "filename": part.filename})

    def sign_upload(self, request: Request) -> Answer:
        """Every call forgets the files of the one before."""
        dataset, asked = self.find_open(request), request.object()
        bodies.UPLOAD(asked, "")
        sizes = asked["filenameToSize"]
        if not sizes or not all(file.endswith(".jsonl") and int(size) for file, size in sizes.items()):
            raise Refused(400, "every file needs a size and the extension .jsonl")
        self._signed = {token: slot for token, slot in self._signed.items() if slot.dataset != dataset["name"]}
        made = {secrets.token_urlsafe(24): Slot(dataset["name"], file, int(size)) for file, size in sizes.items()}
        self._signed |= made
        urls = {slot.file: f"{self.url}/signed/{token}?X-Goog-Signature=0" for token, slot in made.items()}
        return as_json({"filenameToSignedUrls": urls})

    def put_signed(self, request: Request) -> Answer:
        slot, headers = self._signed.get(request.params["token"]), request.seen.headers
        range_ = f"{slot.size},{slot.size}" if slot else ""
        signed = (headers.get("content-type"), headers.get("x-goog-content-length-range"))
        if slot is None or signed != ("application/octet-stream", range_):
            raise Refused(403, "", code="SignatureDoesNotMatch")
        if request.seen.length != slot.size:
            raise Refused(400, "", code="EntityTooLarge" if request.seen.length > slot.size else "EntityTooSmall")
        slot.has_arrived, slot.content = True, request.body
        return Answer([b""])

    def validate_upload(self, request: Request) -> Answer:
        dataset = self.find_open(request)
        fields({})(request.object(), "")
        slots = [slot for slot in self._signed.values() if slot.dataset == dataset["name"]]
        if not slots or not all(slot.has_arrived for slot in slots):
            raise Refused(400, "not all files have arrived", code=PRECONDITION)
        contents = [slot.content for slot in slots if slot.content is not None]
        self.contents[dataset["name"]] = b"".join(contents) if len(contents) == len(slots) else None
        return as_json({})

    def get_file(self, request: Request) -> Answer:
        dataset = self.find("datasets", self.files, request)
        if dataset["name"] in self.contents and self.is_second_look(dataset["name"]):
            dataset["state"] = "READY"
        return as_json(dataset)

    def delete_file(self, request: Request) -> Answer:
        self.contents.pop(self.find("datasets", self.files, request)["name"], None)
        return self.delete("datasets", self.files, request)

    # Jobs.

    def create_job(self, kind: str, request: Request) -> Answer:
        asked = request.object()
        bodies.JOBS[kind](asked, "")
        name = self.new_name(kind, request, self.jobs)
        training = asked.get("trainingConfig", asked)
        if ("baseModel" in training) == ("warmStartFrom" in training):
            raise Refused(400, "exactly one of baseModel and warmStartFrom is needed")
        base = self.models.get(training.get("baseModel", training.get("warmStartFrom")))
        if base is None or not base["tunable"] or ("warmStartFrom" in training) != (base["kind"] == "HF_PEFT_ADDON"):
            raise Refused(400, "the model cannot be fine-tuned")
        for param in ("dataset", "evaluationDataset"):
            if param in asked and asked[param] not in self.files:
                raise Refused(404, f"{asked[param]} was not found")
            if param in asked and self.files[asked[param]]["state"] != "READY":
                raise Refused(400, f"{asked[param]} is not ready", code=PRECONDITION)
        start = self.named("models", "")
        output = training.get("outputModel", name.rpartition("/")[2]).removeprefix(start)
        text(pattern=bodies.ID)(output, "outputModel")
        if start + output in self.models:
            raise Refused(409, f"{start + output} already exists")
        job = asked | {"name": name, "createTime": now(), "createdBy": "owner@example.com", "status": UNSET}
        job |= {"jobProgress": {"percent": 0, "epoch": 0}} if kind == "supervisedFineTuningJobs" else {}
        (job["trainingConfig"] if kind == "dpoJobs" else job)["outputModel"] = start + output
        self.jobs[name] = job
        self.enter(job, self.states[0])
        self.created.append(name)
        return as_json(job)

    def enter(self, job: Wire, state: str) -> None:
        job |= {"state": state, "updateTime": now()}
        if state in self.terminal:
            job["completedTime"] = now()
        if state in ("JOB_STATE_COMPLETED", "JOB_STATE_EARLY_STOPPED"):
            training = job.get("trainingConfig", job)
            base = training.get("baseModel") or self.models[training["warmStartFrom"]]["peftDetails"]["baseModel"]
            peft = {"baseModel": base, "r": training.get("loraRank", 8), "targetModules": ["q_proj", "v_proj"]}
            model = {"name": training["outputModel"], "state": "READY", "kind": "HF_PEFT_ADDON", "tunable": True}
            self.models[model["name"]] = model | {"peftDetails": peft, "fineTuningJob": job["name"]}
            if "jobProgress" in job:
                job["jobProgress"] = {"percent": 100, "epoch": training.get("epochs", 1)}

    def problem(self, job: Wire) -> str | None:
        """What is wrong with the rows, which only the job looks at."""
        key = "input" if "trainingConfig" in job else "messages"
        for name in filter(None, (job["dataset"], job.get("evaluationDataset"))):
            if name not in self.files:
                return f"{name} was not found"
            rows = (self.contents[name] or b"").splitlines()
            if self.contents[name] is not None and len(rows) < 3:
                return f"{name} has fewer than 3 examples"
            for at, row in enumerate(rows, 1):
                try:
                    if key not in json.loads(row):
                        return f"{name}: row {at} has no '{key}'"
                except (ValueError, TypeError):
                    return f"{name}: row {at} is no JSON object"
        return None

    def get_job(self, kind: str, request: Request) -> Answer:
        job = self.find(kind, self.jobs, request)
        state = job["state"]
        if job["name"] not in self.pinned and state != self.stop_at:
            if state == "JOB_STATE_CANCELLING":
                self.enter(job, "JOB_STATE_CANCELLED")
            elif state == "JOB_STATE_VALIDATING" and (problem := self.problem(job)):
                job["status"] = {"code": "INVALID_ARGUMENT", "message": problem}
                self.enter(job, "JOB_STATE_FAILED")
            elif state in self.states[:-1]:
                self.enter(job, self.states[self.states.index(state) + 1])
        return as_json(self.shown(job))

    def cancel_job(self, kind: str, request: Request) -> Answer:
        job = self.find(kind, self.jobs, request)
        fields({})(request.object(), "")
        if self.shown(job)["state"] in self.terminal:
            raise Refused(400, f"{job['name']} has ended", code=PRECONDITION)
        self.enter(job, "JOB_STATE_CANCELLING")
        return as_json({})

    def resume_job(self, kind: str, request: Request) -> Answer:
        job = self.find(kind, self.jobs, request)
        fields({})(request.object(), "")
        if self.shown(job)["state"] not in ("JOB_STATE_PAUSED", "JOB_STATE_FAILED", "JOB_STATE_CANCELLED"):
            raise Refused(400, f"{job['name']} cannot be resumed", code=PRECONDITION)
        self.pinned.pop(job["name"], None)
        self.enter(job, "JOB_STATE_PENDING")
        return as_json(job)

    def delete_job(self, kind: str, request: Request) -> Answer:
        self.destroyed.append(self.find(kind, self.jobs, request)["name"])
        return self.delete(kind, self.jobs, request)
