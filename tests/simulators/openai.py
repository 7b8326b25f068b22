"""OpenAI's API as its live servers speak it, with the quirks that its own description does not have.

Other vendors of this shape are subclasses: they bring what they accept, and how they show a job, a file and a model.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from typing import Any, ClassVar

from tests.simulators import openai_bodies as bodies
from tests.simulators import openai_chat as talk
from tests.simulators.base import Answer, Handler, Refused, Request, as_json
from tests.simulators.openai_files import FilesSimulator, Wire, page
from tests.simulators.openai_training import File, Job, new_id, now

SNAPSHOTS = {
    "gpt-3.5-turbo": "gpt-3.5-turbo-0125",
    "gpt-4o": "gpt-4o-2024-08-06",
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "gpt-4.1-mini": "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-nano": "gpt-4.1-nano-2025-04-14",
    "o4-mini": "o4-mini-2025-04-16",
    "babbage-002": "babbage-002",
    "davinci-002": "davinci-002",
}
GRADER_ERRORS = (
    "formula_parse_error",
    "invalid_variable_error",
    "model_grader_parse_error",
    "model_grader_refusal_error",
    "model_grader_server_error",
    "other_error",
    "python_grader_runtime_error",
    "python_grader_server_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
)


class OpenAISimulator(FilesSimulator):
    """`stop_at` names the state that no job goes beyond; every GET of a job moves it one state on."""

    prefix: ClassVar = "/v1"
    auto: ClassVar[Any] = "auto"
    terminal: ClassVar = frozenset({"succeeded", "failed", "cancelled"})
    pausing: ClassVar = "paused"
    resuming: ClassVar = "queued"
    settling: ClassVar[dict[str, str]] = {}
    """States that a GET only sees through: what comes after each."""
    preface: ClassVar[Wire] = {}
    """What a stream says in an event of its own, before any choice."""
    lacks: ClassVar[frozenset[str]] = frozenset()
    """Operations of OpenAI that this vendor does not have."""
    bases: ClassVar[Iterable[str]] = [*SNAPSHOTS, *SNAPSHOTS.values(), "gpt-5"]
    tunable: ClassVar[Iterable[str]] = list(SNAPSHOTS.values())

    def __init__(self, key: str = "sk-simulated") -> None:
        super().__init__(key)
        self.states = ["validating_files", "queued", "running", "succeeded"]
        self.stop_at: str | None = None
        self.organization = "acme"
        self.permissions: dict[str, list[Wire]] = {}
        self.models = {name: {"id": name, "object": "model", "created": 1, "owned_by": "system"} for name in self.bases}

    # What a test does.

    @property
    def base_url(self) -> str:
        """What a client of this vendor is given."""
        return self.url + self.prefix

    @property
    def chat_bytes(self) -> bytes:
        """The body of the last answer to a chat, byte by byte."""
        return self.answers["chat"]

    def set_status(self, job_id: str, raw: str | None) -> None:
        """Shows this word from now on, whatever it means; None lets the job go on from where it was."""
        with self.lock:
            self.jobs[job_id].pinned = raw

    def fail_job(self, job_id: str, code: str, message: str, param: str | None = None) -> None:
        with self.lock:
            job = self.jobs[job_id]
            job.fail({"code": code, "message": message, "param": param})

    def add_event(self, job_id: str, message: str, level: str = "info", data: Any = None) -> None:
        with self.lock:
            self.jobs[job_id].log(message, data, level=level)

    def finish_job(self, job_id: str) -> None:
        """Takes a job to its success at once, whatever `stop_at` says."""
        with self.lock:
            job = self.jobs[job_id]
            while job.wire["status"] in self.states[:-1]:
                self.move(job)

    def job_of(self, number: int = -1) -> Job:
        """The job that was created last, or first, or …"""
        job: Job = self.jobs[self.created[number]]
        return job

    # The edge.

    def routes(self) -> Iterable[tuple[str, str, str, Handler]]:
        return self.data_routes(self.prefix)

    def data_routes(self, root: str) -> list[tuple[str, str, str, Handler]]:
        jobs, job = f"{root}/fine_tuning/jobs", f"{root}/fine_tuning/jobs/{{job}}"
        permissions = f"{root}/fine_tuning/checkpoints/{{checkpoint}}/permissions"
        graders = f"{root}/fine_tuning/alpha/graders"
        found = [
            *self.file_routes(root),
            ("POST", jobs, "create_job", self.create_job),
            ("GET", jobs, "jobs", self.list_jobs),
            ("GET", job, "job", self.get_job),
            ("POST", f"{job}/cancel", "cancel_job", self.cancel_job),
            ("POST", f"{job}/pause", "pause_job", self.pause_job),
            ("POST", f"{job}/resume", "resume_job", self.resume_job),
            ("GET", f"{job}/events", "events", self.list_events),
            ("GET", f"{job}/checkpoints", "checkpoints", self.list_checkpoints),
            ("GET", permissions, "permissions", self.list_permissions),
            ("POST", permissions, "create_permission", self.create_permission),
            ("DELETE", f"{permissions}/{{permission}}", "delete_permission", self.delete_permission),
            ("POST", f"{graders}/run", "run_grader", self.run_grader),
            ("POST", f"{graders}/validate", "validate_grader", self.validate_grader),
            ("GET", f"{root}/models", "models", self.list_models),
            ("GET", f"{root}/models/{{model:path}}", "model", self.get_model),
            ("DELETE", f"{root}/models/{{model:path}}", "delete_model", self.delete_model),
            ("POST", f"{root}/chat/completions", "chat", self.chat),
            ("GET", f"{root}/chat/completions", "completions", self.list_completions),
        ]
        return [route for route in found if route[2] not in self.lacks]

    def authorize(self, request: Request, operation: str) -> None:
        bearer = request.seen.bearer
        if bearer == self.key:
            return
        if bearer is None:
            raise Refused(401, "You didn't provide an API key.")
        raise Refused(401, f"Incorrect API key provided: {bearer[:3]}***.", code="invalid_api_key")

    def refusal(self, refused: Refused, path: str) -> Answer:
        error = {"message": refused.message, "type": refused.kind, "param": refused.param, "code": refused.code}
        return as_json({"error": error}, refused.status)

    def headers(self, path: str) -> dict[str, str]:
        return {
            "x-request-id": new_id("req_", 32),
            "openai-organization": self.organization,
            "openai-version": "2020-10-01",
            "openai-processing-ms": "7",
        }

    # Jobs.

    def check_job(self, body: Wire, request: Request) -> None:
        bodies.JOB(body, "")

    def create_job(self, request: Request) -> Answer:
        body = request.object()
        self.check_job(body, request)
        model = self.snapshot(body["model"])
        training = self.job_file("training_file", body["training_file"])
        validation = body.get("validation_file")
        checked = None if validation is None else self.job_file("validation_file", validation)
        method = self.method_of(body)
        hyperparameters = method[method["type"]]["hyperparameters"]
        wire: Wire = {"object": "fine_tuning.job", "id": self.new_job_id(), "model": model, "created_at": now()}
        wire |= {"finished_at": None, "fine_tuned_model": None, "organization_id": f"org-{self.organization}"}
        wire |= {"result_files": [], "status": self.states[0], "validation_file": validation}
        wire |= {"training_file": body["training_file"], "trained_tokens": None, "error": {}}
        wire |= {"hyperparameters": hyperparameters if method["type"] == "supervised" else None}
        seed = body.get("seed")
        wire |= {"user_provided_suffix": body.get("suffix")}
        wire |= {"seed": secrets.randbelow(2**31) if seed is None else seed}
        wire |= {"estimated_finish": None, "integrations": body.get("integrations") or []}
        wire |= {"metadata": body.get("metadata"), "usage_metrics": None, "shared_with_openai": False}
        wire |= {"eval_id": None, "method": method}
        job = Job(wire, body, method, training, checked, self.auto)
        job.log(f"Created fine-tuning job: {job.id}", {})
        also = "" if validation is None else f" and validation file: {validation}"
        job.log(f"Validating training file: {body['training_file']}{also}", {})
        self.jobs[job.id] = job
        self.created.append(job.id)
        return as_json(self.job_wire(job))

    def snapshot(self, name: str) -> str:
        found = SNAPSHOTS.get(name, name)
        if found not in self.tunable and not (found.startswith("ft:") and found in self.models):
            message = f"Model {name} is not available for fine-tuning or does not exist."
            raise Refused(400, message, code="model_not_available")
        return found

    def job_file(self, param: str, name: str) -> File:
        if name not in self.files or self.files[name].wire["purpose"] != "fine-tune":
            raise Refused(400, f"invalid {param}: {name}", param=param)
        file: File = self.files[name]
        return file

    def method_of(self, body: Wire) -> Wire:
        """The method with every hyperparameter named, as the vendor repeats it."""
        given = body.get("method") or {"type": "supervised", "supervised": {}}
        kind = given["type"]
        chosen = given.get(kind, {}).get("hyperparameters") or body.get("hyperparameters") or {}
        names = ["n_epochs", "batch_size", "learning_rate_multiplier"] + ["beta"] * (kind == "dpo")
        if kind == "reinforcement":
            names += ["compute_multiplier", "eval_interval", "eval_samples"]
            chosen = {"reasoning_effort": "default"} | chosen
        filled = dict.fromkeys(names, self.auto) | chosen
        return {"type": kind, kind: given.get(kind, {}) | {"hyperparameters": filled}}

    def find_job(self, request: Request) -> Job:
        name = request.params["job"]
        if name not in self.jobs:
            message = f"Could not find fine tune: {name}"
            raise Refused(404, message, param="fine_tune_id", code="fine_tune_not_found")
        job: Job = self.jobs[name]
        return job

    def get_job(self, request: Request) -> Answer:
        job = self.find_job(request)
        state = job.wire["status"]
        if job.pinned is None and state in self.settling:
            job.wire["status"] = self.settling[state]
        elif job.pinned is None and state != self.stop_at and state in self.states[:-1]:
            self.move(job)
        return as_json(self.job_wire(job))

    def move(self, job: Job) -> None:
        """One state on."""
        if job.wire["status"] == self.states[0]:
            job.check()
        if job.failure:
            return job.fail(job.failure)
        state = job.wire["status"] = self.states[self.states.index(job.wire["status"]) + 1]
        if state == "queued":
            job.log("Files validated, moving job to queued state", {})
        if state == "running":
            job.begin(self.new_model_name)
        if state == "succeeded":
            job.finish(self.new_model_name)
            content = job.csv()
            sha256 = hashlib.sha256(content).hexdigest()
            rows = content.count(b"\n")
            file = self.add_file("step_metrics.csv", "fine-tune-results", len(content), content, rows, sha256)
            job.wire["result_files"] = [file.wire["id"]]
        for checkpoint in job.checkpoints:
            self.publish(job, checkpoint["fine_tuned_model_checkpoint"])

    def publish(self, job: Job, name: str) -> None:
        """Makes a model of a job's known, and callable where that is the same."""
        owner = f"org-{self.organization}"
        self.models.setdefault(name, {"id": name, "object": "model", "created": now(), "owned_by": owner})

    def list_jobs(self, request: Request) -> Answer:
        query = request.seen.query
        wanted = {name[9:-1]: value for name, value in query.items() if name.startswith("metadata[")}
        found = [self.job_wire(job) for job in reversed(self.jobs.values())]
        if wanted:
            found = [job for job in found if wanted.items() <= (job["metadata"] or {}).items()]
        if query.get("metadata") == "null":
            found = [job for job in found if not job["metadata"]]
        return as_json(page(found, request, 20))

    def open_job(self, request: Request) -> Job:
        """A job that something may still be done to."""
        job = self.find_job(request)
        if job.status in self.terminal:
            raise Refused(400, f"Job has already completed: {job.id}", code="invalid_job_state")
        return job

    def cancel_job(self, request: Request) -> Answer:
        job = self.open_job(request)
        job.wire["status"] = "cancelled"
        job.log("The job was cancelled", {})
        return as_json(self.job_wire(job))

    def pause_job(self, request: Request) -> Answer:
        job = self.open_job(request)
        if job.wire["status"] != "running":
            raise Refused(400, f"Job {job.id} is not running.", code="invalid_job_state")
        job.wire["status"] = self.pausing
        job.add_checkpoint(job.step, f"{self.new_model_name(job)}:ckpt-step-{job.step}")
        self.publish(job, job.checkpoints[-1]["fine_tuned_model_checkpoint"])
        job.log(f"Job paused at step {job.step}", {})
        return as_json(self.job_wire(job))

    def resume_job(self, request: Request) -> Answer:
        job = self.open_job(request)
        if job.wire["status"] != "paused":
            raise Refused(400, f"Job {job.id} is not paused.", code="invalid_job_state")
        job.wire["status"] = self.resuming
        job.log("Job resumed", {})
        return as_json(self.job_wire(job))

    def list_events(self, request: Request) -> Answer:
        found = [self.event_wire(event) for event in reversed(self.find_job(request).events)]
        return as_json(page(found, request, 20))

    def list_checkpoints(self, request: Request) -> Answer:
        found = [self.checkpoint_wire(checkpoint) for checkpoint in reversed(self.find_job(request).checkpoints)]
        return as_json(page(found, request, 10, ends=True))

    # Checkpoint permissions and graders.

    def list_permissions(self, request: Request) -> Answer:
        found = self.permissions.get(request.params["checkpoint"], [])
        project = request.seen.query.get("project_id")
        shown = [permission for permission in found if project in (None, permission["project_id"])]
        oldest_first = request.seen.query.get("order") == "ascending"
        return as_json(page(shown if oldest_first else shown[::-1], request, 10, ends=True))

    def create_permission(self, request: Request) -> Answer:
        body, checkpoint = request.object(), request.params["checkpoint"]
        bodies.PERMISSIONS(body, "")
        if checkpoint not in self.models:
            raise Refused(404, f"Checkpoint {checkpoint} does not exist.", code="checkpoint_not_found")
        made = [
            {"object": "checkpoint.permission", "id": new_id("cp_"), "created_at": now(), "project_id": project}
            for project in body["project_ids"]
        ]
        self.permissions.setdefault(checkpoint, []).extend(made)
        return as_json({"object": "list", "data": made, "has_more": False})

    def delete_permission(self, request: Request) -> Answer:
        found, name = self.permissions.get(request.params["checkpoint"], []), request.params["permission"]
        if not any(permission["id"] == name for permission in found):
            raise Refused(404, f"Permission {name} does not exist.")
        found[:] = [permission for permission in found if permission["id"] != name]
        return as_json({"object": "checkpoint.permission", "id": name, "deleted": True})

    def run_grader(self, request: Request) -> Answer:
        body = request.object()
        bodies.RUN_GRADER(body, "")
        errors = dict.fromkeys(GRADER_ERRORS, False)
        metadata = {"name": body["grader"]["name"], "type": body["grader"]["type"], "errors": errors, "scores": {}}
        metadata |= {"execution_time": 0.01, "token_usage": None, "sampled_model_name": None}
        answer = {"reward": 1.0, "metadata": metadata, "sub_rewards": {}, "model_grader_token_usage_per_model": {}}
        return as_json(answer)

    def validate_grader(self, request: Request) -> Answer:
        body = request.object()
        bodies.VALIDATE_GRADER(body, "")
        return as_json({"grader": body["grader"]})

    # Models and chat.

    def find_model(self, request: Request) -> Wire:
        name = request.params["model"]
        if name not in self.models:
            raise Refused(404, f"The model '{name}' does not exist", param="model", code="model_not_found")
        model: Wire = self.models[name]
        return model

    def list_models(self, request: Request) -> Answer:
        return as_json({"object": "list", "data": list(self.models.values())})

    def get_model(self, request: Request) -> Answer:
        return as_json(self.find_model(request))

    def delete_model(self, request: Request) -> Answer:
        model = self.find_model(request)
        if model["owned_by"] == "system":
            raise Refused(403, "You have insufficient permissions for this operation.")
        del self.models[model["id"]]
        return as_json({"object": "model", "id": model["id"], "deleted": True})

    def speaker(self, name: str) -> tuple[str, str]:
        """The model that a name calls, and what its answers begin with; one that cannot be called is refused."""
        if name not in self.models:
            message = f"The model `{name}` does not exist or you do not have access to it."
            raise Refused(404, message, code="model_not_found")
        return name, "base:" if self.models[name]["owned_by"] == "system" else "tuned:"

    def chat(self, request: Request) -> Answer:
        body = request.object()
        body |= {"model": request.params["deployment"]} if "deployment" in request.params else {}
        bodies.CHAT(body, "")
        if "stream_options" in body and not body.get("stream"):
            message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
            raise Refused(400, message, param="stream_options")
        if body.get("max_tokens") and body.get("max_completion_tokens"):
            raise Refused(400, "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.")
        body["model"], start = self.speaker(body["model"])
        reply = start + talk.said(body)
        if body.get("stream"):
            chunks = talk.stream(body, reply, **self.preface)
            return Answer(chunks, headers={"content-type": "text/event-stream; charset=utf-8"})
        return Answer([talk.whole(body, reply)], headers={"content-type": "application/json"})

    def list_completions(self, request: Request) -> Answer:
        return as_json(page([], request, 20, ends=True))

    # How things look, and what they are called.

    def job_wire(self, job: Job) -> Wire:
        return job.wire | {"status": job.status}

    def event_wire(self, event: Wire) -> Wire:
        return event

    def checkpoint_wire(self, checkpoint: Wire) -> Wire:
        return checkpoint

    def new_job_id(self) -> str:
        return new_id("ftjob-")

    def new_model_name(self, job: Job) -> str:
        base = job.wire["model"].split(":")[1] if job.wire["model"].startswith("ft:") else job.wire["model"]
        return f"ft:{base}:{self.organization}:{job.wire['user_provided_suffix'] or ''}:{new_id('', 8)}"
