"""The inference child as the gateway meets it: a real process, the real engine, OpenAI's own client."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.tiny_base import vocabulary
from tests.tiny_prepared import prepare_tiny, write_adapter

TOKEN = "not-a-secret"
CONTEXT = 512
MESSAGES = [{"role": "user", "content": "what is the answer"}]
NEVER_ENDS = {"0": -100, "2": -100}  # the ids of the tokens that end an answer
WORDS_ONLY = {
    str(at): -100 for at, token in enumerate(vocabulary()[0]) if not re.fullmatch("Ġ?[a-z]+", token)
}  # no halves of characters, either


@dataclass
class Child:
    process: subprocess.Popen[bytes]
    socket: Path
    ready: dict[str, Any]
    http: httpx2.Client

    def post(
        self, adapter: str = "", body: bytes | None = None, project: str = "default", **fields: Any
    ) -> httpx2.Response:
        """A chat request; `fields` are added to or replace those of a small one."""
        fields = {"model": "any", "messages": MESSAGES, "max_tokens": 20, "temperature": 0} | fields
        data = json.dumps(fields).encode() if body is None else body
        headers = {**named(adapter), "x-tuneway-project": project}
        return self.http.post("/v1/chat/completions", content=data, headers=headers)

    def say(self, adapter: str = "", **fields: Any) -> str:
        response = self.post(adapter, **fields)
        assert response.status_code == 200, response.text
        return str(response.json()["choices"][0]["message"]["content"])

    def events(self, adapter: str = "", **fields: Any) -> list[dict[str, Any]]:
        response = self.post(adapter, stream=True, **fields)
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        *events, done, end = response.text.split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]

    def in_flight(self) -> int:
        return int(self.http.get("/healthz").json()["in_flight"])


def named(adapter: str) -> dict[str, str]:
    return {"x-tuneway-adapter": adapter, "x-tuneway-model": f"ft:{adapter}" if adapter else "tiny"}


def start(base: Path, adapters: dict[str, Path]) -> Child:
    socket = Path(tempfile.mkdtemp()) / "http.sock"  # not tmp_path: a socket's path has at most 107 bytes
    spec = {
        "base": str(base),
        "adapters": [{"name": name, "path": str(path)} for name, path in adapters.items()],
        "socket": str(socket),
        "token": TOKEN,
        "threads": 1,
        "context_length": CONTEXT,
        "parallel": 2,
    }
    command = [sys.executable, "-m", "tuneway.inference"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(spec).encode() + b"\n")
    process.stdin.flush()
    ready = json.loads(process.stdout.readline())
    client = httpx2.Client(
        transport=httpx2.HTTPTransport(uds=str(socket)),
        base_url="http://engine",
        headers={"authorization": f"Bearer {TOKEN}"},
        timeout=60,
    )
    return Child(process, socket, ready, client)


def stop(child: Child) -> None:
    child.http.close()
    for pipe in (child.process.stdin, child.process.stdout):
        assert pipe is not None
        pipe.close()
    child.process.kill()
    child.process.wait(30)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_tiny(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def child(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    folder = tmp_path_factory.mktemp("adapters")
    adapters = {name: write_adapter(folder / name, base, seed) for seed, name in enumerate(("a", "b"))}
    child = start(base, adapters | {"broken": folder / "nothing-here"})
    yield child
    stop(child)


def test_an_adapter_that_cannot_be_loaded_is_named_and_the_others_serve(child: Child) -> None:
    assert child.ready["ready"] is True
    assert list(child.ready["refused"]) == ["broken"]
    response = child.post("broken")
    assert response.status_code == 404
    message = "The model `ft:broken` does not exist or you do not have access to it."
    assert response.json()["error"] == {
        "message": message,
        "type": "invalid_request_error",
        "param": None,
        "code": "model_not_found",
    }


def test_completion_has_openai_s_shape(child: Child) -> None:
    answer = child.post("a", max_tokens=7).json()
    assert re.fullmatch(r"chatcmpl-[0-9A-Za-z]{29}", answer.pop("id"))
    assert isinstance(answer.pop("created"), int)
    assert answer.pop("system_fingerprint").startswith("fp_")
    content = answer["choices"][0]["message"].pop("content")
    assert isinstance(content, str)
    prompt = answer["usage"]["prompt_tokens"]
    answer["usage"]["prompt_tokens_details"].pop("cached_tokens")
    assert answer == {
        "object": "chat.completion",
        "model": "ft:a",
        "service_tier": "default",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": 7,
            "total_tokens": prompt + 7,
            "prompt_tokens_details": {"audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
    }


def test_stream_has_openai_s_shape_and_says_the_same(child: Child) -> None:
    first, *pieces, last, usage = child.events(max_tokens=9, stream_options={"include_usage": True})
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert "".join(piece["choices"][0]["delta"]["content"] for piece in pieces) == child.say(max_tokens=9)
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}]
    assert all(event["usage"] is None for event in (first, *pieces, last))
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 9
    assert len({(event["id"], event["created"], event["model"], event["object"]) for event in (first, usage)}) == 1


def test_the_official_client_reads_both(child: Child) -> None:
    transport = httpx2.HTTPTransport(uds=str(child.socket))
    with httpx2.Client(transport=transport) as http:
        client = openai.OpenAI(base_url="http://engine/v1", api_key=TOKEN, http_client=http, max_retries=0)
        create = client.chat.completions.create
        options: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "seed": 3}
        plain = create(**options, extra_headers=named("b"))
        streamed = list(create(**options, stream=True, extra_headers=named("b")))
        content = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
        assert content == plain.choices[0].message.content
        assert streamed[-1].choices[0].finish_reason == plain.choices[0].finish_reason
        with pytest.raises(openai.BadRequestError) as refused:
            create(**options, modalities=["text", "audio"], extra_headers=named("b"))
        assert (refused.value.param, refused.value.code) == ("modalities", "unsupported_parameter")


# ----------------------------------------------------------------------------------------------------- what is sampled


def test_each_adapter_and_the_base_answer_for_themselves(child: Child) -> None:
    """Whatever was computed before it: llama.cpp keeps keys and values, and once confused whose they were."""
    alone = {name: child.say(name) for name in ("", "a", "b")}
    assert len(set(alone.values())) == 3
    for name in ("a", "b", "", "b", "a", ""):
        child.say(name, messages=[{"role": "user", "content": f"something else for {name}"}])
        assert child.say(name) == alone[name]


def test_temperature_0_is_the_likeliest_token(child: Child) -> None:
    answer = child.post("a", logprobs=True, top_logprobs=3).json()["choices"][0]
    for token in answer["logprobs"]["content"]:
        assert token["logprob"] == token["top_logprobs"][0]["logprob"]
        assert len(token["top_logprobs"]) == 3


def test_a_seed_gives_the_same_answer_alone_and_in_company(child: Child) -> None:
    long = [{"role": "user", "content": "one two three four five six seven " * 12}]
    options: dict[str, Any] = {"temperature": 1.0, "seed": 11, "messages": long, "max_tokens": 40}
    alone = child.say("a", **options)
    assert child.say("a", **options | {"seed": 12}) != alone
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(child.say, "b", messages=long, temperature=1.0, seed=at) for at in range(6)]
        again = [pool.submit(child.say, "a", **options) for _ in range(3)]
        assert {future.result() for future in again} == {alone}
        assert len({future.result() for future in others}) > 1


def test_a_prompt_from_the_cache_gives_the_same_numbers(child: Child) -> None:
    """Or a seed would mean nothing. Flash attention is off for that; quantised bases agree to the last bit then."""
    options: dict[str, Any] = {
        "messages": [{"role": "user", "content": "seven six five four three two one " * 20}],
        "logprobs": True,
        "logit_bias": WORDS_ONLY,
    }
    first, again = (child.post("a", **options).json() for _ in range(2))
    cached = [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in (first, again)]
    assert cached[1] > cached[0] + 100
    numbers = [[token["logprob"] for token in answer["choices"][0]["logprobs"]["content"]] for answer in (first, again)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0, abs=4e-6)


def test_unlikely_tokens_are_sampled_too(child: Child) -> None:
    """OpenAI's defaults are the model's own distribution; llama.cpp's would cut its tail off."""
    answer = child.post(temperature=1, seed=1, max_tokens=60, logprobs=True, top_logprobs=1).json()
    tokens = answer["choices"][0]["logprobs"]["content"]
    assert min(token["logprob"] - token["top_logprobs"][0]["logprob"] for token in tokens) < math.log(0.05)


