"""A gateway as its users run it: the installed wheel, in a process of its own, spoken to by the official SDK."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openai
import psutil
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent

from tuneway.rundir import RunDir

BASE = "tiny"
PATIENCE = 120
"""Seconds after which something that should have happened is said not to; far above what it takes."""


class Gateway:
    """`data` survives `kill` and `stop`; `start` again goes on with it."""

    def __init__(self, site: Path, data: Path, config: Path) -> None:
        self._site = site
        self.data = data
        self._config = config
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        self._client: openai.OpenAI | None = None

    def start(self) -> Gateway:
        self._process = self.spawn()
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the gateway ended with {self._process.wait()}: {self.log()}"
        self.url = json.loads(line)["url"]
        return self

    def spawn(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tuneway", "serve", "--port", "0", "--json"]
        command += ["--data", str(self.data), "--config", str(self._config)]
        environment = {**os.environ, "PYTHONPATH": str(self._site), "PYTHONWARNINGS": "default"}
        self.data.mkdir(exist_ok=True)
        with open(self.data / "gateway.log", "a") as log:
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)

    def log(self) -> str:
        return (self.data / "gateway.log").read_text()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        return self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> int:
        if self._process is None:
            return 0
        if self._client is not None:
            self._client.close()
            self._client = None
        self._process.send_signal(how)
        status = self._process.wait(PATIENCE)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
        return status

    @property
    def client(self) -> openai.OpenAI:
        if self._client is None:
            self._client = openai.OpenAI(base_url=self.url, api_key="none", max_retries=0)
        return self._client

    # ------------------------------------------------------------------------------------------------- what it runs

    def children(self, module: str) -> list[psutil.Process]:
        return [p for p in psutil.Process(self.pid).children() if module in p.cmdline()]

    def engines(self) -> list[psutil.Process]:
        return self.children("tuneway.inference")

    def run(self, job: str) -> RunDir:
        return RunDir(self.data / "runs" / job)

    def trainer(self, job: str) -> int:
        """The pid of the job's trainer, once it is there."""
        return eventually(lambda: self.run(job).owner())

    def clean_up(self) -> None:
        """Nothing of this gateway is left running."""
        self.kill()
        for folder in (self.data / "runs").glob("*"):
            pid = RunDir(folder).owner()
            if pid is not None:
                os.kill(pid, signal.SIGKILL)


def eventually(what: Any) -> Any:
    """What `what` gives once it is true; what is awaited happens in other processes, which cannot tell us."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"it did not happen within {PATIENCE} s")


def rows(count: int = 12) -> list[dict[str, Any]]:
    """Chats that a tiny model can learn by heart."""
    words = ("red", "green", "blue", "black", "white", "grey", "pink", "brown", "gold", "cyan", "lime", "navy")
    return [
        {
            "messages": [
                {"role": "system", "content": "Say the colour."},
                {"role": "user", "content": f"number {n}"},
                {"role": "assistant", "content": words[n % len(words)]},
            ]
        }
        for n in range(count)
    ]


def jsonl(examples: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(example) + "\n" for example in examples).encode()


def upload(client: openai.OpenAI, content: bytes | None = None, name: str = "train.jsonl") -> str:
    content = jsonl(rows()) if content is None else content
    return client.files.create(file=(name, content), purpose="fine-tune").id


def tune(client: openai.OpenAI, file: str | None = None, *, epochs: int = 2, **more: Any) -> FineTuningJob:
    return client.fine_tuning.jobs.create(
        model=BASE,
        training_file=file or upload(client),
        seed=1,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": epochs, "batch_size": 4}}},
        **more,
    )


def ended(client: openai.OpenAI, job: str) -> FineTuningJob:
    def look() -> FineTuningJob | None:
        found = client.fine_tuning.jobs.retrieve(job)
        return found if found.status in ("succeeded", "failed", "cancelled") else None

    return eventually(look)  # type: ignore[no-any-return]


def succeeded(client: openai.OpenAI, job: str) -> FineTuningJob:
    found = ended(client, job)
    assert found.status == "succeeded", (found.error, [event.message for event in events(client, job)])
    return found


def events(client: openai.OpenAI, job: str) -> list[FineTuningJobEvent]:
    """All of them, oldest first."""
    return list(client.fine_tuning.jobs.list_events(job, limit=100))[::-1]


def steps(client: openai.OpenAI, job: str) -> list[int]:
    """The steps of the metrics events, oldest first."""
    found = [event.data for event in events(client, job) if event.type == "metrics"]
    return [data["step"] for data in found if isinstance(data, dict)]


def reached(client: openai.OpenAI, job: str, step: int) -> None:
    """Waits until the job has made this step."""
    eventually(lambda: max(steps(client, job), default=0) >= step)


def ask(client: openai.OpenAI, model: str, text: str = "number 3", **more: Any) -> str:
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "system", "content": "Say the colour."}, {"role": "user", "content": text}],
        temperature=0,
        max_tokens=8,
        **more,
    )
    return answer.choices[0].message.content or ""


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def adapter_bytes(gateway: Gateway, job: str) -> bytes:
    return (gateway.run(job).path / "adapter" / "adapter_model.safetensors").read_bytes()
