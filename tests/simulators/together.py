"""Together's API: files, fine-tuning jobs, dedicated endpoints (v1) and chat.

Fields, paths and words are those of the SDK together 3.1.1 and of the vendor's OpenAPI document (April 2026); the
errors of chat are those that users quote. Assumed, for no document says it: that unknown fields and files with broken
rows are refused at once, and that a learning rate of 0.01 is too high. There is no metadata, no pagination, and no key
that makes a create idempotent: a job is found again by its suffix, which create and list show and retrieve does not.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, ClassVar

from tests.simulators import openai_chat as talk
from tests.simulators import together_bodies as bodies
from tests.simulators.base import Answer, Handler, Refused, Request, Simulator, as_json
from tests.simulators.multipart import Part
from tests.simulators.together_bodies import LEAST_BATCH, MOST_BATCH, MOST_RANK, MOST_RATE

BASES = {"Qwen/Qwen3-8B": True, "meta-llama/Meta-Llama-3.1-8B-Instruct-Reference": False}
"""What can be tuned, and whether an endpoint can serve it: the `-Reference` models are for training only."""
SERVERLESS = "Qwen/Qwen2.5-7B-Instruct-Turbo"
HARDWARE = "1x_nvidia_h100_80gb_sxm"
SERVING = ("PENDING", "STARTING", "STARTED")
EVENTS = {
    "pending": ("job_pending", "Fine-tune request created"),
    "queued": ("job_start", "Job started"),
    "running": ("training_start", "Training started"),
    "compressing": ("training_complete", "Training completed"),
    "uploading": ("model_uploading", "Uploading model"),
    "completed": ("job_complete", "Job finished"),
    "cancel_requested": ("cancel_requested", "Job cancellation requested"),
    "cancelled": ("job_stopped", "Job cancelled"),
    "error": ("job_error", "Internal error"),
    "user_error": ("job_error", "The training file could not be read"),
}
NOT_RETRIEVED = frozenset({"suffix", "random_seed", "packing", "max_seq_length", "owner_address"})
FORMATS = {"messages": "CONVERSATION", "prompt": "INSTRUCTION", "text": "GENERAL", "input": "PREFERENCE_OPENAI"}

Wire = dict[str, Any]


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def report_of(part: Part) -> Wire:
    """What the vendor's check of a file finds; what was too large to keep counts as good."""
    report: Wire = {"valid": True, "nlines": part.rows}
    for at, line in enumerate(bytes(part.content or b"").splitlines(), 1):
        try:
            row = json.loads(line)
            report["dataset_format"] = next(kind for key, kind in FORMATS.items() if key in row)
        except (ValueError, StopIteration, TypeError):
            return {"valid": False, "error_type": "INVALID_FORMAT", "error": f"Line {at} has no known format."}
    return report