def test_no_seed_gives_another_answer_each_time(child: Child) -> None:
    assert len({child.say(temperature=1.0) for _ in range(3)}) > 1


def test_n_choices(child: Child) -> None:
    answer = child.post(n=3, temperature=1.0, seed=1).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in answer["choices"]}) > 1
    assert answer["usage"]["completion_tokens"] == 60
    events = child.events(n=2, max_tokens=3)
    assert [event["choices"][0]["index"] for event in events if event["choices"][0]["finish_reason"]] == [0, 1]


def test_logit_bias_forbids_a_token(child: Child) -> None:
    token = child.post(logprobs=True, max_tokens=1).json()["choices"][0]["logprobs"]["content"][0]["token"]
    biases = {str(number): -100 for number in range(3, 400) if number != 5}
    assert child.say(max_tokens=1, logit_bias=biases) != token


def test_a_stop_string_is_not_shown_nor_any_part_of_it(child: Child) -> None:
    options: dict[str, Any] = {"max_tokens": 40, "logit_bias": WORDS_ONLY}
    whole = child.say("a", **options)
    stop = whole[11:15]
    before = whole[: whole.index(stop)]
    answer = child.post("a", **options, stop=["no such text", stop], logprobs=True).json()
    choice = answer["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (before, "stop")
    assert before.startswith("".join(token["token"] for token in choice["logprobs"]["content"]))
    events = child.events("a", **options, stop=stop)
    shown = [event["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(shown) == before


def test_special_tokens_end_an_answer_and_are_not_shown(child: Child) -> None:
    choice = child.post(logit_bias={"2": 100}, logprobs=True).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == ""
    assert choice["logprobs"]["content"] == []
    assert child.say(logit_bias={"1": 100}, max_tokens=5) == ""


# -------------------------------------------------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"temprature": 1}, "temprature", "unknown_parameter"),
        ({"temprature": None}, "temprature", "unknown_parameter"),
        ({"stream_options": {"usage": True}}, "stream_options.usage", "unknown_parameter"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"messages": None}, "messages", "invalid_type"),
        ({"user": None}, "user", "invalid_type"),
        ({"verbosity": "loud"}, "verbosity", "invalid_value"),
        ({"prediction": {"type": "content"}}, "prediction.content", "missing_required_parameter"),
        ({"stop": []}, "stop", "empty_array"),
        ({"messages": "hello"}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"temperature": 2.5}, "temperature", "number_above_max_value"),
        ({"top_p": True}, "top_p", "invalid_type"),
        ({"max_tokens": 1.5}, "max_tokens", "invalid_type"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"seed": 2**63}, "seed", "integer_above_max_value"),
        ({"stop": ["a", 1]}, "stop[1]", "invalid_type"),
        ({"stop": list("abcde")}, "stop", "array_too_long"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ({"logit_bias": {"hello": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "integer_above_max_value"),
        ({"top_logprobs": 2}, "top_logprobs", "unsupported_value"),
    ],
)
def test_a_bad_field_is_named(child: Child, fields: dict[str, Any], param: str, code: str) -> None:
    response = child.post(**fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"model": NaN}',
        b'{"model": "a", "model": "b", "messages": []}',
        b'{"model": "a", "messages": [{"role": "user", "content": "x", "content": "y"}]}',
        b'{"model": ' + b"[" * 200_000,
    ],
    ids=["empty", "no-object", "not-utf8", "nan", "duplicate", "duplicate-inside", "deep"],
)
def test_a_body_that_is_not_one_json_object_is_refused(child: Child, body: bytes) -> None:
    response = child.post(body=body)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_accepted_without_effect_is_said(child: Child) -> None:
    response = child.post(
        service_tier="auto", verbosity="low", store=True, user="me", metadata={"a": "b"}, presence_penalty=None
    )
    assert response.status_code == 200
    assert set(response.headers["x-tuneway-ignored"].split(", ")) == {"service_tier", "verbosity"}
    assert "x-tuneway-ignored" not in child.post(response_format={"type": "text"}).headers


