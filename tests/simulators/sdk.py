"""The official SDK, aimed at a simulator, and the calls that most tests of one begin with."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

import openai

from tests.simulators.azure import AzureSimulator
from tests.simulators.openai import OpenAISimulator

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
ROWS = (json.dumps(CHAT) + "\n").encode() * 12
HI: list[Any] = [{"role": "user", "content": "grüß ☂"}]


def connect(sim: OpenAISimulator, stack: ExitStack, key: str | None = None) -> openai.OpenAI:
    client = openai.OpenAI(base_url=sim.base_url, api_key=key or sim.key, max_retries=0, timeout=10)
    return stack.enter_context(client)


def upload(client: openai.OpenAI, content: bytes = ROWS, name: str = "train.jsonl") -> str:
    return client.files.create(file=(name, content), purpose="fine-tune").id


def create(client: openai.OpenAI, **more: Any) -> Any:
    return client.fine_tuning.jobs.create(**{"model": "gpt-4o-mini", "training_file": upload(client), **more})


def poll(client: openai.OpenAI, job_id: str, times: int = 3) -> list[str]:
    return [client.fine_tuning.jobs.retrieve(job_id).status for _ in range(times)]


def streamed(client: openai.OpenAI, model: str) -> str:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    with client.chat.completions.create(model=model, messages=HI, **options) as stream:
        chunks = list(stream)
    assert chunks[-1].usage is not None
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def azure_client(
    azure: AzureSimulator, stack: ExitStack, version: str = "2024-10-21", **more: Any
) -> openai.AzureOpenAI:
    auth = more or {"api_key": azure.key}
    client = openai.AzureOpenAI(azure_endpoint=azure.url, api_version=version, max_retries=0, timeout=10, **auth)
    return stack.enter_context(client)


def processed(client: openai.OpenAI, content: bytes = ROWS) -> str:
    file = upload(client, content)
    assert [client.files.retrieve(file).status for _ in range(2)] == ["running", "processed"]
    return file
