"""Jobs through the public door: pause and resume, retries, live events, deletion, what a provider cannot do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import openai
import pytest

from tests.wire.conftest import Gateway, rows

JOBS = "/v1/fine_tuning/jobs"
LONG = {"hyperparameters": {"n_epochs": 50}}


@pytest.fixture
def request_body(gateway: Gateway) -> dict[str, Any]:
    return body(gateway)


def body(gateway: Gateway, **more: Any) -> dict[str, Any]:
    """A request for a job; no other test sends the same."""
    file = gateway.client.files.create(file=("t.jsonl", rows()), purpose="fine-tune")
    return {"model": "fake-1", "training_file": file.id, **more}


def create(gateway: Gateway, **more: Any) -> str:
    response = gateway.http.post(JOBS, json=body(gateway, **more))
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


@contextmanager
def live(gateway: Gateway, job: str, last: str | None = None) -> Iterator[Iterator[str]]:
    """The lines of the job's stream of events."""
    headers = {} if last is None else {"last-event-id": last}
    with gateway.http.stream("GET", f"{JOBS}/{job}/events?stream=true", headers=headers) as response:
        assert response.status_code == 200
        yield response.iter_lines()


def ids_of(lines: Iterator[str]) -> list[str]:
    return [line.removeprefix("id: ") for line in lines if line.startswith("id: ")]


def until(lines: Iterator[str], words: str) -> list[str]:
    """The ids of the events up to the first whose message holds `words`."""
    seen: list[str] = []
    for line in lines:
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            seen.append(event["id"])
            if words in event["message"]:
                return seen
    raise AssertionError(f"the stream ended without {words!r}")


def happened(gateway: Gateway, job: str, words: str) -> None:
    with live(gateway, job) as lines:
        until(lines, words)


def messages(gateway: Gateway, job: str) -> list[str]:
    """All of them, oldest first."""
    events = gateway.http.get(f"{JOBS}/{job}/events?limit=1000").json()["data"]
    return [event["message"] for event in events][::-1]


def state(gateway: Gateway, job: str) -> str:
    return str(gateway.http.get(f"{JOBS}/{job}").json()["tuneway"]["state"])


# ---------------------------------------------------------------------------------------------------- pause and resume


def test_a_running_job_pauses_where_it_is_and_goes_on(gateway: Gateway) -> None:
    jobs = gateway.client.fine_tuning.jobs
    job = create(gateway, hyperparameters={"n_epochs": 6})
    happened(gateway, job, "Step 2/12")
    assert jobs.pause(job).to_dict()["tuneway"]["state"] == "pausing"  # type: ignore[index]
    happened(gateway, job, "Job paused at step")
    paused = jobs.pause(job).to_dict()
    assert (paused["status"], paused["tuneway"]["state"]) == ("queued", "paused")  # type: ignore[index]
    jobs.resume(job)
    assert state(gateway, job) != "paused"
    with live(gateway, job) as lines:
        ids_of(lines)
    assert jobs.retrieve(job).status == "succeeded"
    said = messages(gateway, job)
    assert [message.split(":")[0] for message in said if message.startswith("Step")] == [
        f"Step {step}/12" for step in range(1, 13)
    ]
    assert [word in " ".join(said) for word in ("Job resumed", "attempt 2", "interrupted")] == [True, True, False]
    for call in (jobs.pause, jobs.resume):
        with pytest.raises(openai.BadRequestError, match="Job has already completed"):
            call(job)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_paused_job_stays_so_and_can_be_cancelled(start: Callable[..., Gateway], restarted: bool) -> None:
    gateway = start()
    job = create(gateway, method={"type": "supervised", "supervised": LONG})
    happened(gateway, job, "Step 1/")
    gateway.client.fine_tuning.jobs.pause(job)
    if restarted:  # whether or not the worker has heard of it
        gateway.process.kill()
        gateway.process.wait()
        gateway = start()
    happened(gateway, job, "Job paused at step")
    gateway.client.fine_tuning.jobs.resume(job)
    gateway.client.fine_tuning.jobs.pause(job)
    assert gateway.client.fine_tuning.jobs.cancel(job).status == "cancelled"
    with live(gateway, job) as lines:
        assert until(lines, "cancelled")


def test_a_job_that_waits_is_paused_at_once_and_gives_its_turn_away(gateway: Gateway) -> None:
    jobs = gateway.client.fine_tuning.jobs
    long = [create(gateway, hyperparameters={"n_epochs": 50}) for _ in range(16)]  # all places of the provider
    for job in long:
        happened(gateway, job, "Step 1/")
    waiting = create(gateway)
    happened(gateway, waiting, "Waiting for a free place")
    assert jobs.pause(waiting).to_dict()["tuneway"]["state"] == "paused"  # type: ignore[index]
    assert messages(gateway, waiting)[-1] == "Job paused before its first step"
    jobs.pause(long[0])
    happened(gateway, long[0], "Job paused")
    jobs.resume(waiting)
    happened(gateway, waiting, "successfully completed")
    for job in long:
        jobs.cancel(job)


# ------------------------------------------------------------------------------------------------------------- retries


def test_a_retry_of_a_create_gets_the_first_job(gateway: Gateway, request_body: dict[str, Any]) -> None:
    def post(retry: int, **headers: str) -> str:
        headers = {"x-stainless-retry-count": str(retry), **headers}
        return str(gateway.http.post(JOBS, json=request_body, headers=headers).json()["id"])

    first = post(0)
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(post, (1, 2, 1, 2))) == {first}
    second = post(0)  # not a retry: its sender wants two
    assert second != first
    assert post(1) == second
    assert post(1, **{"idempotency-key": first}) not in (first, second)
    gateway.http.post(f"{JOBS}/{second}/cancel")
    gateway.http.post(f"{JOBS}/{first}/cancel")
    third = post(1)  # who cancelled a job had its answer: this retry is of another create
    assert third not in (first, second)
    request_body["seed"] = 5
    with ThreadPoolExecutor(4) as threads:  # the first try never came
        assert len(set(threads.map(post, (1, 2, 1, 2)))) == 1


