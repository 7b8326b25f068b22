"""A create through a relay makes one job: the gateway sends nothing twice, and a client's retry finds its first try."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai
import pytest

from tests.simulators.openai import OpenAISimulator
from tests.simulators.sdk import ROWS, upload
from tests.wire.conftest import Gateway
from tests.wire.relays import OPENAI, RawProvider, ask, heads, response, through
from tests.wire.vendors import eventually

JOBS = "/v1/fine_tuning/jobs"
AGAIN = {"x-stainless-retry-count": "1"}
HTML = b"<html>bad gateway</html>"


@pytest.fixture
def sim() -> Iterator[OpenAISimulator]:
    with OpenAISimulator() as sim:
        yield sim
    assert sim.leaks == []


@pytest.fixture
def file(sim: OpenAISimulator) -> str:
    """The id of a file at the provider."""
    with openai.OpenAI(base_url=sim.base_url, api_key=sim.key) as direct:
        return upload(direct)


@pytest.fixture
def client(gateway: Gateway, sim: OpenAISimulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[openai.OpenAI]:
    """The SDK with its two retries, which it does not wait for here."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    with through(gateway, sim, max_retries=2, _strict_response_validation=False) as client:
        yield client


def create(gateway: Gateway, sim: OpenAISimulator, body: dict[str, Any], **headers: str) -> httpx2.Response:
    """Sends a create, as a client does that knows no SDK."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(gateway, sim.base_url, "POST", JOBS, {"authorization": f"Bearer {sim.key}"} | sent, json=body)


def again(gateway: Gateway, sim: OpenAISimulator, body: dict[str, Any], **headers: str) -> httpx2.Response:
    return create(gateway, sim, body, x_stainless_retry_count="1", **headers)


# ----------------------------------------------------------------------------------------------- what a fault leads to

AFTER = ["error_after", "cut_after", "cut_during"]
BEFORE = ["error_before", "cut_before", "answer"]


@pytest.mark.parametrize("how", [*AFTER, *BEFORE])
def test_the_sdk_ends_with_one_job(client: openai.OpenAI, sim: OpenAISimulator, file: str, how: str) -> None:
    sim.fault("create_job", how, body=HTML if how == "answer" else None)
    job = client.fine_tuning.jobs.create(model=OPENAI, training_file=file)
    assert sim.created == [job.id]
    assert job.to_dict()["tuneway"].get("retried") is (True if how in AFTER else None)  # type: ignore[attr-defined]
    assert len(sim.asked("create_job")) == (1 if how in AFTER else 2)


@pytest.mark.parametrize("how", [*AFTER, *BEFORE])
def test_the_sdk_ends_with_one_job_after_two_faults(
    client: openai.OpenAI, sim: OpenAISimulator, file: str, how: str
) -> None:
    sim.fault("create_job", how, body=HTML if how == "answer" else None)
    sim.fault("create_job", "cut_after")
    job = client.fine_tuning.jobs.create(model=OPENAI, training_file=file)
    assert sim.created == [job.id]


@pytest.mark.parametrize("how", [*AFTER, *BEFORE])
@pytest.mark.parametrize("retry", [{}, AGAIN], ids=["first", "retry"])
def test_the_gateway_itself_sends_it_once(
    gateway: Gateway, sim: OpenAISimulator, file: str, how: str, retry: dict[str, str]
) -> None:
    sim.fault("create_job", how, times=5, body=HTML if how == "answer" else None)
    headers = {name.replace("-", "_"): value for name, value in retry.items()}
    answer = create(gateway, sim, {"model": OPENAI, "training_file": file}, **headers)
    assert answer.status_code in (500, 502)
    assert answer.json()["error"]["type"] == "upstream_error"
    assert len(sim.asked("create_job")) == 1


@pytest.mark.parametrize("operation", ["cancel_job", "pause_job", "delete_file", "create_permission", "chat"])
def test_nothing_that_changes_something_is_sent_twice(
    gateway: Gateway, sim: OpenAISimulator, file: str, operation: str
) -> None:
    paths = {
        "cancel_job": ("POST", f"{JOBS}/ftjob-1/cancel", None),
        "pause_job": ("POST", f"{JOBS}/ftjob-1/pause", None),
        "delete_file": ("DELETE", f"/v1/files/{file}", None),
        "create_permission": ("POST", "/v1/fine_tuning/checkpoints/c/permissions", {"project_ids": ["p"]}),
        "chat": ("POST", "/v1/chat/completions", {"model": OPENAI, "messages": []}),
    }
    method, path, body = paths[operation]
    for number, how in enumerate(("error_before", "cut_before", "cut_during"), 1):
        sim.fault(operation, how, times=5, status=503)
        assert ask(gateway, sim.base_url, method, path, {"authorization": f"Bearer {sim.key}"}, json=body).is_error
        assert len(sim.asked(operation)) == number
        sim._faults[operation].clear()


def test_a_limit_is_waited_for_by_the_client(client: openai.OpenAI, sim: OpenAISimulator, file: str) -> None:
    sim.fault("create_job", "error_before", status=429, retry_after="0.01")
    job = client.fine_tuning.jobs.create(model=OPENAI, training_file=file)
    assert sim.created == [job.id]


def test_a_create_that_was_waited_for_too_long_is_not_sent_again(
    client: openai.OpenAI, sim: OpenAISimulator, file: str
) -> None:
    """It may come to be after a retry has found nothing."""
    sim.fault("create_job", "hold_before")
    headers = {"x-portkey-request-timeout": "400"}
    with pytest.raises(openai.InternalServerError) as raised:
        client.fine_tuning.jobs.create(model=OPENAI, training_file=file, extra_headers=headers)
    assert (raised.value.status_code, raised.value.code) == (504, "provider_timed_out")
    assert "look at its jobs" in raised.value.message
    sim.release("create_job")
    assert len(sim.created) == len(sim.asked("create_job")) == 1


# --------------------------------------------------------------------------------------------- which job a retry finds

FULL = {"suffix": "mine", "seed": 7, "hyperparameters": {"n_epochs": 3}, "metadata": {"a": "b"}}
OTHERS: list[dict[str, Any]] = [
    {"seed": 8},
    {"suffix": "yours"},
    {"suffix": None},
    {"model": "gpt-4o"},
    {"training_file": "other"},
    {"validation_file": "other"},
    {"hyperparameters": {"n_epochs": 4}},
    {"hyperparameters": None, "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 4}}}},
    {"hyperparameters": None, "method": {"type": "dpo"}},
    {"metadata": {"a": "c"}},
    {"metadata": None},
]
SAME: list[dict[str, Any]] = [
    {},
    {"model": "gpt-4o-mini-2024-07-18"},
    {"seed": None},
    {"hyperparameters": {"n_epochs": 3, "batch_size": "auto"}},
    {"hyperparameters": None, "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}}},
    {"validation_file": None},
]


def asked(sim: OpenAISimulator, file: str, more: dict[str, Any]) -> dict[str, Any]:
    body = {"model": OPENAI, "training_file": file} | FULL | more
    for name in ("training_file", "validation_file"):
        if body.get(name) == "other":
            with openai.OpenAI(base_url=sim.base_url, api_key=sim.key) as direct:
                body[name] = upload(direct)
    return {name: value for name, value in body.items() if value is not None}


@pytest.mark.parametrize("more", OTHERS, ids=json.dumps)
def test_another_job_is_not_taken_for_it(gateway: Gateway, sim: OpenAISimulator, file: str, more: Any) -> None:
    assert create(gateway, sim, asked(sim, file, {})).status_code == 200
    answer = again(gateway, sim, asked(sim, file, more))
    assert answer.status_code == 200, answer.text
    assert sim.created[1:] == [answer.json()["id"]]
    assert "retried" not in answer.json()["tuneway"]


@pytest.mark.parametrize("more", SAME, ids=json.dumps)
def test_the_same_job_is(gateway: Gateway, sim: OpenAISimulator, file: str, more: Any) -> None:
    assert create(gateway, sim, asked(sim, file, {})).status_code == 200
    answer = again(gateway, sim, asked(sim, file, more))
    assert (answer.json()["id"], answer.json()["tuneway"]["retried"]) == (sim.created[0], True)
    assert len(sim.created) == 1


def test_it_is_the_newest_of_them(gateway: Gateway, sim: OpenAISimulator, file: str) -> None:
    body = {"model": OPENAI, "training_file": file}
    for _ in range(2):
        assert create(gateway, sim, body).status_code == 200
    assert again(gateway, sim, body).json()["id"] == sim.created[1]


def test_a_cancelled_job_is_not(gateway: Gateway, sim: OpenAISimulator, file: str) -> None:
    body = {"model": OPENAI, "training_file": file}
    create(gateway, sim, body)
    sim.set_status(sim.created[0], "cancelled")
    assert again(gateway, sim, body).json()["id"] == sim.created[1]


def test_nor_one_of_long_ago(gateway: Gateway, sim: OpenAISimulator, file: str) -> None:
    body = {"model": OPENAI, "training_file": file}
    create(gateway, sim, body)
    sim.job_of().wire["created_at"] -= 16 * 60
    assert again(gateway, sim, body).json()["id"] == sim.created[1]


def test_it_is_found_behind_many_others(gateway: Gateway, sim: OpenAISimulator, file: str) -> None:
    body = {"model": OPENAI, "training_file": file}
    create(gateway, sim, body)
    first = sim.job_of()
    for number in range(250):
        other = copy.copy(first)
        other.wire = first.wire | {"id": f"ftjob-{number}", "user_provided_suffix": f"s{number}"}
        sim.jobs[other.id] = other
    assert again(gateway, sim, body).json()["id"] == first.id
    assert len(sim.asked("jobs")) == 3


@pytest.mark.parametrize(("status", "times"), [(401, 1), (500, 3)])
def test_a_retry_that_cannot_be_looked_up_is_not_sent(
    gateway: Gateway, sim: OpenAISimulator, file: str, status: int, times: int
) -> None:
    sim.fault("jobs", "error_before", status=status, times=times)
    answer = again(gateway, sim, {"model": OPENAI, "training_file": file})
    assert answer.status_code == status
    assert sim.asked("create_job") == []


@pytest.mark.parametrize("garbage", [b'{"data": [{"id": 7}]}', b'{"data": "none"}', b"null", b"[[]]"])
def test_nor_one_whose_list_says_nothing(gateway: Gateway, garbage: bytes) -> None:
    with RawProvider(answers=[response(garbage), response(b'{"id": "ftjob-1"}')]).running() as raw:
        body = {"model": OPENAI, "training_file": "file-1"}
        answer = ask(gateway, raw.base_url, "POST", JOBS, AGAIN, json=body)
        posts = [received for received in raw.received if received.line.startswith("POST")]
        assert answer.status_code == (200 if posts else 502), answer.text
        assert len(posts) == (garbage == b'{"data": [{"id": 7}]}')


@pytest.mark.parametrize("count", ["0", "", "x", "-1", "1.5", "9999", "²"])
def test_what_counts_no_retries_is_a_first_try(gateway: Gateway, sim: OpenAISimulator, file: str, count: str) -> None:
    headers: Any = {"x_stainless_retry_count": count.encode()}
    assert create(gateway, sim, {"model": OPENAI, "training_file": file}, **headers).status_code == 200
    assert sim.asked("jobs") == []


# ----------------------------------------------------------------------------------------------------- at the same time


@pytest.mark.parametrize("how", ["hold_before", "hold_after"])
def test_retries_wait_for_the_try_that_is_under_way(
    gateway: Gateway, sim: OpenAISimulator, file: str, how: str
) -> None:
    """Whose client has given it up: nothing else is known of it than that it was sent."""
    sim.fault("create_job", how)
    body = {"model": OPENAI, "training_file": file}
    headers = heads(sim.base_url) | {"authorization": f"Bearer {sim.key}"}
    with pytest.raises(httpx2.ReadTimeout):
        gateway.http.post(JOBS, headers=headers, json=body, timeout=0.2)
    sim.wait_held("create_job")
    with ThreadPoolExecutor(3) as pool:
        retries = [pool.submit(again, gateway, sim, body) for _ in range(3)]
        other = create(gateway, sim, body | {"suffix": "other"})
        assert other.status_code == 200
        assert not any(retry.done() for retry in retries)
        sim.release("create_job")
        answers = [retry.result() for retry in retries]
    first = next(job for job in sim.created if job != other.json()["id"])
    assert {answer.json()["id"] for answer in answers} == {first}
    assert len(sim.asked("create_job")) == len(sim.created) == 2


def test_of_retries_at_the_same_time_one_is_sent(gateway: Gateway, sim: OpenAISimulator, file: str) -> None:
    body = {"model": OPENAI, "training_file": file}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: again(gateway, sim, body), range(8)))
    assert {answer.json()["id"] for answer in answers} == set(sim.created)
    assert len(sim.created) == 1


def test_first_tries_at_the_same_time_are_all_sent(gateway: Gateway, sim: OpenAISimulator, file: str) -> None:
    body = {"model": OPENAI, "training_file": file}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: create(gateway, sim, body), range(4)))
    assert len({answer.json()["id"] for answer in answers}) == len(sim.created) == 4


def test_callers_do_not_wait_for_each_other(gateway: Gateway, sim: OpenAISimulator, file: str) -> None:
    sim.fault("create_job", "hold_before")
    body = {"model": OPENAI, "training_file": file}
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(create, gateway, sim, body)
        sim.wait_held("create_job")
        stranger = again(gateway, sim, body, authorization="Bearer sk-strange")
        assert stranger.status_code == 401
        sim.release("create_job")
        assert held.result().status_code == 200


def test_a_client_that_times_out_ends_with_one_job(client: openai.OpenAI, sim: OpenAISimulator, file: str) -> None:
    """Whatever it has been told: the gateway is still at its first try."""
    sim.fault("create_job", "hold_before")
    body: Any = {"model": OPENAI, "training_file": file}
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).fine_tuning.jobs.create(**body)
    sim.release("create_job")
    eventually(lambda: sim.created)
    assert client.fine_tuning.jobs.create(**body, extra_headers=AGAIN).id == sim.created[0]
    assert len(sim.asked("create_job")) == len(sim.created) == 1


def test_a_large_file_is_not_sent_again(client: openai.OpenAI, gateway: Gateway, sim: OpenAISimulator) -> None:
    """By the gateway; the SDK does."""
    sim.fault("create_file", "error_after", times=2)
    with pytest.raises(openai.InternalServerError):
        client.with_options(max_retries=0).files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
    assert len(sim.files) == 1
    client.files.create(file=("a.jsonl", ROWS), purpose="fine-tune")
    assert len(sim.files) == 3
