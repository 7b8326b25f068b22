"""The `fake` provider: keyless, deterministic, needs no torch and two polls. For demos and for tests of clients.

A job succeeds at the second look; its model answers every chat with the last user message turned round. The answers
come from an HTTP server of its own, since a provider's upstream is always one: `python -m tuneway.providers.fake
SOCKET`, a child that ends with the gateway.
"""

from __future__ import annotations

import asyncio
import json
import re
import socketserver
import sys
import tempfile
import threading
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tuneway.dataset.messages import InvalidMessages, normalise
from tuneway.errors import EngineUnavailable, InvalidRequest, UnknownField
from tuneway.providers.base import Capabilities, Preparation, Report
from tuneway.types import (
    AUTO,
    BaseModel,
    Hyperparameters,
    JobHandle,
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

BASE = "fake-1"
CONTEXT_LENGTH = 1 << 20
_CSV = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n1,1.0,0.5,,\n2,0.5,1.0,,\n"
_LOSSES = {1: 1.0, 2: 0.5}


class Fake:
    name = "fake"
    capabilities = Capabilities(
        methods=frozenset({Method.SUPERVISED}), seed=True, suffix=True, validation_file=True, metadata=True
    )

    def __init__(self, folder: Path) -> None:
        """`folder` is where it remembers what was launched."""
        self._folder = folder
        self._starting = asyncio.Lock()
        self._child: Process | None = None
        self._sockets: tempfile.TemporaryDirectory[str] | None = None

    def base_models(self) -> Sequence[BaseModel]:
        return [BaseModel(BASE, self.name, "Answers with your last message turned round; trains in no time.", 0)]

    async def prepare(self, base: str, report: Report) -> Preparation:
        return Preparation(CONTEXT_LENGTH)

    def resolve(self, spec: JobSpec, n_examples: int) -> Resolved:
        numbers: dict[str, Any] = {"n_epochs": 1, "batch_size": 1, "learning_rate_multiplier": 1.0}
        reasons = dict.fromkeys(numbers, "auto, always")
        for name in numbers:
            given = getattr(spec.hyperparameters, name)
            if given != AUTO:
                numbers[name], reasons[name] = given, "as requested"
        return Resolved(Hyperparameters(**numbers), reasons)

    def workplace(self, key: str) -> Path | None:
        return None

    async def launch(self, spec: LaunchSpec) -> JobHandle:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._csv(spec.key).write_text(_CSV)
        return JobHandle(self.name, spec.key)

    async def find(self, key: str) -> JobHandle | None:
        return JobHandle(self.name, key) if self._csv(key).exists() else None

    async def poll(self, handle: JobHandle, cursor: str | None) -> JobUpdate:
        """The first look sees step 1, the second one step 2 and the result."""
        step = min(int(cursor or 0) + 1, 2)
        now, loss = int(time.time()), _LOSSES[step]
        event = NewEvent(
            f"step:{step}",
            f"Step {step}/2: training loss={loss:.2f}",
            now,
            type="metrics",
            data={"step": step, "total_steps": 2, "train_loss": loss, "train_mean_token_accuracy": step / 2},
        )
        progress = Progress(step, 2, train_loss=loss)
        if step == 1:
            return JobUpdate(str(step), JobStatus.RUNNING, "running", (event,), progress=progress)
        name = handle.provider_job_id
        last = ProviderCheckpoint(step, {"step": step, "train_loss": loss}, name, now, final=True)
        result = JobResult(name, trained_tokens=2, finished_at=now, metrics_csv=self._csv(name))
        return JobUpdate(str(step), JobStatus.RUNNING, "finished", (event,), (last,), progress, result)

    async def cancel(self, handle: JobHandle) -> None:
        """Nothing runs."""

    async def release(self, key: str) -> None:
        self._csv(key).unlink(missing_ok=True)

    async def settle(self, model: Model) -> None:
        await self.upstream(model.base, model)

    async def upstream(self, base: str, model: Model | None) -> Upstream:
        async with self._starting:
            if self._child is None or self._child.returncode is not None:
                await self._start()
        assert self._sockets is not None
        shown = base if model is None else model.id
        socket = Path(self._sockets.name) / "fake.sock"
        return Upstream("http://fake/v1/chat/completions", {"x-tuneway-model": shown}, socket)

    async def forget(self, model: Model) -> None:
        """Its models are nothing but names."""

    async def close(self) -> None:
        if self._child is not None and self._child.returncode is None:
            self._child.kill()
            await self._child.wait()
        if self._sockets is not None:
            self._sockets.cleanup()

    def _csv(self, key: str) -> Path:
        return self._folder / f"{key}.csv"

    async def _start(self) -> None:
        if self._sockets is not None:
            self._sockets.cleanup()
        self._sockets = tempfile.TemporaryDirectory(prefix="tuneway-fake-")
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "tuneway.providers.fake", f"{self._sockets.name}/fake.sock"),
            stdin=PIPE,
            stdout=PIPE,
            start_new_session=True,
        )
        assert child.stdout is not None
        if not await child.stdout.readline():
            raise EngineUnavailable("The fake upstream did not start.")
        self._child = child