def test_limits_in_tokens(child: Child) -> None:
    assert child.post(max_tokens=5, max_completion_tokens=2).json()["usage"]["completion_tokens"] == 2
    assert child.post(max_tokens=0, max_completion_tokens=3).json()["usage"]["completion_tokens"] == 3
    prompt = child.post(max_tokens=1).json()["usage"]["prompt_tokens"]
    assert child.post(max_tokens=CONTEXT - prompt, stop=" ").status_code == 200
    error = child.post(max_tokens=CONTEXT).json()["error"]
    assert (error["param"], error["code"]) == ("messages", "context_length_exceeded")
    assert f"maximum context length is {CONTEXT} tokens" in error["message"]
    response = child.post(messages=[{"role": "user", "content": "hello " * CONTEXT}], stream=True)
    assert response.status_code == 400
    assert re.search(r"your messages resulted in \d+ tokens", response.json()["error"]["message"])


def test_without_a_limit_the_context_is_the_limit(child: Child) -> None:
    answer = child.post(max_tokens=None, logit_bias=NEVER_ENDS).json()
    assert answer["usage"]["total_tokens"] == CONTEXT
    assert answer["choices"][0]["finish_reason"] == "length"


def test_only_its_gateway_is_answered(child: Child) -> None:
    for wrong in ("", "Bearer", "Bearer nöt", f"Basic {TOKEN}"):
        response = child.http.post("/v1/chat/completions", headers={"authorization": wrong.encode()}, json={})
        assert response.status_code == 403
    assert child.http.get("/v1/models").json()["error"]["message"] == "Invalid URL (GET /v1/models)"
    assert child.http.get("/v1/chat/completions").status_code == 405