def test_a_retry_of_a_cancel_gets_the_job(gateway: Gateway) -> None:
    job = create(gateway, hyperparameters={"n_epochs": 50})
    answers = [gateway.http.post(f"{JOBS}/{job}/cancel", headers={"x-stainless-retry-count": retry}) for retry in "010"]
    assert [answer.status_code for answer in answers] == [200, 200, 400]
    assert answers[1].json()["status"] == "cancelled"


# -------------------------------------------------------------------------------------------------------- live events


def test_the_stream_has_every_event_once_and_ends_with_the_job(gateway: Gateway) -> None:
    job = create(gateway)
    with live(gateway, job) as lines:
        seen = list(lines)
    assert seen[-2:] == ["data: [DONE]", ""]
    listed = [event["id"] for event in gateway.http.get(f"{JOBS}/{job}/events?limit=1000").json()["data"]][::-1]
    assert ids_of(iter(seen)) == listed
    with live(gateway, job, last=listed[2]) as lines:  # it has ended already
        assert ids_of(lines) == listed[3:]
    other = create(gateway)
    for wrong in ("ftevent-none", listed[0]):
        response = gateway.http.get(f"{JOBS}/{other}/events?stream=true", headers={"last-event-id": wrong})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "after")


def test_a_stream_goes_on_behind_a_killed_gateway(start: Callable[..., Gateway]) -> None:
    gateway = start()
    job = create(gateway, hyperparameters={"n_epochs": 4})
    with live(gateway, job) as lines:
        seen = until(lines, "Step 3/8")
        gateway.process.kill()
        with pytest.raises(httpx2.RemoteProtocolError):
            list(lines)
    gateway.process.wait()
    gateway = start()
    with live(gateway, job, last=seen[-1]) as lines:
        seen += ids_of(lines)
    listed = [event["id"] for event in gateway.http.get(f"{JOBS}/{job}/events?limit=1000").json()["data"]][::-1]
    assert seen == listed
    assert gateway.client.fine_tuning.jobs.retrieve(job).status == "succeeded"


def test_open_streams_do_not_hold_up_an_orderly_stop(start: Callable[..., Gateway]) -> None:
    gateway = start()
    job = create(gateway, hyperparameters={"n_epochs": 50})
    with live(gateway, job) as lines:
        until(lines, "Step 1/")
        gateway.process.terminate()
        assert "data: [DONE]" not in list(lines)
        assert gateway.process.wait(9) == 0  # of the ten seconds that a response may take


def test_many_streams_of_one_job(gateway: Gateway) -> None:
    job = create(gateway, hyperparameters={"n_epochs": 4})
    barrier = threading.Barrier(20)

    def follow(_: int) -> list[str]:
        barrier.wait(30)
        with live(gateway, job) as lines:
            return ids_of(lines)

    with ThreadPoolExecutor(20) as threads:
        found = list(threads.map(follow, range(20)))
    assert len(found[0]) == len(set(found[0])) > 8
    assert all(ids == found[0] for ids in found)


# ------------------------------------------------------------------------------------------------------------ the rest


def test_a_deleted_job_is_gone_and_its_model_stays(gateway: Gateway) -> None:
    job = create(gateway, hyperparameters={"n_epochs": 4})
    assert gateway.http.delete(f"/v1/tuneway/jobs/{job}").status_code == 400
    with live(gateway, job) as lines:
        until(lines, "successfully completed")
    model = gateway.client.fine_tuning.jobs.retrieve(job).fine_tuned_model
    assert gateway.http.delete(f"/v1/tuneway/jobs/{job}").status_code == 204
    for path in ("", "/events", "/events?stream=true", "/checkpoints"):
        assert gateway.http.get(f"{JOBS}/{job}{path}").status_code == 404, path
    assert job not in [found.id for found in gateway.client.fine_tuning.jobs.list(limit=100)]
    assert gateway.http.delete(f"/v1/tuneway/jobs/{job}").status_code == 404
    assert gateway.http.delete(f"/openai/v1/fine_tuning/jobs/{job}").status_code == 204
    assert model is not None
    assert gateway.client.models.retrieve(model).id == model


def test_what_has_no_effect_is_said_twice(gateway: Gateway, request_body: dict[str, Any]) -> None:
    request_body["integrations"] = [{"type": "wandb", "wandb": {"project": "p"}}]
    answer = gateway.http.post(JOBS, json=request_body)
    assert answer.headers["x-tuneway-ignored"] == "integrations"
    assert answer.json()["integrations"][0]["wandb"]["project"] == "p"
    events = gateway.http.get(f"{JOBS}/{answer.json()['id']}/events?limit=1000").json()["data"]
    (warning,) = [event["message"] for event in events if event["level"] == "warn"]
    assert "integrations has no effect here" in warning
    assert "the metrics are in the job's events" in warning


def test_a_method_that_the_provider_has_not_is_refused(gateway: Gateway, request_body: dict[str, Any]) -> None:
    error = gateway.http.post(JOBS, json={**request_body, "method": {"type": "dpo"}}).json()["error"]
    assert (error["param"], error["code"]) == ("method.type", "unsupported_value")
    assert "'supervised'" in error["message"]
