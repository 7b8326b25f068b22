"""A stub gateway for the command line's tests: canned answers in OpenAI's shape, and strict about what it is asked.

A path, a query or a field that it does not know is an error, so that no gateway is sent what none takes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

BASE = "smollm2-135m-instruct"
JOB_FIELDS = {"model", "training_file", "validation_file", "suffix", "seed", "method"}
TERMINAL = ("succeeded", "failed", "cancelled")
CHAT_FIELDS = {"model", "messages", "temperature", "max_tokens", "stream"}


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


class StubGateway:
    """`outcome` is how jobs end; each look at a job moves it on by one of `looks` steps, as does who follows it.

    `answer` answers chats. `keys` are those that came with requests.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.models = [BASE]
        self.outcome = "succeeded"
        self.looks = 2
        self.looked = threading.Event()
        self.accounts: dict[str, dict[str, Any]] = {}
        self.silent: set[str] = set()
        """Accounts whose vendors do not answer."""
        self.requests: list[tuple[str, str, Any]] = []
        self.keys: set[str] = set()
        self._stopped = threading.Event()
        self.answer: Callable[[str, list[dict[str, Any]]], str] = lambda model, messages: f"{model} heard you"
        self.break_stream = False
        self.port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Serves on the port of the last time, or at first on a free one."""
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                try:
                    answer = stub.respond(self.command, self.path, self.headers, body)
                except Refused as refused:
                    return self.reply(refused.status, json.dumps(refused.body).encode(), "application/json")
                if isinstance(answer, Iterator):
                    return self.stream(answer)
                kind = "application/json"
                if isinstance(answer, bytes):
                    kind = "text/event-stream" if answer.startswith(b"data: ") else "application/octet-stream"
                self.reply(200, answer if isinstance(answer, bytes) else json.dumps(answer).encode(), kind)

            do_GET = do_POST = do_DELETE = handle_any

            def reply(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def stream(self, frames: Iterator[bytes]) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                try:
                    for frame in frames:
                        self.wfile.write(frame)
                except ConnectionError:  # the client has left
                    self.close_connection = True

        self._stopped.clear()
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def respond(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Any:
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query))
        path = parts.path.removeprefix("/v1").strip("/").split("/")
        sent = json.loads(body) if body and headers.get("content-type") == "application/json" else None
        self.requests.append((method, parts.path, sent))
        self.keys.add(headers.get("authorization", ""))
        match method, path:
            case "GET", ["files"]:
                return _page(self._known(query, {"purpose", "limit", "after"}) and list(self.files.values())[::-1])
            case "POST", ["files"]:
                return self._upload(headers["content-type"], body)
            case "GET", ["files", name, "content"]:
                self._find(self.files, name)
                return self.contents[name]
            case "GET", ["files", name]:
                return self._find(self.files, name)
            case "DELETE", ["files", name]:
                del self.files[self._find(self.files, name)["id"]]
                return {"id": name, "object": "file", "deleted": True}
            case "GET", ["models"]:
                return {"object": "list", "data": [_model(name) for name in self.models]}
            case "GET", ["models", name] if name in self.models:
                return _model(name)
            case "DELETE", ["models", name] if name in self.models:
                self.models.remove(name)
                return {"id": name, "object": "model", "deleted": True}
            case "POST", ["chat", "completions"]:
                return self._chat(sent)
            case _, ["tuneway", "providers", *rest]:
                return self._providers(method, rest, sent)
            case "POST", ["tuneway", "jobs", name, "adopt"] if set(sent) == {"provider_job_id"}:
                job = self._find(self.jobs, name)
                job["tuneway"] |= {"state": "queued", "attention": None, "provider_job_id": sent["provider_job_id"]}
                return job
            case _, ["fine_tuning", "jobs", *rest]:
                return self._jobs(method, rest, query, headers, sent)
        raise Refused(404, f"Invalid URL ({method} {parts.path})")

    def _jobs(self, method: str, rest: list[str], query: dict[str, str], headers: Mapping[str, str], sent: Any) -> Any:
        match method, rest:
            case "POST", []:
                return self._create(sent)
            case "GET", []:
                return _page(self._known(query, {"limit", "after"}) and list(self.jobs.values())[::-1])
            case "GET", [name]:
                return self._look(self._find(self.jobs, name))
            case "GET", [name, "events"] if query == {"stream": "true"}:
                return self._follow(self._find(self.jobs, name), headers.get("last-event-id"))
            case "GET", [name, "events"]:
                self._known(query, {"limit", "after"})
                return _page(self.events[self._find(self.jobs, name)["id"]][::-1])
            case "GET", [name, "checkpoints"]:
                self._find(self.jobs, name)
                return _page([])
            case "POST", [name, "cancel" | "pause" | "resume" as verb]:
                job = self._find(self.jobs, name)
                if job["status"] in TERMINAL:
                    raise Refused(400, "Job has already completed")
                job["status"] = "cancelled" if verb == "cancel" else "queued"
                job["tuneway"]["state"] = {"cancel": "cancelled", "pause": "paused", "resume": "queued"}[verb]
                return job
        raise Refused(404, f"Invalid URL ({method} {rest})")

    def _providers(self, method: str, rest: list[str], sent: Any) -> Any:
        match method, rest:
            case "GET", []:
                return _page(list(self.accounts.values()))
            case "GET", ["kinds"]:
                kind = {"options": {"base_url": "Another URL."}, "secrets": {"api_key": "The key."}}
                return {**_page([{"name": "openai", **kind}]), "limits": {"concurrency": "At a time."}}
            case "POST", []:
                self._known(sent, {"name", "kind", "options", "secrets"})
                self.accounts[sent["name"]] = _account(sent)
                return self.accounts[sent["name"]]
            case "GET", [name]:
                return self._find(self.accounts, name)
            case "DELETE", [name]:
                del self.accounts[self._find(self.accounts, name)["name"]]
                return {"id": name, "object": "tuneway.provider", "deleted": True}
            case "POST", [name, "check"]:
                self._find(self.accounts, name)
                if name in self.silent:
                    raise Refused(401, "Incorrect API key provided: sk-***.")
                return {"ok": True}
        raise Refused(404, f"Invalid URL ({method} {rest})")

    def _follow(self, job: dict[str, Any], last: str | None) -> Iterator[bytes]:
        """All events behind the last, which must be one; then a step further again and again, until it has ended."""
        events = self.events[job["id"]]
        sent = 0 if last is None else [event["id"] for event in events].index(last) + 1
        while not self._stopped.wait(0.01):
            for event in events[sent:]:
                yield f"id: {event['id']}\ndata: {json.dumps(event)}\n\n".encode()
            sent = len(events)
            if job["status"] in TERMINAL:
                yield b"data: [DONE]\n\n"
                return
            yield b": \n\n"
            self._look(job)

    def _known(self, found: Mapping[str, Any], known: set[str]) -> bool:
        if unknown := set(found) - known:
            raise Refused(400, f"Unknown: {sorted(unknown)}", "unknown_parameter")
        return True

    def _find(self, among: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
        if name not in among:
            raise Refused(404, f"There is no {name}")
        return among[name]

    def _upload(self, kind: str, body: bytes) -> Any:
        form = message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
        parts = {part.get_param("name", header="content-disposition"): part for part in form.get_payload()}  # type: ignore[union-attr]  # a form has parts
        if set(parts) != {"file", "purpose"} or parts["purpose"].get_payload() != "fine-tune":
            raise Refused(400, f"Not an upload for fine-tuning: {sorted(map(str, parts))}")
        content = parts["file"].get_payload(decode=True)
        made = f"file-{len(self.contents) + 1}"
        self.contents[made] = content
        self.files[made] = {
            "id": made,
            "object": "file",
            "bytes": len(content),
            "created_at": 1_790_000_000,
            "filename": parts["file"].get_filename(),
            "purpose": "fine-tune",
            "status": "processed",
        }
        return self.files[made]

    def _create(self, sent: dict[str, Any]) -> Any:
        self._known(sent, JOB_FIELDS)
        for field in ("training_file", "validation_file"):
            if field in sent and sent[field] not in self.files:
                raise Refused(400, f"invalid {field}: {sent[field]}")
        auto = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
        used = auto | sent.get("method", {}).get("supervised", {}).get("hyperparameters", {})
        made = f"ftjob-{len(self.jobs) + 1}"
        self.jobs[made] = {
            "id": made,
            "object": "fine_tuning.job",
            "model": sent["model"],
            "created_at": 1_790_000_000,
            "finished_at": None,
            "fine_tuned_model": None,
            "organization_id": "org-test",
            "result_files": [],
            "status": "validating_files",
            "training_file": sent["training_file"],
            "validation_file": sent.get("validation_file"),
            "hyperparameters": used,
            "trained_tokens": None,
            "error": None,
            "seed": sent.get("seed", 1),
            "tuneway": {"state": "validating_files", "provider": "local", "looks": 0},
        }
        self.events[made] = []
        self._tell(made, f"Created fine-tuning job: {made}")
        return self.jobs[made]

    def _look(self, job: dict[str, Any]) -> Any:
        job["tuneway"]["looks"] += 1
        looks = job["tuneway"]["looks"]
        if job["status"] in ("validating_files", "running"):
            job["status"] = "running"
            metrics = {"step": looks, "total_steps": self.looks, "train_loss": 0.25}
            self._tell(job["id"], f"Step {looks}", "metrics", metrics)
            job["tuneway"]["progress"] = {
                "step": looks,
                "total_steps": self.looks,
                "tokens_per_second": 1234.5,
                "seconds_left": 75.0,
                "train_loss": 0.25,
                "valid_loss": None,
            }
            if looks >= self.looks:
                self._end(job)
        self.looked.set()
        return job

    def _end(self, job: dict[str, Any]) -> None:
        job["status"] = self.outcome
        if self.outcome == "succeeded":
            job["fine_tuned_model"] = f"ft:{BASE}:default:test:{len(self.models):08}"
            self.models.append(job["fine_tuned_model"])
            self._tell(job["id"], "The job has successfully completed")
        if self.outcome == "failed":
            job["error"] = {"code": "invalid_n_examples", "message": "Too few examples", "param": "training_file"}

    def _tell(self, job: str, message: str, type_: str = "message", data: Mapping[str, Any] | None = None) -> None:
        self.events[job].append(
            {
                "id": f"ftevent-{job}-{len(self.events[job])}",
                "object": "fine_tuning.job.event",
                "created_at": 1_790_000_000,
                "level": "info",
                "message": message,
                "type": type_,
                "data": data or {},
            }
        )

    def _chat(self, sent: dict[str, Any]) -> Any:
        self._known(sent, CHAT_FIELDS)
        if sent["model"] not in self.models:
            raise Refused(404, f"The model `{sent['model']}` does not exist", "model_not_found")
        text = self.answer(sent["model"], sent["messages"])
        shape = {"id": "chatcmpl-1", "created": 1_790_000_000, "model": sent["model"]}
        if not sent.get("stream"):
            message = {"role": "assistant", "content": text, "refusal": None}
            choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
            return {**shape, "object": "chat.completion", "choices": [choice]}
        chunks: list[Any] = [
            {**shape, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": piece}}]}
            for piece in text.split(" ")
        ]
        if self.break_stream:
            chunks[1:] = [Refused(502, "The engine ended", "upstream_broken").body]
        return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def _page(data: Any) -> dict[str, Any]:
    return {"object": "list", "data": data, "has_more": False}


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_790_000_000, "owned_by": "tuneway"}


def _account(sent: dict[str, Any]) -> dict[str, Any]:
    line: dict[str, Any] = {"circuit": "closed", "under_way": 0, "concurrency": 16, "timeout_seconds": 120.0}
    line |= {"answered": {"2xx": 3}, "failures_in_a_row": 0, "resting_until": None, "last_error": None}
    can: dict[str, Any] = dict.fromkeys(("seed", "suffix", "metadata", "validation_file", "learning_rate"), True)
    can |= {"pause": False, "methods": ["dpo", "supervised"], "options": [], "refused_features": []}
    return {
        "object": "tuneway.provider",
        "name": sent["name"],
        "kind": sent.get("kind", sent["name"]),
        "origin": "store",
        "options": sent.get("options", {}),
        "secrets": sorted(sent.get("secrets", {})),
        "capabilities": can,
        "line": line,
        "unended_jobs": 0,
        "created_at": 1_790_000_000,
    }
