"""A job that the gateway has acknowledged is one job at its vendor, whenever who is killed and whatever breaks."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.simulators.openai import OpenAISimulator
from tests.wire.conftest import Gateway, rows
from tests.wire.crashing import POINTS
from tests.wire.vendors import account, ended, eventually, messages, settings, state, succeeded

KILLS = 200 if os.environ.get("SOAK") else 20
CRASHING = str(Path(__file__).with_name("crashing.py"))

Start = Callable[..., Gateway]


@pytest.fixture
def sim() -> Iterator[OpenAISimulator]:
    with OpenAISimulator() as sim:
        yield sim


@pytest.fixture
def run(start: Start, sim: OpenAISimulator) -> Callable[..., Gateway]:
    """Starts a gateway with the account `openai`, again on the same folder."""

    def run(program: tuple[str, ...] = ("-m", "tuneway"), **options: Any) -> Gateway:
        text = settings(account("openai", base_url=f"{sim.url}/v1", **options))
        return start(text, program=program, secrets={"VENDOR_KEY": sim.key})

    return run


def create(gateway: Gateway, **more: Any) -> str:
    file = gateway.client.files.create(file=("train.jsonl", rows()), purpose="fine-tune")
    return gateway.client.fine_tuning.jobs.create(model="openai:gpt-4o-mini", training_file=file.id, **more).id


def uploads(sim: OpenAISimulator) -> int:
    return sum(seen.operation == "create_file" for seen in sim.requests)


def kill(gateway: Gateway) -> None:
    gateway.process.send_signal(signal.SIGKILL)
    gateway.process.wait()


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_a_named_point(point: str, run: Callable[..., Gateway], sim: OpenAISimulator, tmp_path: Path) -> None:
    gateway = run(program=(CRASHING, point, str(tmp_path / "mark")))
    job = create(gateway)
    assert gateway.process.wait(60) == -signal.SIGKILL
    again = run()
    found = succeeded(again, job)
    assert len(sim.created) == 1
    assert uploads(sim) == 1
    answer = again.client.chat.completions.create(
        model=found.fine_tuned_model or "", messages=[{"role": "user", "content": "hi"}]
    )
    assert answer.choices[0].message.content == "tuned:hi"


@pytest.mark.parametrize("how", ["hold_before", "hold_after"])
@pytest.mark.parametrize("pairs", [0, 16])
def test_a_kill_while_the_vendor_has_the_request(
    how: str, pairs: int, run: Callable[..., Gateway], sim: OpenAISimulator
) -> None:
    """With our pair in the metadata, and where there is no room for one; the vendor acts although nobody listens."""
    sim.fault("create_job", how)
    gateway = run()
    metadata = {f"key{number}": "value" for number in range(pairs)}
    job = create(gateway, metadata=metadata or openai.omit)
    sim.wait_held("create_job", 30)
    kill(gateway)
    again = run(settle_seconds=3)
    eventually(lambda: [seen for seen in sim.requests if seen.operation == "jobs"])
    sim.release("create_job")
    succeeded(again, job)
    assert len(sim.created) == 1


@pytest.mark.parametrize("how", ["error_after", "cut_after", "cut_before", "error_before", "slow_after", "answer"])
def test_an_answer_that_says_nothing(how: str, run: Callable[..., Gateway], sim: OpenAISimulator) -> None:
    sim.fault("create_job", how, seconds=2.5, body=b"<html>bad gateway</html>")
    gateway = run(timeout_seconds=1)
    job = create(gateway)
    succeeded(gateway, job)
    assert len(sim.created) == 1


def test_a_refusal_fails_the_job_with_the_vendors_words(run: Callable[..., Gateway], sim: OpenAISimulator) -> None:
    gateway = run()
    file = gateway.client.files.create(file=("train.jsonl", rows()), purpose="fine-tune")
    job = gateway.client.fine_tuning.jobs.create(model="openai:gpt-nonexistent", training_file=file.id)
    found = ended(gateway.client, job.id)
    assert found.status == "failed"
    assert found.error is not None
    assert "gpt-nonexistent" in found.error.message
    assert sim.created == []


def test_a_limit_is_waited_for(run: Callable[..., Gateway], sim: OpenAISimulator) -> None:
    sim.fault("create_job", "error_before", status=429, retry_after="1")
    gateway = run()
    job = create(gateway)
    succeeded(gateway, job)
    assert len(sim.created) == 1


def test_two_jobs_that_it_may_be_wait_for_a_person(run: Callable[..., Gateway], sim: OpenAISimulator) -> None:
    gateway = run()
    metadata = {f"key{number}": "value" for number in range(16)}
    sim.fault("create_job", "hold_after")
    job = create(gateway, seed=7, metadata=metadata)
    sim.wait_held("create_job", 30)
    sent = next(seen for seen in sim.requests if seen.operation == "create_job")
    kill(gateway)
    sim.release("create_job")
    headers = {"authorization": f"Bearer {sim.key}", "content-type": "application/json"}
    httpx2.post(
        f"{sim.url}/v1/fine_tuning/jobs", content=sent.body, headers=headers, trust_env=False
    ).raise_for_status()
    again = run()
    waiting = eventually(lambda: state(again, job)["attention"])
    assert [candidate["provider_job_id"] for candidate in waiting["candidates"]] == sim.created[::-1]
    assert state(again, job)["state"] == "needs_attention"
    assert any("bill" in message for message in messages(again.client, job))
    url = f"/v1/tuneway/jobs/{job}/adopt"
    assert again.http.post(url, json={"provider_job_id": "ftjob-other"}).status_code == 400
    assert again.http.post(url, json={"provider_job_id": sim.created[0]}).status_code == 200
    succeeded(again, job)
    assert state(again, job)["provider_job_id"] == sim.created[0]
    assert len(sim.created) == 2
    assert again.http.post(url, json={"provider_job_id": None}).status_code == 400


def test_a_cancel_while_it_is_started_reaches_the_vendor(run: Callable[..., Gateway], sim: OpenAISimulator) -> None:
    sim.stop_at = "running"
    sim.fault("create_job", "hold_after")
    gateway = run()
    job = create(gateway)
    sim.wait_held("create_job", 30)
    gateway.client.fine_tuning.jobs.cancel(job)
    sim.release("create_job")
    assert ended(gateway.client, job).status == "cancelled"
    assert [sim.jobs[name].status for name in sim.created] == ["cancelled"]


def test_random_kills(run: Callable[..., Gateway], sim: OpenAISimulator) -> None:
    """Jobs at the vendor = jobs that the client was told of. The client retries as the SDKs do."""
    chance = random.Random(20270106)
    gateway = run()
    file = gateway.client.files.create(file=("train.jsonl", rows()), purpose="fine-tune").id
    acknowledged: set[str] = set()
    for turn in range(KILLS):
        gateway = _killed_while(gateway, run, chance, file, f"turn-{turn}", acknowledged)
    for job in acknowledged:
        succeeded(gateway, job)
    assert len(sim.created) == len(acknowledged) == KILLS
    assert uploads(sim) == 1


def _killed_while(
    gateway: Gateway, run: Callable[..., Gateway], chance: random.Random, file: str, key: str, acknowledged: set[str]
) -> Gateway:
    """Creates a job of a gateway that is killed at a moment behind the request's beginning; returns the next one."""

    def ask(client: openai.OpenAI) -> str:
        headers = {"idempotency-key": key}
        job = client.fine_tuning.jobs.create(model="openai:gpt-4o-mini", training_file=file, extra_headers=headers)
        return job.id

    # The moment is the point of the test: from before the acknowledgement to the vendor's first states.
    killer = threading.Timer(chance.uniform(0, 0.7), gateway.process.kill)
    killer.start()
    answered = None
    with suppress(openai.APIConnectionError):
        answered = ask(gateway.client)
    killer.join()
    gateway.process.wait()
    again = run()
    acknowledged.add(answered or ask(again.client))
    return again