class TogetherSimulator(Simulator):
    """`stop_at` names the status that no job goes beyond; every GET of a job moves it one status on.

    `destroyed` are the jobs whose records were deleted, `endpoints` is what bills by the minute until it is deleted.
    """

    states: ClassVar = ("pending", "queued", "running", "compressing", "uploading", "completed")
    terminal: ClassVar = frozenset({"completed", "cancelled", "error", "user_error"})

    def __init__(self, key: str = "tgp-simulated", account: str = "acme") -> None:
        super().__init__(key)
        self.account = account
        self.stop_at: str | None = None
        self.pinned: dict[str, str] = {}
        self.destroyed: list[str] = []
        self.endpoints: dict[str, Wire] = {}
        self.parts: dict[str, Part] = {}
        for name in (*BASES, SERVERLESS):
            self.publish(name)

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def set_status(self, job_id: str, raw: str | None) -> None:
        """Shows this word from now on, whatever it means; None lets the job go on from where it was."""
        with self.lock:
            self.pinned.pop(job_id, None)
            if raw is not None:
                self.pinned[job_id] = raw

    def finish_job(self, job_id: str, status: str = "completed") -> None:
        """Ends a job at once, whatever `stop_at` says."""
        with self.lock:
            self.enter(self.jobs[job_id], status)

    def routes(self) -> Iterable[tuple[str, str, str, Handler]]:
        file, job, endpoint = "/v1/files/{id}", "/v1/fine-tunes/{id}", "/v1/endpoints/{id}"
        return [
            ("POST", "/v1/files/upload", "create_file", self.create_file),
            ("GET", "/v1/files", "files", lambda _: as_json({"data": list(self.files.values())})),
            ("GET", file, "file", lambda request: as_json(self.find_file(request.params["id"]))),
            ("GET", f"{file}/content", "file_content", self.get_content),
            ("DELETE", file, "delete_file", self.delete_file),
            ("POST", "/v1/fine-tunes", "create_job", self.create_job),
            ("GET", "/v1/fine-tunes", "jobs", lambda _: as_json({"data": list(map(self.shown, self.jobs.values()))})),
            ("GET", job, "job", self.get_job),
            ("DELETE", job, "delete_job", self.delete_job),
            ("POST", f"{job}/cancel", "cancel_job", self.cancel_job),
            ("GET", f"{job}/events", "events", lambda request: as_json({"data": self.find_job(request)["events"]})),
            ("GET", f"{job}/checkpoints", "checkpoints", self.list_checkpoints),
            ("GET", f"{job}/metrics", "metrics", self.list_metrics),
            ("GET", "/v1/hardware", "hardware", self.list_hardware),
            ("POST", "/v1/endpoints", "create_endpoint", self.create_endpoint),
            ("GET", "/v1/endpoints", "endpoints", self.list_endpoints),
            ("GET", endpoint, "endpoint", self.get_endpoint),
            ("DELETE", endpoint, "delete_endpoint", self.delete_endpoint),
            ("GET", "/v1/models", "models", lambda _: as_json(list(self.models.values()))),  # a bare array
            ("POST", "/v1/chat/completions", "chat", self.chat),
        ]

    def authorize(self, request: Request, operation: str) -> None:
        if request.seen.bearer != self.key:
            raise Refused(401, "Invalid API key provided.", code="invalid_api_key")

    def refusal(self, refused: Refused, path: str) -> Answer:
        error = {"message": refused.message, "type": refused.kind, "param": refused.param, "code": refused.code}
        return as_json({"id": secrets.token_urlsafe(16), "error": error}, refused.status)

    # Files.

    def create_file(self, request: Request) -> Answer:
        form = request.form
        if form is None or form.broken or not form.whole:
            raise Refused(400, "Expected a multipart/form-data body.")
        given = {part.name: part.text if part.filename is None else part for part in form.parts}
        bodies.UPLOAD(given, "")
        part = given["file"]
        if not isinstance(part, Part) or not part.size:
            raise Refused(400, "The file is empty, or is no file.", param="file")
        file: Wire = {"id": f"file-{secrets.token_hex(16)}", "object": "file", "bytes": part.size}
        file |= {"created_at": int(time.time()), "filename": given["file_name"], "purpose": "fine-tune"}
        file |= {"FileType": "jsonl", "LineCount": part.rows, "Processed": False, "processing_status": "PENDING"}
        self.files[file["id"]], self.parts[file["id"]] = file, part
        return as_json(file)

    def find_file(self, id: str, param: str | None = None) -> Wire:
        """The file, which has been checked by now."""
        if id not in self.files:
            raise Refused(400 if param else 404, f"File {id} was not found.", param=param, code="not_found")
        report = report_of(self.parts[id])
        done = "COMPLETED" if report["valid"] else "INVALID_FORMAT"
        file: Wire = self.files[id]
        file |= {"Processed": True, "processing_status": done, "validation_report": report | {"file_id": id}}
        return file

    def get_content(self, request: Request) -> Answer:
        content = self.parts[self.find_file(request.params["id"])["id"]].content
        return Answer([bytes(content or b"")], headers={"content-type": "application/octet-stream"})

    def delete_file(self, request: Request) -> Answer:
        file = self.files.pop(self.find_file(request.params["id"])["id"])
        return as_json({"id": file["id"], "deleted": True})

    # Jobs.

    def create_job(self, request: Request) -> Answer:
        asked = request.object()
        bodies.JOB(asked, "")
        base = asked.get("model") or asked.get("from_checkpoint") or ""
        if ("model" in asked) == ("from_checkpoint" in asked):
            raise Refused(400, "You must specify either a model or a checkpoint, not both.", param="model")
        if "model" in asked and base not in BASES:
            raise Refused(400, f"Model {base} is not available for fine-tuning.", param="model")
        parents = [name for job in self.jobs.values() for name in (job["id"], job["model_output_name"])]
        if "from_checkpoint" in asked and base.split(":")[0] not in parents:
            raise Refused(404, f"Checkpoint {base} was not found.", param="from_checkpoint", code="not_found")
        batch = MOST_BATCH if asked.get("batch_size", "max") == "max" else asked["batch_size"]
        if not LEAST_BATCH <= batch <= MOST_BATCH:
            wrong = f"higher than {MOST_BATCH}" if batch > MOST_BATCH else f"lower than {LEAST_BATCH}"
            raise Refused(400, f"Invalid param in Model request: batch size is {wrong}", param="batch_size")
        if asked.get("learning_rate", 0) >= MOST_RATE:
            wrong = f"Invalid param in Model request: learning rate is not lower than {MOST_RATE}"
            raise Refused(400, wrong, param="learning_rate")
        method = asked.get("training_method") or {"method": "sft", "train_on_inputs": "auto"}
        self.check_files(asked, method["method"] == "dpo")
        output = "-".join(filter(None, [base.split("/")[-1], asked.get("suffix"), secrets.token_hex(4)]))
        job: Wire = {"n_epochs": 1, "n_checkpoints": 1, "n_evals": 0, "learning_rate": 1e-5, "packing": True}
        job |= {name: value for name, value in asked.items() if name not in ("wandb_key", "wandb_api_key")}
        job |= {"id": f"ft-{secrets.token_hex(4)}-{secrets.token_hex(2)}", "created_at": now(), "user_id": "user-1"}
        job |= {"owner_address": "owner@example.com", "training_method": method, "batch_size": batch, "events": []}
        if not asked.get("training_type"):
            job["training_type"] = {"type": "Lora", "lora_r": MOST_RANK, "lora_alpha": 2 * MOST_RANK}
        job |= {"model_output_name": f"{self.account}/{output}", "token_count": 0, "total_price": 0}
        self.jobs[job["id"]] = job
        self.enter(job, self.states[0])
        self.created.append(job["id"])
        return as_json(self.shown(job))

    def check_files(self, asked: Wire, preferences: bool) -> None:
        """Refuses files that are not there, broken, or not of the method's kind."""
        for param in ("training_file", "validation_file"):
            if asked.get(param):
                report = self.find_file(asked[param], param)["validation_report"]
                found = report.get("dataset_format")
                if not report["valid"] or (found and preferences != (found == "PREFERENCE_OPENAI")):
                    wrong = f"The file does not fit the training method: {report.get('error', found)}"
                    raise Refused(400, wrong, param=param)
        if asked.get("n_evals") and not asked.get("validation_file"):
            raise Refused(400, "n_evals needs a validation file.", param="n_evals")

    def enter(self, job: Wire, status: str) -> None:
        job |= {"status": status, "updated_at": now()}
        if status == "running":
            job["started_at"] = job["updated_at"]
        if status == "completed":
            tokens = self.parts[job["training_file"]].size // 4 * job["n_epochs"]
            job |= {"epochs_completed": job["n_epochs"], "token_count": tokens, "total_price": 4}
            self.publish(job["model_output_name"])
        kind, message = EVENTS[status]
        event: Wire = {"object": "fine-tune-event", "created_at": job["updated_at"], "level": "info", "type": kind}
        event |= {"message": message, "hash": secrets.token_hex(8), "checkpoint_path": "", "model_path": ""}
        event |= dict.fromkeys(("step", "total_steps", "param_count", "token_count", "training_offset"), 0)
        job["events"].append(event | {"wandb_url": ""})

    def shown(self, job: Wire) -> Wire:
        return job | {"status": self.pinned.get(job["id"], job["status"])}

    def find_job(self, request: Request) -> Wire:
        found: Wire | None = self.jobs.get(request.params["id"])
        if found is None:
            raise Refused(404, f"Fine-tune job {request.params['id']} was not found.", code="not_found")
        return found

    def get_job(self, request: Request) -> Answer:
        job = self.find_job(request)
        status = job["status"]
        if job["id"] not in self.pinned and status != self.stop_at:
            if status == "cancel_requested":
                self.enter(job, "cancelled")
            elif status in self.states[:-1]:
                self.enter(job, self.states[self.states.index(status) + 1])
        return as_json({name: value for name, value in self.shown(job).items() if name not in NOT_RETRIEVED})

    def cancel_job(self, request: Request) -> Answer:
        job = self.find_job(request)
        if self.shown(job)["status"] in self.terminal:
            raise Refused(400, f"Job {job['id']} has ended and cannot be cancelled.")
        if job["status"] != "cancel_requested":
            self.enter(job, "cancel_requested")
        return as_json(self.shown(job))

    def delete_job(self, request: Request) -> Answer:
        job = self.jobs.pop(self.find_job(request)["id"])
        self.destroyed.append(job["id"])
        return as_json({"message": f"Fine-tune job {job['id']} was deleted."})

    def list_checkpoints(self, request: Request) -> Answer:
        job = self.find_job(request)
        count = max(1, job["n_checkpoints"]) if job["status"] == "completed" else 0
        found: list[Wire] = [{"step": 10 * at, "created_at": job["updated_at"]} for at in range(1, count + 1)]
        for kept in found:
            kept["path"] = f"s3://together-dev/finetune/{job['id']}/step-{kept['step']}"
            kept["checkpoint_type"] = "Final" if kept is found[-1] else f"Intermediate (step {kept['step']})"
            kept["checkpoint"] = "adapter" if job["training_type"]["type"] == "Lora" else "model"
        return as_json({"data": found})

    def list_metrics(self, request: Request) -> Answer:
        job = self.find_job(request)
        steps, rate = range(1, 4) if "started_at" in job else (), job["learning_rate"]
        logged = [{"train/loss": 2 / at, "train/learning_rate": rate, "train/global_step": at} for at in steps]
        return as_json({"metrics": logged})

    # Serving.

    def publish(self, name: str) -> None:
        self.models[name] = {"id": name, "object": "model", "created": int(time.time()), "type": "chat"}

    def check_deployable(self, model: str) -> None:
        """A base that only trains cannot be served, nor can what was tuned from it."""
        base = next((job.get("model") for job in self.jobs.values() if job["model_output_name"] == model), model)
        if model not in self.models or not BASES.get(base or "", model != SERVERLESS):
            raise Refused(404, f"No hardware can serve {model}.", param="model", code="not_found")

    def list_hardware(self, request: Request) -> Answer:
        if "model" in request.seen.query:
            self.check_deployable(request.seen.query["model"])
        specs = {"gpu_type": "h100-80gb", "gpu_link": "sxm", "gpu_memory": 80, "gpu_count": 1}
        hardware = {"object": "hardware", "id": HARDWARE, "pricing": {"cents_per_minute": 5.5}, "specs": specs}
        hardware |= {"availability": {"status": "available"}, "updated_at": now()}
        return as_json({"object": "list", "data": [hardware]})

    def create_endpoint(self, request: Request) -> Answer:
        asked = request.object()
        bodies.ENDPOINT(asked, "")
        model, scaling = asked["model"], asked["autoscaling"]
        self.check_deployable(model)
        if asked["hardware"] != HARDWARE:
            raise Refused(400, f"Hardware {asked['hardware']} cannot serve {model}.", param="hardware")
        if scaling["min_replicas"] > scaling["max_replicas"]:
            raise Refused(400, "There are more replicas at least than at most.", param="autoscaling")
        endpoint: Wire = {"object": "endpoint", "id": f"endpoint-{secrets.token_hex(16)}", "type": "dedicated"}
        endpoint |= {"name": f"{self.account}/{model.split('/')[-1]}-{secrets.token_hex(4)}", "model": model}
        endpoint |= {"display_name": asked.get("display_name", ""), "hardware": HARDWARE, "owner": self.account}
        endpoint |= {"autoscaling": scaling, "created_at": now()}
        endpoint["state"] = "STOPPED" if asked.get("state") == "STOPPED" else SERVING[0]
        self.endpoints[endpoint["id"]] = endpoint
        return as_json(endpoint)

    def find_endpoint(self, request: Request) -> Wire:
        if request.params["id"] not in self.endpoints:
            raise Refused(404, f"Endpoint {request.params['id']} was not found.", code="not_found")
        return self.endpoints[request.params["id"]]

    def list_endpoints(self, request: Request) -> Answer:
        hidden = ("display_name", "hardware", "autoscaling")
        shown = [{name: found[name] for name in found if name not in hidden} for found in self.endpoints.values()]
        return as_json({"object": "list", "data": shown})

    def get_endpoint(self, request: Request) -> Answer:
        endpoint = self.find_endpoint(request)
        if endpoint["state"] in SERVING[:-1]:
            endpoint["state"] = SERVING[SERVING.index(endpoint["state"]) + 1]
        return as_json(endpoint)

    def delete_endpoint(self, request: Request) -> Answer:
        del self.endpoints[self.find_endpoint(request)["id"]]
        return Answer([b""], 204)

    def chat(self, request: Request) -> Answer:
        body = request.object()
        bodies.CHAT(body, "")
        model = body["model"]
        serving = [found for found in self.endpoints.values() if model in (found["name"], found["model"])]
        if model != SERVERLESS and not any(found["state"] == "STARTED" for found in serving):
            if serving:
                wrong, code = f"The dedicated endpoint for {model} is not running.", "dedicated_endpoint_not_running"
                raise Refused(400, wrong, code=code)
            if model in self.models:
                raise Refused(400, f"Unable to access non-serverless model {model}.", code="model_not_available")
            raise Refused(404, f"Unable to access model {model}.", code="model_not_found")
        served = serving[0]["model"] if serving else model
        reply = ("base:" if served in (*BASES, SERVERLESS) else "tuned:") + talk.said(body)
        if body.get("stream"):
            return Answer(talk.stream(body, reply), headers={"content-type": "text/event-stream"})
        return Answer([talk.whole(body, reply)], headers={"content-type": "application/json"})
