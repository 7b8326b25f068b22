"""The whole gateway in a process of its own, with the provider `fake`: what is asked is asked over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

SETTINGS = 'default_provider = "fake"\noutbound_hosts = ["127.0.0.1"]\nmax_file_bytes = 1048576\n'


class Gateway:
    """A running gateway. `http` sends to its root, with the key where there is one."""

    def __init__(self, url: str, data: Path, process: subprocess.Popen[str], stack: ExitStack) -> None:
        self.url = url.removesuffix("/v1")
        self.data = data
        self.process = process
        self._stack = stack
        self.http = self.http_with(None)
        self.client = self.client_with("none")
        self.lenient = self._stack.enter_context(
            openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)
        )
        """The official SDK as its users have it, for answers with values that its models do not know."""

    def http_with(self, key: str | None) -> httpx2.Client:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        client = httpx2.Client(base_url=self.url, headers=headers, trust_env=False, timeout=60)
        return self._stack.enter_context(client)

    def client_with(self, key: str) -> openai.OpenAI:
        """The official SDK, checking every answer against its models, without retries of its own."""
        return self._stack.enter_context(
            openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, _strict_response_validation=True)
        )

    def log(self) -> str:
        return (self.data / "gateway.log").read_text()


@contextmanager
def running(
    data: Path, settings: str = SETTINGS, program: Sequence[str] = ("-m", "tuneway"), secrets: Mapping[str, str] = {}
) -> Iterator[Gateway]:
    """A gateway on `data`, which may hold what an earlier one left; it is killed at the end.

    `program` is what Python runs; `secrets` are variables of its environment.
    """
    data.mkdir(exist_ok=True)
    config = data / "tuneway.toml"
    config.write_text(settings)
    command = [sys.executable, *program, "serve", "--port", "0", "--json"]
    command += ["--data", str(data / "data"), "--config", str(config)]
    with open(data / "gateway.log", "a") as log, ExitStack() as stack:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "default", **secrets},
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (data / "gateway.log").read_text()
            yield Gateway(json.loads(line)["url"], data, process, stack)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway for a file of tests, without auth."""
    with running(tmp_path_factory.mktemp("gateway")) as found:
        yield found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Starts a gateway of the test's own, with other settings or on a folder that has been used."""
    with ExitStack() as stack:

        def start(
            settings: str = SETTINGS,
            data: Path = tmp_path,
            program: Sequence[str] = ("-m", "tuneway"),
            secrets: Mapping[str, str] = {},
        ) -> Gateway:
            return stack.enter_context(running(data, settings, program, secrets))

        yield start


def rows(count: int = 12) -> bytes:
    """A training file of chats."""
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
    return b"".join(json.dumps(chat).encode() + b"\n" for _ in range(count))