# ------------------------------------------------------------------------- what a hostile reader found, each once


def test_a_vendor_that_acts_behind_our_patience(run: Callable[..., Gateway], sim: OpenAISimulator) -> None:
    """The time in which it may still show the job runs from the end of the silence, not from the intent."""
    sim.fault("create_job", "slow_before", seconds=3)
    gateway = run(timeout_seconds=1, settle_seconds=4)
    succeeded(gateway, create(gateway))
    assert len(sim.created) == 1


def test_a_pause_while_it_is_started_loses_nothing(run: Callable[..., Gateway], sim: OpenAISimulator) -> None:
    sim.stop_at = "running"
    sim.fault("create_job", "hold_after")
    gateway = run()
    job = create(gateway)
    sim.wait_held("create_job", 30)
    gateway.client.fine_tuning.jobs.pause(job)
    sim.release("create_job")
    eventually(lambda: state(gateway, job)["state"] == "paused")
    assert state(gateway, job)["provider_job_id"] == sim.created[0]
    sim.stop_at = None
    gateway.client.fine_tuning.jobs.resume(job)
    succeeded(gateway, job)
    assert len(sim.created) == 1


@pytest.mark.parametrize("how", ["error_before", "error_after"])
def test_a_resume_that_is_refused_ends_nothing(how: str, run: Callable[..., Gateway], sim: OpenAISimulator) -> None:
    sim.stop_at = "running"
    gateway = run()
    job = create(gateway)
    eventually(lambda: state(gateway, job)["provider_status"] == "running")
    gateway.client.fine_tuning.jobs.pause(job)
    eventually(lambda: state(gateway, job)["state"] == "paused")
    sim.stop_at = None
    sim.fault("resume_job", how, status=400)
    gateway.client.fine_tuning.jobs.resume(job)
    succeeded(gateway, job)
    assert len(sim.created) == 1


