"""The three dialects of the wire."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.conftest import Gateway
from tests.contract.fakes import BASE, event, job
from tuneway.types import EventLevel, Hyperparameters, JobStatus

REQUEST: dict[str, Any] = {"model": BASE.name, "training_file": "file-1"}
OPENAI: dict[str, str] = {}
GATEWAY = {"x-portkey-provider": "local"}
AZURE = {"x-tuneway-dialect": "azure"}


@pytest.mark.parametrize(
    ("status", "openai", "gateway_word", "azure"),
    [
        (JobStatus.VALIDATING_FILES, "validating_files", "created", "pending"),
        (JobStatus.QUEUED, "queued", "created", "pending"),
        (JobStatus.RUNNING, "running", "running", "running"),
        (JobStatus.PAUSED, "queued", "running", "pending"),
        (JobStatus.SUCCEEDED, "succeeded", "succeeded", "succeeded"),
        (JobStatus.FAILED, "failed", "failed", "failed"),
        (JobStatus.CANCELLED, "cancelled", "cancelled", "cancelled"),
    ],
)
def test_status_words(gateway: Gateway, status: JobStatus, openai: str, gateway_word: str, azure: str) -> None:
    gateway.jobs.add(job(1, status=status))
    for headers, word in ((OPENAI, openai), (GATEWAY, gateway_word), (AZURE, azure)):
        shown = gateway.http.get(f"{gateway.url}/v1/fine_tuning/jobs/{job(1).id}", headers=headers).json()
        assert (shown["status"], shown["tuneway"]["state"]) == (word, status.value)


@pytest.mark.parametrize(("headers", "limit"), [(OPENAI, 64), (GATEWAY, 40), (AZURE, 40)])
def test_suffix_limits(gateway: Gateway, headers: dict[str, str], limit: int) -> None:
    url = f"{gateway.url}/v1/fine_tuning/jobs"
    assert gateway.http.post(url, json={**REQUEST, "suffix": "s" * limit}, headers=headers).is_success
    longer = gateway.http.post(url, json={**REQUEST, "suffix": "s" * (limit + 1)}, headers=headers)
    assert (longer.status_code, longer.json()["error"]["param"]) == (400, "suffix")
    assert f"maximum length {limit}" in longer.json()["error"]["message"]


def test_azure_creates_with_201_and_a_location(gateway: Gateway) -> None:
    created = gateway.http.post(f"{gateway.url}/v1/fine_tuning/jobs", json=REQUEST, headers=AZURE)
    assert (created.status_code, created.headers["location"]) == (201, f"/v1/fine_tuning/jobs/{job(1).id}")
    form: dict[str, Any] = {"data": {"purpose": "fine-tune"}, "files": {"file": ("a.jsonl", b"{}")}}
    stored = gateway.http.post(f"{gateway.url}/v1/files", headers=AZURE, **form)
    assert (stored.status_code, stored.headers["location"]) == (201, f"/v1/files/{stored.json()['id']}")
    assert "location" not in gateway.http.post(f"{gateway.url}/v1/fine_tuning/jobs", json=REQUEST).headers


def test_azure_writes_auto_as_minus_one(gateway: Gateway) -> None:
    asked = {"n_epochs": -1, "batch_size": 4, "learning_rate_multiplier": -1}
    created = gateway.http.post(
        f"{gateway.url}/v1/fine_tuning/jobs", json={**REQUEST, "hyperparameters": asked}, headers=AZURE
    )
    assert created.status_code == 201
    assert gateway.jobs.requests[0].hyperparameters == Hyperparameters("auto", 4, "auto")
    assert created.json()["hyperparameters"] == asked
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": -1}}}
    body = {**REQUEST, "method": method}
    assert gateway.http.post(f"{gateway.url}/v1/fine_tuning/jobs", json=body, headers=AZURE).status_code == 201
    assert gateway.http.post(f"{gateway.url}/v1/fine_tuning/jobs", json=body).status_code == 400


def test_azure_has_its_own_levels_and_codes(gateway: Gateway) -> None:
    gateway.jobs.add(job(1, status=JobStatus.SUCCEEDED))
    gateway.jobs.stored_events = [event(1, EventLevel.WARN)]
    url = f"{gateway.url}/v1/fine_tuning/jobs"
    events = gateway.http.get(f"{url}/{job(1).id}/events", headers=AZURE).json()
    assert events["data"][0]["level"] == "warning"
    for response, code in (
        (gateway.http.get(f"{url}/none", headers=AZURE), "notFound"),
        (gateway.http.post(url, json={}, headers=AZURE), "invalidPayload"),
        (gateway.http.post(f"{url}/{job(1).id}/cancel", headers=AZURE), "unexpectedEntityState"),
    ):
        assert response.json()["error"].keys() == {"message", "type", "param", "code"}
        assert response.json()["error"]["code"] == code


def test_who_speaks_what(gateway: Gateway) -> None:
    gateway.jobs.add(job(1, status=JobStatus.QUEUED))
    url = f"{gateway.url}/v1/fine_tuning/jobs/{job(1).id}"
    for headers, word in (
        ({"x-tuneway-trace": "1"}, "queued"),
        ({"x-portkey-trace-id": "1"}, "created"),
        ({"x-portkey-trace-id": "1", "x-tuneway-dialect": "openai"}, "queued"),
        ({"x-tuneway-dialect": "gateway"}, "created"),
    ):
        assert gateway.http.get(url, headers=headers).json()["status"] == word
    wrong = gateway.http.get(url, headers={"x-tuneway-dialect": "klingon"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "x-tuneway-dialect")


def test_azure_paths_speak_azure(gateway: Gateway) -> None:
    error = gateway.http.get(f"{gateway.url}/openai/v1/none").json()["error"]
    assert error["code"] == "404"
