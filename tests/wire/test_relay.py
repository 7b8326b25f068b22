"""Relays to OpenAI, by the official SDK and byte by byte: every operation, Portkey's conventions, and errors.

What is sent again stands in `test_relay_retries.py`, who may what in `test_relay_security.py`.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.simulators.openai import OpenAISimulator
from tests.simulators.sdk import HI, ROWS, create, poll, streamed, upload
from tests.wire.conftest import Gateway
from tests.wire.relays import OPENAI, RawProvider, ask, heads, relayed, response, through

ENVELOPE = {"message", "type", "param", "code"}
GRADER: Any = {"type": "string_check", "name": "n", "input": "a", "reference": "a", "operation": "eq"}


@pytest.fixture
def sim() -> Iterator[OpenAISimulator]:
    with OpenAISimulator() as sim:
        yield sim
    assert sim.leaks == []


@pytest.fixture
def raw() -> Iterator[RawProvider]:
    with RawProvider().running() as raw:
        yield raw


@pytest.fixture(params=["x-portkey", "x-tuneway"])
def client(gateway: Gateway, sim: OpenAISimulator, request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    """In OpenAI's dialect, as the SDK checks every answer against its models."""
    headers = heads(sim.base_url, family=request.param) | {"x-tuneway-dialect": "openai"}
    with through(gateway, sim, default_headers=headers) as client:
        yield client


@pytest.fixture
def plain(gateway: Gateway, sim: OpenAISimulator) -> Iterator[openai.OpenAI]:
    """In the gateway's dialect, which relays have by default."""
    with through(gateway, sim, _strict_response_validation=False) as client:
        yield client


# -------------------------------------------------------------------------------------------------- every operation


def test_files(client: openai.OpenAI, sim: OpenAISimulator) -> None:
    ids = [upload(client, ROWS, f"{number}.jsonl") for number in range(3)]
    assert [file.id for file in client.files.list(limit=1, purpose="fine-tune")] == ids[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")] == ids
    assert client.files.list(after=ids[1]).data[0].id == ids[0]
    file = client.files.retrieve(ids[0])
    assert (file.filename, file.bytes, file.status) == ("0.jsonl", len(ROWS), "processed")
    found = client.files.with_raw_response.content(ids[0])
    assert found.content == ROWS
    assert found.headers["content-disposition"] == "attachment; filename*=UTF-8''0.jsonl"
    assert client.files.delete(ids[0]).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(ids[0])
    assert ids[0] not in sim.files


def test_an_upload_in_parts(client: openai.OpenAI, sim: OpenAISimulator) -> None:
    given: Any = {"filename": "a.jsonl", "purpose": "fine-tune", "mime_type": "application/jsonl"}
    made = client.uploads.create(bytes=len(ROWS), **given)
    parts = [client.uploads.parts.create(made.id, data=piece).id for piece in (ROWS[:100], ROWS[100:])]
    done = client.uploads.complete(made.id, part_ids=parts)
    assert done.file is not None
    assert sim.files[done.file.id].content == ROWS
    assert client.uploads.cancel(client.uploads.create(bytes=5, **given).id).status == "cancelled"


def test_a_job_from_file_to_model(client: openai.OpenAI, sim: OpenAISimulator) -> None:
    job = create(client, suffix="mine", seed=7, metadata={"team": "search"}, method={"type": "supervised"})
    assert (job.status, job.seed, job.metadata, job.error) == ("validating_files", 7, {"team": "search"}, None)
    assert (job.tuneway["provider"], job.tuneway["provider_status"]) == ("openai", "validating_files")
    assert poll(client, job.id) == ["queued", "running", "succeeded"]
    other = create(client)
    assert [found.id for found in client.fine_tuning.jobs.list(limit=1)] == [other.id, job.id]
    assert [found.id for found in client.fine_tuning.jobs.list(metadata={"team": "search"})] == [job.id]
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
    assert events[-1].message == f"Created fine-tuning job: {job.id}"
    assert len({event.id for event in events}) == len(events) == len(sim.jobs[job.id].events)
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert [each.step_number for each in checkpoints] == sorted(
        (each.step_number for each in checkpoints), reverse=True
    )
    tuned = client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
    assert tuned is not None
    assert client.models.retrieve(tuned).id == tuned
    assert tuned in [model.id for model in client.models.list()]
    answer = client.chat.completions.create(model=tuned, messages=HI)
    assert answer.choices[0].message.content == "tuned:grüß ☂"
    assert streamed(client, tuned) == "tuned:grüß ☂"
    assert client.models.delete(tuned).deleted
    assert tuned not in sim.models


def test_a_dpo_job_is_one(client: openai.OpenAI, sim: OpenAISimulator) -> None:
    """Its numbers are null at OpenAI's, where its own description has an object."""
    method = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}
    job = create(client, method=method, validation_file=upload(client))
    assert job.method.type == "dpo"
    assert job.method.dpo.hyperparameters.beta == 0.2
    assert sim.jobs[job.id].body["method"] == method