def test_two_equal_jobs_are_two(run: Callable[..., Gateway], sim: OpenAISimulator) -> None:
    """Without a mark, and with answers that are lost: what one finds at the vendor is not the other's as well."""
    sim.fault("create_job", "cut_after")
    sim.fault("create_job", "cut_before")
    gateway = run()
    metadata = {f"key{number}": "value" for number in range(16)}
    file = gateway.client.files.create(file=("train.jsonl", rows()), purpose="fine-tune").id
    create_one = gateway.client.fine_tuning.jobs.create
    both = [create_one(model="openai:gpt-4o-mini", training_file=file, seed=7, metadata=metadata).id for _ in range(2)]
    for job in both:
        succeeded(gateway, job)
    assert sorted(state(gateway, job)["provider_job_id"] for job in both) == sorted(sim.created)
    assert len(sim.created) == 2


def test_a_trained_model_is_kept_though_it_does_not_answer(run: Callable[..., Gateway], sim: OpenAISimulator) -> None:
    sim.fault("chat", "error_before", status=402)
    gateway = run()
    job = create(gateway)
    found = succeeded(gateway, job)
    assert any("does not answer yet" in message for message in messages(gateway.client, job))
    hi: Any = [{"role": "user", "content": "hi"}]
    answer = gateway.client.chat.completions.create(model=found.fine_tuned_model or "", messages=hi)
    assert answer.choices[0].message.content == "tuned:hi"


@pytest.mark.parametrize("operation", ["events", "checkpoints", "file_content"])
def test_what_lies_beside_a_job_does_not_keep_its_end(
    operation: str, run: Callable[..., Gateway], sim: OpenAISimulator
) -> None:
    sim.fault(operation, "error_before", status=404, times=1000)
    gateway = run()
    succeeded(gateway, create(gateway))


def test_a_result_wins_over_a_cancel_that_is_refused(run: Callable[..., Gateway], sim: OpenAISimulator) -> None:
    sim.stop_at = "running"
    gateway = run()
    job = create(gateway)
    eventually(lambda: state(gateway, job)["provider_status"] == "running")
    sim.fault("cancel_job", "error_before", status=409, times=1000)
    gateway.client.fine_tuning.jobs.cancel(job)
    sim.stop_at = None
    succeeded(gateway, job)


def test_a_vendors_odd_words_break_no_list(run: Callable[..., Gateway], sim: OpenAISimulator) -> None:
    odd = {"id": "ftjob-odd", "status": "failed", "error": "out of luck", "hyperparameters": {"batch_size": "max"}}
    gateway = run()
    sim.stop_at = "running"
    job = create(gateway)
    eventually(lambda: state(gateway, job)["provider_status"] == "running")
    sim.fault("job", "answer", status=200, body=json.dumps(odd).encode(), times=1000)
    found = ended(gateway.client, job)
    assert found.error is not None
    assert found.error.message == "out of luck"
    assert gateway.client.fine_tuning.jobs.list().data


def test_another_projects_model_is_not_reached_by_its_vendors_name(
    run: Callable[..., Gateway], sim: OpenAISimulator
) -> None:
    gateway = run()
    succeeded(gateway, create(gateway))
    upstream = next(name for name in sim.models if name.startswith("ft:") and "ckpt" not in name)
    body = {"name": "other", "project": "other", "scopes": ["read", "tune", "chat"]}
    other = gateway.client_with(gateway.http.post("/v1/tuneway/keys", json=body).json()["key"])
    hi: Any = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.NotFoundError):
        other.chat.completions.create(model=f"openai:{upstream}", messages=hi)
    assert gateway.client.chat.completions.create(model=f"openai:{upstream}", messages=hi).choices


def test_a_missing_account_is_told(run: Callable[..., Gateway], start: Start, sim: OpenAISimulator) -> None:
    sim.stop_at = "running"
    gateway = run()
    job = create(gateway)
    eventually(lambda: state(gateway, job)["provider_status"])
    kill(gateway)
    without = start(settings())
    eventually(lambda: any("not configured" in message for message in messages(without.client, job)))
    assert without.http.post(f"/v1/fine_tuning/jobs/{job}/pause").status_code == 503


def test_a_file_that_stays_uploaded_is_used(run: Callable[..., Gateway], sim: OpenAISimulator) -> None:
    """Some servers of OpenAI's shape have no other state for it."""
    sim.file_status = "uploaded"
    gateway = run()
    succeeded(gateway, create(gateway))