# ------------------------------------------------------------------------------------------------------------ the ends


def test_a_client_that_leaves_frees_its_place(child: Child) -> None:
    """The places are taken by answers that would go on for minutes; when their readers leave, the engine is idle."""
    body = {"model": "tiny", "messages": MESSAGES, "stream": True, "logit_bias": NEVER_ENDS, "n": 128}
    for _ in range(8):
        with child.http.stream("POST", "/v1/chat/completions", json=body, headers=named("")) as response:
            assert next(response.iter_lines()).startswith("data: ")
    assert child.say(max_tokens=1)
    deadline = time.monotonic() + 20
    while child.in_flight():
        assert time.monotonic() < deadline


def test_ends_with_its_gateway_and_leaves_nothing(base: Path) -> None:
    child = start(base, {})
    body = {"model": "tiny", "messages": MESSAGES, "stream": True, "logit_bias": NEVER_ENDS, "n": 128}
    try:
        with child.http.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            assert child.process.stdin is not None
            child.process.stdin.close()
            assert child.process.wait(30) == 0
            with pytest.raises(httpx2.TransportError):
                list(lines)
        assert not child.socket.parent.exists()
    finally:
        stop(child)


def test_ends_at_once_when_told_to(base: Path) -> None:
    child = start(base, {})
    try:
        child.process.terminate()
        assert child.process.wait(30) == 0
        assert not child.socket.parent.exists()
    finally:
        stop(child)


def test_projects_share_no_cache(child: Child) -> None:
    """How much of a prompt was cached would tell one project what another has asked."""

    def cached(project: str) -> int:
        secret = [{"role": "user", "content": "the secret of project one, and then some more of it"}]
        answer = child.post(project=project, messages=secret, max_tokens=1)
        count: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return count

    first = cached("one"), cached("one"), cached("two"), cached("two"), cached("one")
    assert [count > 10 for count in first] == [False, True, False, True, True]
    assert first[0] == first[2] == 0