def test_pause_resume_cancel(client: openai.OpenAI, sim: OpenAISimulator) -> None:
    sim.stop_at = "running"
    job = create(client)
    poll(client, job.id)
    paused = client.fine_tuning.jobs.pause(job.id)
    assert (paused.status, paused.to_dict()["tuneway"]["state"]) == ("queued", "paused")  # type: ignore[index]
    assert sim.jobs[job.id].status == "paused"
    client.fine_tuning.jobs.resume(job.id)
    assert sim.jobs[job.id].status == "queued"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="already completed"):
        client.fine_tuning.jobs.cancel(job.id)
    assert [seen.operation for seen in sim.requests[-4:]] == ["pause_job", "resume_job", "cancel_job", "cancel_job"]


def test_a_verb_has_no_parameters(gateway: Gateway, plain: openai.OpenAI, sim: OpenAISimulator) -> None:
    """As at the gateway's own jobs; some clients send an empty object."""
    job = create(plain)
    path, headers = f"/v1/fine_tuning/jobs/{job.id}/cancel", {"authorization": f"Bearer {sim.key}"}
    refused = ask(gateway, sim.base_url, "POST", path, headers, json={"reason": "dear"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "reason")
    assert sim.asked("cancel_job") == []
    assert ask(gateway, sim.base_url, "POST", path, headers, json={}).status_code == 200


def test_permissions_of_a_checkpoint(client: openai.OpenAI, sim: OpenAISimulator) -> None:
    job = create(client)
    poll(client, job.id)
    name = client.fine_tuning.jobs.checkpoints.list(job.id).data[-1].fine_tuned_model_checkpoint
    permissions = client.fine_tuning.checkpoints.permissions
    made = permissions.create(name, project_ids=["p1", "p2"])
    assert [each.project_id for each in made] == ["p1", "p2"]
    assert [each.id for each in permissions.list(name, limit=1)] == [each.id for each in made][::-1]
    assert permissions.delete(made.data[0].id, fine_tuned_model_checkpoint=name).deleted
    assert len(sim.permissions[name]) == 1


def test_graders(client: openai.OpenAI) -> None:
    graders = client.fine_tuning.alpha.graders
    assert graders.validate(grader=GRADER).grader is not None
    assert graders.run(grader=GRADER, model_sample="a").reward == 1.0


def test_stored_completions(gateway: Gateway, raw: RawProvider) -> None:
    """The simulator has none of them; what is sent for each is what OpenAI's description has."""
    raw.answers = [response(b'{"object": "list", "data": [], "has_more": false}')]
    with relayed(gateway, raw.base_url, "sk-raw", _strict_response_validation=False) as client:
        stored = client.chat.completions
        stored.list(model="m", metadata={"k": "v"}, limit=3)
        stored.retrieve("chatcmpl-1")
        stored.update("chatcmpl-1", metadata={"k": "v"})
        stored.messages.list("chatcmpl-1", limit=2)
        stored.delete("chatcmpl-1")
        stored.create(model="m", messages=HI, store=True, metadata={"k": "v"})
    assert [received.line.removesuffix(" HTTP/1.1") for received in raw.received] == [
        "GET /v1/chat/completions?limit=3&metadata%5Bk%5D=v&model=m",
        "GET /v1/chat/completions/chatcmpl-1",
        "POST /v1/chat/completions/chatcmpl-1",
        "GET /v1/chat/completions/chatcmpl-1/messages?limit=2",
        "DELETE /v1/chat/completions/chatcmpl-1",
        "POST /v1/chat/completions",
    ]
    assert json.loads(raw.received[-1].body)["store"] is True


def test_a_get_needs_no_content_type(gateway: Gateway, raw: RawProvider) -> None:
    for path in ("/v1/chat/completions", "/v1/fine_tuning/checkpoints/ft:a:b::c/permissions", "/v1/files"):
        assert ask(gateway, raw.base_url, "GET", path).status_code == 200, path
    assert ask(gateway, raw.base_url, "POST", "/v1/uploads/upload_1/cancel").status_code == 200
    assert ask(gateway, raw.base_url, "POST", "/v1/uploads", content=b"{}").status_code == 415


def test_a_job_is_a_job_of_its_provider_alone(gateway: Gateway, client: openai.OpenAI) -> None:
    create(client)
    assert gateway.client.files.list().data == []
    assert gateway.client.fine_tuning.jobs.list().data == []


# --------------------------------------------------------------------------------------------------------- dialects


def test_relays_speak_the_gateways_dialect(plain: openai.OpenAI, sim: OpenAISimulator) -> None:
    job = create(plain)
    assert job.status == "created"
    assert poll(plain, job.id, 2) == ["created", "running"]
    paused = plain.fine_tuning.jobs.pause(job.id).to_dict()
    assert (paused["status"], paused["tuneway"]["state"]) == ("running", "paused")  # type: ignore[index]
    sim.set_status(job.id, "thinking")
    found: Any = plain.fine_tuning.jobs.retrieve(job.id).to_dict()
    assert (found["status"], found["tuneway"]["provider_status"]) == ("running", "thinking")


@pytest.mark.parametrize(("dialect", "most"), [({}, 40), ({"x-tuneway-dialect": "openai"}, 64)])
def test_the_suffix(plain: openai.OpenAI, sim: OpenAISimulator, dialect: dict[str, str], most: int) -> None:
    job = create(plain, suffix="s" * most, extra_headers=dialect)
    assert sim.jobs[job.id].body["suffix"] == "s" * most
    with pytest.raises(openai.BadRequestError) as raised:
        create(plain, suffix="s" * (most + 1), extra_headers=dialect)
    assert (raised.value.param, raised.value.code) == ("suffix", "string_above_max_length")
    assert len(sim.asked("create_job")) == 1


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"suffix": "a:b"}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"hyperparameters": "many"}, "hyperparameters"),
        ({"method": "dpo"}, "method"),
        ({"method": {"type": ["dpo"]}}, "method.type"),
        ({"method": {"type": "sft"}}, "method.type"),
        ({"method": {"type": "dpo", "dpo": 1}}, "method.dpo"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": [1]}}}, "method.dpo.hyperparameters"),
        ({"tuneway": {"provider": "azure-openai"}}, "tuneway.provider"),
        ({"tuneway": {"unknown": 1}}, "tuneway.unknown"),
        ({"tuneway": {"learning_rate": 1e-5}}, "tuneway.learning_rate"),
        ({"tuneway": {"options": {"lora": True}}}, "tuneway.options.lora"),
    ],
)
def test_a_create_that_cannot_be_right_is_not_sent(
    plain: openai.OpenAI, sim: OpenAISimulator, more: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        plain.fine_tuning.jobs.create(model=OPENAI, training_file="file-1", extra_body=more)
    assert raised.value.param == param
    assert sim.asked("create_job") == []


def test_what_is_not_known_here_is_the_providers_to_judge(plain: openai.OpenAI, sim: OpenAISimulator) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        create(plain, extra_body={"new_field": 1})
    assert "new_field" in raised.value.message
    assert json.loads(sim.asked("create_job")[0].body)["new_field"] == 1


# -------------------------------------------------------------------------------------------- Portkey's conventions


def test_a_config_names_all_of_it(gateway: Gateway, sim: OpenAISimulator) -> None:
    config = {"provider": "openai", "api_key": sim.key, "custom_host": sim.base_url, "request_timeout": 5000}
    config |= {"forward_headers": ["X-Team"]}
    headers = {"x-portkey-config": json.dumps(config), "authorization": "Bearer OPENAI_API_KEY", "x-team": "search"}
    assert gateway.http.get("/v1/models", headers=headers).status_code == 200
    assert sim.requests[0].headers["x-team"] == "search"


@pytest.mark.parametrize(
    ("config", "param"),
    [
        ({"strategy": {"mode": "fallback"}}, ".strategy"),
        ({"targets": []}, ".targets"),
        ({"retry": {"attempts": 3}}, ".retry"),
        ({"cache": True}, ".cache"),
        ({"override_params": {}}, ".override_params"),
        ({"virtual_key": "open-ai"}, ".virtual_key"),
        ("pc-config-1", ""),
        ([], ""),
    ],
)
def test_what_a_config_cannot_do_here_is_refused(
    gateway: Gateway, sim: OpenAISimulator, config: Any, param: str
) -> None:
    if isinstance(config, dict):
        config = {"provider": "openai", "api_key": sim.key, "custom_host": sim.base_url} | config
    text = config if isinstance(config, str) else json.dumps(config)
    answer = gateway.http.get("/v1/models", headers={"x-portkey-config": text})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, f"x-portkey-config{param}")
    assert sim.requests == []