# ------------------------------------------------------------------------------------------------------ its upstream


_WITHOUT_EFFECT = {"temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed", "user", "metadata"}


def _understood(body: bytes) -> tuple[dict[str, Any], list[str]]:
    """The request and what its user messages say. Raises InvalidRequest."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise InvalidRequest("The body has a key twice. Send each once.", code="duplicate_key")
        return found

    try:
        request = json.loads(body, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("The body is not valid JSON.") from error
    unknown = sorted(request.keys() - _WITHOUT_EFFECT - {"model", "messages", "stream"})
    if unknown:
        raise UnknownField(f"The fake provider does not know '{unknown[0]}'.", param=unknown[0])
    if not request.get("messages"):
        raise InvalidRequest("Missing required parameter: 'messages'.", param="messages")
    try:
        turns = normalise(request["messages"])
    except InvalidMessages as error:
        raise InvalidRequest(error.message, param=error.param) from error
    return request, [turn.content for turn in turns if turn.role == "user"]


class _Upstream(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    _ignored = ""

    def do_POST(self) -> None:
        try:
            request, said = _understood(self.rfile.read(int(self.headers["content-length"])))
        except InvalidRequest as error:
            self._send("application/json", json.dumps(error.envelope()).encode(), error.status)
            return
        text = " ".join(reversed(said[-1].split())) if said else ""
        self._ignored = ", ".join(sorted(request.keys() & _WITHOUT_EFFECT))
        frame = {"id": "chatcmpl-fake", "created": int(time.time()), "model": self.headers["x-tuneway-model"]}
        if request.get("stream"):
            self._stream(frame, text)
        else:
            self._answer(frame, text)

    def _answer(self, frame: dict[str, Any], text: str) -> None:
        words = len(text.split())
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
        body = {
            **frame,
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": words, "completion_tokens": words, "total_tokens": 2 * words},
        }
        self._send("application/json", json.dumps(body).encode())

    def _stream(self, frame: dict[str, Any], text: str) -> None:
        deltas: list[tuple[dict[str, Any], str | None]] = [
            ({"role": "assistant", "content": "", "refusal": None}, None)
        ]
        deltas += [({"content": piece}, None) for piece in re.findall(r"\S+\s*", text)] + [({}, "stop")]
        lines = []
        for delta, reason in deltas:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
            chunk = {**frame, "object": "chat.completion.chunk", "choices": [choice]}
            lines.append(f"data: {json.dumps(chunk)}\n\n")
        self._send("text/event-stream; charset=utf-8", "".join([*lines, "data: [DONE]\n\n"]).encode())

    def _send(self, kind: str, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        if self._ignored:
            self.send_header("x-tuneway-ignored", self._ignored)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: requests hold what users wrote."""

    def address_string(self) -> str:
        return "gateway"


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def main(socket: str) -> None:
    """Serves until standard input ends, which it does with the gateway."""
    with _Server(socket, _Upstream) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
