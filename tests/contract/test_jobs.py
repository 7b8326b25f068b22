"""`/v1/fine_tuning/jobs` through the official SDK, and hostile bodies around it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import httpx2
import openai
import pytest

from tests.contract.conftest import Gateway
from tests.contract.fakes import BASE, NOW, checkpoint, event, job
from tuneway.types import (
    Attention,
    Candidate,
    Desired,
    EventLevel,
    Hyperparameters,
    JobError,
    JobRequest,
    JobStatus,
    Progress,
)

REQUEST = {"model": BASE.name, "training_file": "file-1"}
AUTO = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}


def post(gateway: Gateway, body: Any, path: str = "", **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return gateway.http.post(
        f"{gateway.url}/v1/fine_tuning/jobs{path}",
        content=content,
        headers={"content-type": "application/json", **headers},
    )


def refused(gateway: Gateway, body: Any, status: int = 400) -> Any:
    """The error of a request that must be refused without any effect."""
    response = post(gateway, body)
    assert response.status_code == status, response.text
    assert gateway.jobs.done["create"] == 0
    return response.json()["error"]


def test_the_reference_create_response(gateway: Gateway) -> None:
    body = {**REQUEST, "suffix": "TestFTJob", "seed": 1234567, "method": {"type": "supervised"}}
    response = post(gateway, body)
    assert response.status_code == 200
    assert response.json() == {
        "object": "fine_tuning.job",
        "id": f"ftjob-{1:024}",
        "model": BASE.name,
        "created_at": NOW,
        "finished_at": None,
        "fine_tuned_model": None,
        "organization_id": "org-default",
        "result_files": [],
        "status": "validating_files",
        "validation_file": None,
        "training_file": "file-1",
        "hyperparameters": AUTO,
        "trained_tokens": None,
        "error": None,
        "user_provided_suffix": "TestFTJob",
        "seed": 1234567,
        "estimated_finish": None,
        "integrations": [],
        "metadata": None,
        "usage_metrics": None,
        "shared_with_openai": False,
        "eval_id": None,
        "method": {"type": "supervised", "supervised": {"hyperparameters": AUTO}},
        "tuneway": {
            "state": "validating_files",
            "provider": "local",
            "provider_status": None,
            "provider_job_id": None,
            "progress": None,
            "queue_position": None,
            "attention": None,
            "learning_rate": None,
            "options": {},
        },
    }


def test_every_field_of_the_sdk_arrives(gateway: Gateway) -> None:
    created = gateway.client.fine_tuning.jobs.create(
        model=BASE.name,
        training_file="file-1",
        validation_file="file-2",
        suffix="my-suffix_1",
        seed=2**31 - 1,
        metadata={"team": "support"},
        integrations=None,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": 0.5}},
        },
        extra_body={"tuneway": {"provider": "fake"}},
        extra_headers={"Idempotency-Key": "once"},
    )
    assert gateway.jobs.requests == [
        JobRequest(
            model=BASE.name,
            training_file="file-1",
            validation_file="file-2",
            suffix="my-suffix_1",
            seed=2**31 - 1,
            metadata={"team": "support"},
            hyperparameters=Hyperparameters(3, "auto", 0.5),
            provider="fake",
        )
    ]
    assert gateway.jobs.keys == ["once"]
    assert created.metadata == {"team": "support"}
    assert created._request_id is not None
    assert created._request_id.startswith("req_")


def test_both_forms_of_hyperparameters_may_complete_each_other(gateway: Gateway) -> None:
    hyperparameters = {"batch_size": 4, "n_epochs": 2}
    method = {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
    assert post(gateway, {**REQUEST, "hyperparameters": {"n_epochs": 2}, "method": method}).status_code == 200
    assert gateway.jobs.requests[0].hyperparameters == Hyperparameters(2, 4, "auto")


def test_a_job_shows_what_was_resolved(gateway: Gateway) -> None:
    progress = Progress(step=3, total_steps=9, tokens_per_second=500.0, seconds_left=60.0, train_loss=math.nan)
    asked = JobRequest(BASE.name, "file-1", learning_rate=1e-4, options={"packing": True})
    running = replace(
        job(1, asked, status=JobStatus.RUNNING),
        provider_job_id="vendor-7",
        resolved=Hyperparameters(10, 1, 1.8),
        progress=progress,
        provider_status="training",
        estimated_finish=NOW + 60,
    )
    gateway.jobs.add(running)
    shown = gateway.client.fine_tuning.jobs.retrieve(running.id).to_dict()
    numbers = {"n_epochs": 10, "batch_size": 1, "learning_rate_multiplier": 1.8}
    assert shown["hyperparameters"] == numbers
    assert shown["method"] == {"type": "supervised", "supervised": {"hyperparameters": numbers}}
    assert shown["estimated_finish"] == NOW + 60
    assert shown["tuneway"] == {
        "state": "running",
        "provider": "local",
        "provider_status": "training",
        "provider_job_id": "vendor-7",
        "progress": {
            "step": 3,
            "total_steps": 9,
            "tokens_per_second": 500.0,
            "seconds_left": 60.0,
            "train_loss": None,
            "valid_loss": None,
        },
        "queue_position": None,
        "attention": None,
        "learning_rate": 1e-4,
        "options": {"packing": True},
    }


def test_a_local_job_has_no_name_of_its_providers(gateway: Gateway) -> None:
    gateway.jobs.add(replace(job(1), provider_job_id=job(1).id))
    shown = gateway.client.fine_tuning.jobs.retrieve(job(1).id).to_dict()
    assert shown["tuneway"]["provider_job_id"] is None  # type: ignore[index]


def test_a_preference_job_shows_its_own_options(gateway: Gateway) -> None:
    asked = method(type="dpo", dpo={"hyperparameters": {"beta": 0.5}})
    created = gateway.client.fine_tuning.jobs.create(**asked)  # type: ignore[arg-type]
    shown = {"hyperparameters": {**AUTO, "beta": 0.5}}
    assert created.to_dict()["method"] == {"type": "dpo", "dpo": shown}


def test_a_reinforcement_job_keeps_its_grader(gateway: Gateway) -> None:
    grader = {"type": "string_check", "name": "g", "operation": "eq", "input": "{{x}}", "reference": "{{y}}"}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}
    own = {"reasoning_effort": "low", "eval_interval": "auto", "n_epochs": 2}
    asked = {"grader": grader, "response_format": form, "hyperparameters": own}
    created = post(gateway, method(type="reinforcement", reinforcement=asked)).json()
    assert gateway.jobs.requests[0].reinforcement == asked
    assert gateway.jobs.requests[0].hyperparameters == Hyperparameters(n_epochs=2)
    shown = {"reasoning_effort": "low", "eval_interval": "auto", **AUTO, "n_epochs": 2}
    assert created["method"] == {"type": "reinforcement", "reinforcement": {**asked, "hyperparameters": shown}}
    gateway.jobs.add(replace(gateway.jobs.rows[created["id"]], resolved=Hyperparameters(2, 8, 1.5)))
    url = f"{gateway.url}/v1/fine_tuning/jobs/{created['id']}"
    numbers = {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 1.5}
    found = gateway.http.get(url).json()["method"]["reinforcement"]
    assert found == {**asked, "hyperparameters": {**own, **numbers}}
    azure = gateway.http.get(url, headers={"x-tuneway-dialect": "azure"}).json()["method"]["reinforcement"]
    assert azure["hyperparameters"]["eval_interval"] == -1
    assert gateway.client.fine_tuning.jobs.retrieve(created["id"]).method is not None


def test_a_providers_own_fields_arrive(gateway: Gateway) -> None:
    options = {"lora_r": 16, "packing": True, "note": "x", "targets": ["q", "v"], "none": None}
    extension = {"provider": "openai", "learning_rate": 1, "options": options}
    shown = post(gateway, {**REQUEST, "tuneway": extension}).json()["tuneway"]
    assert (shown["learning_rate"], shown["options"]) == (1.0, options)
    (asked,) = gateway.jobs.requests
    assert (asked.learning_rate, asked.options) == (1.0, options)


def test_a_job_that_waits_for_a_person(gateway: Gateway) -> None:
    waits = Attention("Which one is it?", (Candidate("vendor-1", NOW, "running"), Candidate("vendor-2", NOW, "queued")))
    gateway.jobs.add(replace(job(1, status=JobStatus.QUEUED), attention=waits))
    url = f"{gateway.url}/v1/tuneway/jobs/{job(1).id}/adopt"
    shown = gateway.client.fine_tuning.jobs.retrieve(job(1).id).to_dict()["tuneway"]
    assert shown["state"] == "needs_attention"  # type: ignore[index]
    assert shown["attention"] == {  # type: ignore[index]
        "reason": "Which one is it?",
        "candidates": [
            {"provider_job_id": "vendor-1", "created_at": NOW, "status": "running"},
            {"provider_job_id": "vendor-2", "created_at": NOW, "status": "queued"},
        ],
    }
    for body, param in (({}, "provider_job_id"), ({"provider_job_id": ""}, "provider_job_id"), ({"id": "x"}, "id")):
        refused = gateway.http.post(url, json=body)
        assert refused.status_code == 400, body
        assert param in refused.json()["error"]["message"]
    assert gateway.jobs.adopted == []
    adopted = gateway.http.post(url, json={"provider_job_id": "vendor-2"}).json()["tuneway"]
    assert (adopted["state"], adopted["attention"], adopted["provider_job_id"]) == ("queued", None, "vendor-2")
    assert gateway.http.post(url, json={"provider_job_id": None}).status_code == 200
    assert gateway.jobs.adopted == ["vendor-2", None]
    assert gateway.http.post(url.replace(job(1).id, "none"), json={"provider_job_id": None}).status_code == 404


def test_where_azure_trains_is_for_the_provider_to_take(gateway: Gateway) -> None:
    azure = {"x-tuneway-dialect": "azure"}
    made = post(gateway, {**REQUEST, "trainingType": "globalstandard"}, **azure)
    assert made.headers["x-tuneway-ignored"] == "trainingType"
    assert gateway.jobs.requests[0].optional == {"trainingType": ("training_type", "globalstandard")}
    assert post(gateway, {**REQUEST, "trainingType": "globalstandard"}).status_code == 400


def test_a_waiting_job_shows_its_place(gateway: Gateway) -> None:
    gateway.jobs.add(job(1, status=JobStatus.QUEUED))
    shown = gateway.client.fine_tuning.jobs.retrieve(job(1).id).to_dict()
    assert shown["tuneway"]["queue_position"] == 2  # type: ignore[index]


def test_only_a_failed_job_has_an_error(gateway: Gateway) -> None:
    failure = JobError("invalid_n_examples", "Training file has 7 example(s)", "training_file")
    gateway.jobs.add(replace(job(1, status=JobStatus.FAILED), error=failure))
    gateway.jobs.add(replace(job(2, status=JobStatus.CANCELLED), error=failure))
    jobs = gateway.client.fine_tuning.jobs
    assert jobs.retrieve(job(1).id).to_dict()["error"] == {
        "code": "invalid_n_examples",
        "message": "Training file has 7 example(s)",
        "param": "training_file",
    }
    assert jobs.retrieve(job(2).id).error is None


def test_a_job_that_is_being_cancelled_says_so(gateway: Gateway) -> None:
    gateway.jobs.add(replace(job(1, status=JobStatus.RUNNING), desired=Desired.CANCEL))
    shown = post(gateway, b"", f"/{job(1).id}/cancel")
    assert shown.json()["status"] == "cancelled"
    assert shown.json()["tuneway"]["state"] == "cancelled"
    gateway.jobs.add(replace(job(2, status=JobStatus.RUNNING), desired=Desired.CANCEL))
    shown = gateway.http.get(f"{gateway.url}/v1/fine_tuning/jobs/{job(2).id}")
    assert (shown.json()["status"], shown.json()["tuneway"]["state"]) == ("running", "cancelling")


def test_cancel(gateway: Gateway) -> None:
    gateway.jobs.add(job(1))
    cancelled = gateway.client.fine_tuning.jobs.cancel(job(1).id)
    assert (cancelled.status, cancelled.finished_at, cancelled.error) == ("cancelled", None, None)
    with pytest.raises(openai.BadRequestError, match="Job has already completed"):
        gateway.client.fine_tuning.jobs.cancel(job(1).id)


@pytest.mark.parametrize("body", [b"", b"{}", b" { } "])
@pytest.mark.parametrize("headers", [{}, {"content-type": "application/json"}])
def test_cancel_takes_no_body_or_an_empty_one(gateway: Gateway, body: bytes, headers: dict[str, str]) -> None:
    gateway.jobs.add(job(1))
    url = f"{gateway.url}/v1/fine_tuning/jobs/{job(1).id}/cancel"
    response = gateway.http.post(url, content=body, headers=headers)
    assert response.status_code == (415 if body and not headers else 200)


def test_cancel_refuses_a_body_with_something_in_it(gateway: Gateway) -> None:
    gateway.jobs.add(job(1))
    response = post(gateway, {"force": True}, f"/{job(1).id}/cancel")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "force")
    assert gateway.jobs.done["cancel"] == 0


def test_pause_and_resume(gateway: Gateway) -> None:
    gateway.jobs.add(job(1))
    jobs = gateway.client.fine_tuning.jobs
    for call, state in ((jobs.pause, "paused"), (jobs.resume, "queued")):
        shown = call(job(1).id).to_dict()
        assert (shown["status"], shown["tuneway"]["state"]) == ("queued", state)  # type: ignore[index]
    jobs.cancel(job(1).id)
    for call in (jobs.pause, jobs.resume):
        with pytest.raises(openai.BadRequestError, match="Job has already completed"):
            call(job(1).id)


def test_what_has_no_effect_is_named(gateway: Gateway) -> None:
    integrations = [{"type": "wandb", "wandb": {"project": "p"}}]
    asked = {**method(type="supervised", dpo={}), "integrations": integrations}
    assert post(gateway, asked).headers["x-tuneway-ignored"] == "integrations, method.dpo"
    assert "x-tuneway-ignored" not in post(gateway, REQUEST).headers
    assert gateway.jobs.requests[0].integrations == ({"type": "wandb", "wandb": {"project": "p"}},)


def test_delete(gateway: Gateway) -> None:
    gateway.jobs.add(job(1))
    ours, azures = "/v1/tuneway/jobs", "/openai/v1/fine_tuning/jobs"
    answers = [gateway.http.delete(f"{gateway.url}{path}/{job(1).id}") for path in (ours, ours, azures)]
    assert [answer.status_code for answer in answers] == [204, 404, 204]
    assert answers[0].content == answers[2].content == b""


def test_a_stream_of_events(gateway: Gateway) -> None:
    gateway.jobs.add(job(1))
    gateway.jobs.batches = [[event(1), event(2, step=5)], (), [event(3)], None]
    url = f"{gateway.url}/v1/fine_tuning/jobs/{job(1).id}/events"
    response = gateway.http.get(f"{url}?stream=true&after=ftevent-0", headers={"last-event-id": "ftevent-1"})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    frames = response.text.split("\n\n")
    assert [frame.split("\n")[0] for frame in frames] == [
        *(f"id: {event(number).id}" for number in (1, 2)),
        ": ",
        f"id: {event(3).id}",
        "data: [DONE]",
        "",
    ]
    gateway.jobs.stored_events = [event(2, step=5)]
    shown = gateway.http.get(url, params={"stream": "0"}).json()["data"]
    assert json.loads(frames[1].split("\n")[1].removeprefix("data: ")) == shown[0]
    gateway.http.get(f"{url}?stream=1&after=ftevent-0")
    assert gateway.jobs.followed == ["ftevent-1", "ftevent-0"]


def test_a_stream_without_its_end_is_one_that_broke_off(gateway: Gateway) -> None:
    gateway.jobs.add(job(1))
    gateway.jobs.batches = [[event(1)]]
    response = gateway.http.get(f"{gateway.url}/v1/fine_tuning/jobs/{job(1).id}/events?stream=true")
    assert "[DONE]" not in response.text


@pytest.mark.parametrize(
    ("query", "status", "param"),
    [
        ("stream=yes", 400, "stream"),
        ("stream=", 400, "stream"),
        ("stream=true&limit=3", 400, "limit"),
        ("limit=-1", 400, "limit"),
    ],
)
def test_wrong_queries_of_events(gateway: Gateway, query: str, status: int, param: str) -> None:
    gateway.jobs.add(job(1))
    response = gateway.http.get(f"{gateway.url}/v1/fine_tuning/jobs/{job(1).id}/events?{query}")
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)
    missing = gateway.http.get(f"{gateway.url}/v1/fine_tuning/jobs/ftjob-none/events?stream=true")
    assert missing.status_code == 404


def test_lists_page_through_everything(gateway: Gateway) -> None:
    for number in range(1, 8):
        gateway.jobs.add(job(number))
        gateway.jobs.stored_events.append(event(number, step=number))
        gateway.jobs.stored_checkpoints.append(checkpoint(number, train_loss=0.5))
    jobs = gateway.client.fine_tuning.jobs
    newest_first = list(range(7, 0, -1))
    assert [int(found.id[-24:]) for found in jobs.list(limit=3)] == newest_first
    assert [int(found.id[-24:]) for found in jobs.list_events(job(1).id, limit=3)] == newest_first
    assert [found.step_number for found in jobs.checkpoints.list(job(1).id, limit=3)] == newest_first
    first = jobs.list(limit=3).to_dict()
    assert (first["object"], first["has_more"]) == ("list", True)
    assert first.keys() == {"object", "data", "has_more"}
    page = jobs.checkpoints.list(job(1).id, limit=3).to_dict()
    assert (page["first_id"], page["last_id"]) == (checkpoint(7).id, checkpoint(5).id)


def test_an_empty_list_of_checkpoints(gateway: Gateway) -> None:
    gateway.jobs.add(job(1))
    shown = gateway.http.get(f"{gateway.url}/v1/fine_tuning/jobs/{job(1).id}/checkpoints").json()
    assert shown == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


def test_the_wire_form_of_events_and_checkpoints(gateway: Gateway) -> None:
    gateway.jobs.add(job(1))
    gateway.jobs.stored_events = [event(1, EventLevel.WARN), event(2, step=5, train_loss=math.inf)]
    gateway.jobs.stored_checkpoints = [checkpoint(10, train_loss=0.25, valid_loss=math.nan)]
    events = gateway.http.get(f"{gateway.url}/v1/fine_tuning/jobs/{job(1).id}/events").json()
    assert events["data"] == [
        {
            "object": "fine_tuning.job.event",
            "id": f"ftevent-{2:024}",
            "created_at": NOW,
            "level": "info",
            "message": "event 2",
            "type": "metrics",
            "data": {"step": 5, "train_loss": None},
        },
        {
            "object": "fine_tuning.job.event",
            "id": f"ftevent-{1:024}",
            "created_at": NOW,
            "level": "warn",
            "message": "event 1",
            "type": "message",
            "data": {},
        },
    ]
    found = gateway.http.get(f"{gateway.url}/v1/fine_tuning/jobs/{job(1).id}/checkpoints").json()
    assert found["data"] == [
        {
            "object": "fine_tuning.job.checkpoint",
            "id": f"ftckpt_{10:024}",
            "created_at": NOW,
            "fine_tuned_model_checkpoint": checkpoint(10).model,
            "fine_tuning_job_id": "ftjob-1",
            "metrics": {"type": "supervised", "step": 10, "train_loss": 0.25},
            "step_number": 10,
        }
    ]


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", None),
        ("metadata[team]=support&metadata[a%5Db]=", {"team": "support", "a]b": ""}),
        ("metadata=null", {}),
        ("something=else", None),
    ],
)
def test_the_metadata_filter(gateway: Gateway, query: str, wanted: dict[str, str] | None) -> None:
    assert gateway.http.get(f"{gateway.url}/v1/fine_tuning/jobs?{query}").status_code == 200
    assert gateway.jobs.filters == [wanted]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=-1", "limit"),
        ("limit=10001", "limit"),
        ("limit=many", "limit"),
        ("metadata=some", "metadata"),
        ("metadata=null&metadata[a]=b", "metadata"),
        ("metadata[a]=b&metadata[a]=c", "metadata[a]"),
    ],
)
def test_wrong_queries(gateway: Gateway, query: str, param: str) -> None:
    response = gateway.http.get(f"{gateway.url}/v1/fine_tuning/jobs?{query}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert gateway.jobs.filters == []


def test_an_unknown_job_is_openais_404(gateway: Gateway) -> None:
    jobs = gateway.client.fine_tuning.jobs
    for call in (jobs.retrieve, jobs.cancel, jobs.list_events, jobs.checkpoints.list):
        with pytest.raises(openai.NotFoundError) as raised:
            call("123")
        assert raised.value.body == {
            "message": "Could not find fine tune: 123",
            "type": "invalid_request_error",
            "param": "fine_tune_id",
            "code": "fine_tune_not_found",
        }


def hyper(**values: Any) -> dict[str, Any]:
    return {**REQUEST, "hyperparameters": values}


def method(**values: Any) -> dict[str, Any]:
    return {**REQUEST, "method": values}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "model", "missing_required_parameter"),
        ({"model": "m"}, "training_file", "missing_required_parameter"),
        ({**REQUEST, "model": 3}, "model", "invalid_type"),
        ({**REQUEST, "model": ""}, "model", "empty_string"),
        ({**REQUEST, "model": None}, "model", "invalid_type"),
        ({**REQUEST, "epochs": 3}, "epochs", "unknown_parameter"),
        ({**REQUEST, "validation_file": ["file-1"]}, "validation_file", "invalid_type"),
        ({**REQUEST, "suffix": ""}, "suffix", "empty_string"),
        ({**REQUEST, "suffix": "a:b"}, "suffix", "invalid_value"),
        ({**REQUEST, "suffix": "ä"}, "suffix", "invalid_value"),
        ({**REQUEST, "suffix": "a\n"}, "suffix", "invalid_value"),
        ({**REQUEST, "suffix": "a" * 65}, "suffix", "string_above_max_length"),
        ({**REQUEST, "seed": -1}, "seed", "integer_below_min_value"),
        ({**REQUEST, "seed": 2**31}, "seed", "integer_above_max_value"),
        ({**REQUEST, "seed": "7"}, "seed", "invalid_type"),
        ({**REQUEST, "seed": 7.0}, "seed", "invalid_type"),
        ({**REQUEST, "seed": True}, "seed", "invalid_type"),
        ({**REQUEST, "metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ({**REQUEST, "metadata": {"a": "x" * 513}}, "metadata.a", "string_above_max_length"),
        ({**REQUEST, "metadata": {"a" * 65: "x"}}, "metadata." + "a" * 65, "string_above_max_length"),
        ({**REQUEST, "metadata": {str(n): "x" for n in range(17)}}, "metadata", "object_above_max_properties"),
        ({**REQUEST, "metadata": []}, "metadata", "invalid_type"),
        (hyper(n_epochs=0), "hyperparameters.n_epochs", "integer_below_min_value"),
        (hyper(n_epochs=51), "hyperparameters.n_epochs", "integer_above_max_value"),
        (hyper(n_epochs="3"), "hyperparameters.n_epochs", "invalid_type"),
        (hyper(n_epochs="AUTO"), "hyperparameters.n_epochs", "invalid_type"),
        (hyper(n_epochs=-1), "hyperparameters.n_epochs", "integer_below_min_value"),
        (hyper(batch_size=257), "hyperparameters.batch_size", "integer_above_max_value"),
        (hyper(learning_rate_multiplier=0), "hyperparameters.learning_rate_multiplier", "integer_below_min_value"),
        (hyper(learning_rate_multiplier=-0.5), "hyperparameters.learning_rate_multiplier", "decimal_below_min_value"),
        (hyper(learning_rate_multiplier=1e999), "hyperparameters.learning_rate_multiplier", None),
        (hyper(beta=0.1), "hyperparameters.beta", "unknown_parameter"),
        (method(), "method.type", "missing_required_parameter"),
        (method(type="sft"), "method.type", "invalid_value"),
        (
            method(type="dpo", dpo={"hyperparameters": {"beta": 3}}),
            "method.dpo.hyperparameters.beta",
            "integer_above_max_value",
        ),
        (method(type="reinforcement"), "method.reinforcement", "missing_required_parameter"),
        (
            method(type="supervised", supervised={"hyperparameters": {"n_epochs": "x"}}),
            "method.supervised.hyperparameters.n_epochs",
            "invalid_type",
        ),
        (
            {**hyper(n_epochs=2), **method(type="supervised", supervised={"hyperparameters": {"n_epochs": 3}})}
            | {"hyperparameters": {"n_epochs": 2}},
            "hyperparameters.n_epochs",
            "invalid_value",
        ),
        ({**REQUEST, "integrations": [{"type": "wandb", "wandb": {}}]}, "integrations.0.wandb.project", None),
        ({**REQUEST, "tuneway": {"budget": 3}}, "tuneway.budget", "unknown_parameter"),
        ({**REQUEST, "tuneway": "local"}, "tuneway", "invalid_type"),
        ({**REQUEST, "tuneway": {"learning_rate": 0}}, "tuneway.learning_rate", "integer_below_min_value"),
        ({**REQUEST, "tuneway": {"learning_rate": "0.1"}}, "tuneway.learning_rate", "invalid_type"),
        ({**REQUEST, "tuneway": {"learning_rate": 1e999}}, "tuneway.learning_rate", None),
        ({**REQUEST, "tuneway": {"options": []}}, "tuneway.options", "invalid_type"),
        ({**REQUEST, "tuneway": {"options": {"a": 1e999}}}, "tuneway.options.a", "invalid_value"),
        ({**REQUEST, "tuneway": {"options": {"a": "x" * 1001}}}, "tuneway.options.a", "invalid_value"),
        (
            {**REQUEST, "tuneway": {"options": {str(n): n for n in range(33)}}},
            "tuneway.options",
            "object_above_max_properties",
        ),
        (
            method(type="reinforcement", reinforcement={"grader": {"a": [1e999]}}),
            "method.reinforcement",
            "invalid_value",
        ),
        (method(type="reinforcement", reinforcement={}), "method.reinforcement.grader", "missing_required_parameter"),
    ],
)
def test_a_wrong_field_is_named(gateway: Gateway, body: Any, param: str, code: str | None) -> None:
    error = refused(gateway, json.dumps(body).replace("Infinity", "1e999").encode())
    assert error["param"] == param
    assert param.split(".")[-1] in error["message"] or code == "invalid_value"
    if code is not None:
        assert error["code"] == code


def test_openais_words(gateway: Gateway) -> None:
    assert refused(gateway, {})["message"] == "Missing required parameter: 'model'."
    assert refused(gateway, method(type="sft"))["message"] == (
        "Invalid value: 'sft'. Supported values are: 'supervised', 'dpo' or 'reinforcement'."
    )
    assert refused(gateway, {**REQUEST, "seed": -42})["message"] == (
        "Invalid 'seed': integer below minimum value. Expected a value >= 0, but got -42 instead."
    )
    assert refused(gateway, {**REQUEST, "model": []})["message"] == (
        "Invalid type for 'model': expected a string, but got an array instead."
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid UTF-8"),
        (b'{"model": "m", "seed": NaN}', "no NaN"),
        (b'{"model": "m", "seed": -Infinity}', "no -Infinity"),
        (b'{"model": "m", "model": "n"}', "'model' more than once"),
        (b'{"model": "m", "metadata": {"a": "1", "\\u0061": "2"}}', "'a' more than once"),
        (b"[" * 10_000 + b"]" * 10_000, "nested too deeply"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested too deeply"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "nested too deeply"),
        (b"[]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b'{"model": "\\ud800"}', "surrogate"),
        (b'{"model": "a\\u0000b"}', "NUL"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
    ids=range(15),
)
def test_a_body_that_is_no_good_json(gateway: Gateway, body: bytes, said: str) -> None:
    assert said in refused(gateway, body)["message"]


def test_a_body_that_is_too_large(gateway: Gateway) -> None:
    body = b" " * (1024 * 1024 + 1)
    assert "1048576 bytes" in refused(gateway, body, 413)["message"]
    url = f"{gateway.url}/v1/fine_tuning/jobs"
    chunked = gateway.http.post(url, content=iter([body]), headers={"content-type": "application/json"})
    assert chunked.status_code == 413


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "text/json"])
def test_a_body_of_another_type(gateway: Gateway, kind: str) -> None:
    response = gateway.http.post(
        f"{gateway.url}/v1/fine_tuning/jobs", content=json.dumps(REQUEST), headers={"content-type": kind}
    )
    assert response.status_code == 415
    assert "application/json" in response.json()["error"]["message"]
    assert gateway.jobs.done["create"] == 0


def test_json_with_a_charset_is_json(gateway: Gateway) -> None:
    assert post(gateway, REQUEST, **{"content-type": "Application/JSON; charset=utf-8"}).status_code == 200


def test_the_provider_may_stand_in_a_header(gateway: Gateway) -> None:
    assert post(gateway, REQUEST, **{"x-portkey-provider": "fake"}).status_code == 200
    assert gateway.jobs.requests[0].provider == "fake"
    both = {**REQUEST, "tuneway": {"provider": "local"}}
    assert post(gateway, both, **{"x-tuneway-provider": "fake"}).json()["error"]["param"] == "tuneway.provider"
    assert gateway.jobs.done["create"] == 1


def test_an_idempotency_key_that_is_too_long(gateway: Gateway) -> None:
    assert post(gateway, REQUEST, **{"idempotency-key": "k" * 256}).status_code == 400
    assert gateway.jobs.done["create"] == 0