@pytest.mark.parametrize("spelling", ["X-Team, X-Unit", "['X-Team','X-Unit']", '["X-Team", "x-unit"]'])
@pytest.mark.parametrize("family", ["x-portkey", "x-tuneway"])
def test_headers_go_along_by_name(gateway: Gateway, sim: OpenAISimulator, spelling: str, family: str) -> None:
    """To every operation, chat too; what is not named stays here."""
    headers = heads(sim.base_url) | {f"{family}-forward-headers": spelling, "x-other": "no"}
    with through(gateway, sim, default_headers=headers | {"x-team": "search"}) as client:
        client.models.list()
        client.files.content(upload(client))
        client.chat.completions.create(model=OPENAI, messages=HI)
    assert len(sim.requests) == 4
    for seen in sim.requests:
        assert seen.headers["x-team"] == "search"
        assert not {"x-other", "x-unit"} & seen.headers.keys()


def test_a_header_goes_along_byte_for_byte(gateway: Gateway, sim: OpenAISimulator) -> None:
    headers: Any = heads(sim.base_url) | {"x-portkey-forward-headers": "x-team", "authorization": f"Bearer {sim.key}"}
    assert gateway.http.get("/v1/models", headers=headers | {"x-team": "grüß ☂".encode()}).status_code == 200
    assert sim.requests[0].headers["x-team"].encode("latin-1").decode() == "grüß ☂"
    refused = gateway.http.get("/v1/models", headers=headers | {"x-team": b"gr\xfc"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-team")


def test_openais_own_headers_go_along(gateway: Gateway, sim: OpenAISimulator) -> None:
    headers = heads(sim.base_url, openai_beta="assistants=v2")
    with through(gateway, sim, default_headers=headers, organization="org-1", project="proj-1") as client:
        client.models.list()
        client.chat.completions.create(model=OPENAI, messages=HI)
    for seen in sim.requests:
        found = [seen.headers[f"openai-{name}"] for name in ("organization", "project", "beta")]
        assert found == ["org-1", "proj-1", "assistants=v2"]


def test_a_trace_id_comes_back(gateway: Gateway, sim: OpenAISimulator) -> None:
    headers = heads(sim.base_url, trace_id="trace-1")
    with through(gateway, sim, default_headers=headers, _strict_response_validation=False) as client:
        assert client.models.with_raw_response.list().headers["x-portkey-trace-id"] == "trace-1"
        chat = client.chat.completions.with_raw_response.create(model=OPENAI, messages=HI)
        assert chat.headers["x-portkey-trace-id"] == "trace-1"
        with pytest.raises(openai.NotFoundError) as raised:
            client.files.retrieve("file-0")
        assert raised.value.response.headers["x-portkey-trace-id"] == "trace-1"
    assert "x-portkey-trace-id" not in sim.requests[0].headers


def test_headers_without_effect_are_named(gateway: Gateway, sim: OpenAISimulator) -> None:
    more = {"metadata": '{"a": "b"}', "cache_force_refresh": "true", "retry_count": "3", "azure_resource_name": "acme"}
    headers = heads(sim.base_url, **more, strict_open_ai_compliance="false")
    with through(gateway, sim, default_headers=headers) as client:
        found = client.models.with_raw_response.list().headers["x-tuneway-ignored"]
    names = ("azure-resource-name", "cache-force-refresh", "metadata", "retry-count", "strict-open-ai-compliance")
    assert found.split(", ") == [f"x-portkey-{name}" for name in names]


@pytest.mark.parametrize("name", ["virtual-key", "default-input-guardrails", "guardrails"])
def test_headers_that_would_mislead_are_refused(gateway: Gateway, sim: OpenAISimulator, name: str) -> None:
    answer = ask(gateway, sim.base_url, "GET", "/v1/models", {f"x-portkey-{name}": "open-ai"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, f"x-portkey-{name}")
    assert sim.requests == []


SLOW = [
    ("models", "GET", "/v1/models", {}),
    ("cancel_job", "POST", "/v1/fine_tuning/jobs/ftjob-0/cancel", {}),
    ("chat", "POST", "/v1/chat/completions", {"json": {"model": OPENAI, "messages": HI}}),
    ("chat", "POST", "/v1/chat/completions", {"json": {"model": OPENAI, "messages": HI, "stream": True}}),
    ("create_file", "POST", "/v1/files", {"files": {"file": ("a.jsonl", ROWS)}, "data": {"purpose": "fine-tune"}}),
    ("file_content", "GET", "/v1/files/file-0/content", {}),
]


@pytest.mark.parametrize(("operation", "method", "path", "more"), SLOW, ids=[f"{row[0]}-{row[1]}" for row in SLOW])
@pytest.mark.parametrize("how", ["hold_before", "hold_after"])
def test_a_provider_that_is_too_slow_is_a_504(
    gateway: Gateway, sim: OpenAISimulator, operation: str, method: str, path: str, more: dict[str, Any], how: str
) -> None:
    sim.fault(operation, how)
    headers = {"authorization": f"Bearer {sim.key}", "x-portkey-request-timeout": "400"}
    answer = ask(gateway, sim.base_url, method, path, headers, **more)
    assert answer.status_code == 504
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("upstream_error", "provider_timed_out")
    assert len(sim.asked(operation)) == 1
    sim.release(operation)


def test_a_stream_may_take_longer_than_its_beginning(gateway: Gateway, raw: RawProvider) -> None:
    """The time-out is for the first byte; the second comes once it has passed."""
    first, second = b'data: {"a": 1}\n\n', b"data: [DONE]\n\n"
    go_on = threading.Event()

    async def behave(reader: Any, writer: Any) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + first)
        await writer.drain()
        while not go_on.is_set():
            await asyncio.sleep(0.01)
        writer.write(second)

    raw.behave = behave
    headers = heads(raw.base_url, request_timeout="400") | {"authorization": "Bearer sk-raw"}
    body = {"model": "m", "stream": True}
    with gateway.http.stream("POST", "/v1/chat/completions", headers=headers, json=body) as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == first
        threading.Event().wait(0.5)  # beyond the time-out, which is the point
        go_on.set()
        assert b"".join(pieces) == second


@pytest.mark.parametrize("value", ["0", "-5", "1e3", "soon", "1.5", "999999999"])
def test_a_time_out_that_is_none(gateway: Gateway, sim: OpenAISimulator, value: str) -> None:
    answer = ask(gateway, sim.base_url, "GET", "/v1/models", {"x-portkey-request-timeout": value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-portkey-request-timeout")
