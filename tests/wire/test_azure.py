"""Azure's forms: the same gateway for `AzureOpenAI(azure_endpoint=…)`, in Azure's words."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.wire.conftest import Gateway, rows

VERSION = "2024-10-21"


@pytest.fixture(
    params=[
        pytest.param({}, id="endpoint"),
        pytest.param({"azure_deployment": "fake-1"}, id="deployment"),
        pytest.param({"base_url": "/openai/v1"}, id="v1"),
    ]
)
def azure(gateway: Gateway, request: pytest.FixtureRequest) -> Iterator[openai.AzureOpenAI]:
    given: dict[str, Any] = dict(request.param)
    if "base_url" in given:
        given["base_url"] = gateway.url + given["base_url"]
    else:
        given["azure_endpoint"] = gateway.url
    with openai.AzureOpenAI(api_version=VERSION, api_key="any", max_retries=0, **given) as client:
        yield client


def test_the_whole_way(azure: openai.AzureOpenAI) -> None:
    file = azure.files.create(file=("train.jsonl", rows()), purpose="fine-tune")
    created = azure.fine_tuning.jobs.with_raw_response.create(
        model="fake-1", training_file=file.id, hyperparameters={"n_epochs": -1, "batch_size": 2}
    )
    job = created.parse()
    assert created.status_code == 201
    assert created.headers["location"].endswith(f"/fine_tuning/jobs/{job.id}?api-version={VERSION}")
    assert created.headers["location"].startswith("/openai/")
    assert str(job.status) == "pending"
    assert job.hyperparameters.n_epochs == -1
    end = time.monotonic() + 60
    while (job := azure.fine_tuning.jobs.retrieve(job.id)).status != "succeeded":
        assert time.monotonic() < end
        time.sleep(0.02)
    assert job.fine_tuned_model is not None
    model = azure.models.retrieve(job.fine_tuned_model)
    assert model.to_dict()["fine_tune"] == job.id
    assert model.to_dict()["capabilities"]["chat_completion"] is True  # type: ignore[index]
    assert {event.level for event in azure.fine_tuning.jobs.list_events(job.id)} <= {"info", "warning", "error"}
    answer = azure.chat.completions.create(
        model=job.fine_tuned_model, messages=[{"role": "user", "content": "one two"}]
    )
    assert answer.choices[0].message.content
    azure.delete(f"/fine_tuning/jobs/{job.id}", cast_to=type(None))
    with pytest.raises(openai.NotFoundError):
        azure.fine_tuning.jobs.retrieve(job.id)


def test_the_path_names_the_model(gateway: Gateway) -> None:
    messages = [{"role": "user", "content": "one two"}]
    for body in ({"messages": messages}, {"model": "gpt-4o", "messages": messages}):
        url = f"/openai/deployments/fake-1/chat/completions?api-version={VERSION}"
        answer = gateway.http.post(url, json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == "fake-1"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/openai/files", 404, "404"),
        ("GET", "/openai/files?api-version=", 404, "404"),
        ("GET", f"/openai/nowhere?api-version={VERSION}", 404, "404"),
        ("GET", f"/openai/fine_tuning/jobs/ftjob-0?api-version={VERSION}", 404, "notFound"),
        ("DELETE", f"/openai/fine_tuning/jobs/ftjob-0?api-version={VERSION}", 204, None),
        ("GET", f"/openai/v1/files?limit=x&api-version={VERSION}", 400, "invalidPayload"),
        ("GET", "/openai/v1/files", 200, None),
    ],
)
def test_azures_words_for_errors(gateway: Gateway, method: str, path: str, status: int, code: str | None) -> None:
    answer = gateway.http.request(method, path)
    assert answer.status_code == status
    if code is not None:
        assert answer.json()["error"]["code"] == code
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_an_unknown_deployment(gateway: Gateway) -> None:
    url = f"/openai/deployments/a%2Fb/chat/completions?api-version={VERSION}"
    answer = gateway.http.post(url, json={"messages": [{"role": "user", "content": "x"}]})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "DeploymentNotFound"
    assert "a/b" in answer.json()["error"]["message"]


def test_a_field_of_azures_own_has_no_effect(gateway: Gateway) -> None:
    """LiteLLM sends it with every job."""
    file = gateway.client.files.create(file=("a.jsonl", rows()), purpose="fine-tune")
    body = {"model": "fake-1", "training_file": file.id, "trainingType": 1}
    made = gateway.http.post(f"/openai/fine_tuning/jobs?api-version={VERSION}", json=body)
    assert made.status_code == 201, made.text
    assert made.headers["x-tuneway-ignored"] == "trainingType"
    assert gateway.http.post("/v1/fine_tuning/jobs", json=body).status_code == 400
