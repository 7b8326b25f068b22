"""Relays to Azure OpenAI: by AzureOpenAI in its constructions and by OpenAI, in Azure's words and in others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest

from tests.simulators.azure import AzureSimulator
from tests.simulators.openai import OpenAISimulator
from tests.simulators.sdk import HI, ROWS, upload
from tests.wire.conftest import Gateway
from tests.wire.relays import heads

BASE = "gpt-4o-mini-2024-07-18"
STABLE, MODERN = "2024-10-21", "2025-04-01-preview"
JOBS = "/fine_tuning/jobs"
Connect = Callable[..., openai.OpenAI]


@pytest.fixture
def sim() -> Iterator[AzureSimulator]:
    with AzureSimulator() as sim:
        wanted = {"model": {"format": "OpenAI", "name": BASE, "version": "1"}, "provisioningState": "Succeeded"}
        sim.deployments["dep"] = {"name": "dep", "properties": wanted}
        yield sim
    assert sim.leaks == []


@pytest.fixture
def connect(gateway: Gateway, sim: AzureSimulator) -> Iterator[Connect]:
    """Makes a client, of AzureOpenAI where it is given a version, with the key where nothing else is given."""
    with ExitStack() as stack:

        def connect(version: str | None = None, dialect: str = "openai", **more: Any) -> openai.OpenAI:
            headers = heads(sim.url, "azure-openai") | more.pop("headers", {})
            if dialect:
                headers["x-tuneway-dialect"] = dialect
            given: dict[str, Any] = {"default_headers": headers, "max_retries": 0} | more
            given["_strict_response_validation"] = dialect == "openai"
            client: openai.OpenAI
            if "azure_ad_token" not in more:
                given.setdefault("api_key", sim.key)
            if version is None:
                client = openai.OpenAI(**given)
            elif "base_url" in more:
                client = openai.AzureOpenAI(api_version=version, **given)
            else:
                client = openai.AzureOpenAI(api_version=version, azure_endpoint=gateway.url, **given)
            return stack.enter_context(client)

        yield connect


@pytest.fixture(
    params=[
        pytest.param({"version": STABLE}, id="endpoint"),
        pytest.param({"version": MODERN}, id="endpoint, modern"),
        pytest.param({"version": STABLE, "azure_deployment": "dep"}, id="deployment"),
        pytest.param({"version": STABLE, "base_url": "/openai/v1"}, id="AzureOpenAI at v1"),
        pytest.param({"version": STABLE, "azure_ad_token": "entra-token"}, id="token"),
        pytest.param({"base_url": "/openai/v1", "api_key": "entra-token"}, id="OpenAI at v1, token"),
        pytest.param({"base_url": "/v1"}, id="OpenAI"),
        pytest.param(
            {"base_url": "/v1", "headers": {"x-portkey-azure-api-version": "v1"}}, id="OpenAI, v1 by a header"
        ),
    ]
)
def construction(gateway: Gateway, request: pytest.FixtureRequest) -> dict[str, Any]:
    found = dict(request.param)
    if "base_url" in found:
        found["base_url"] = gateway.url + found["base_url"]
    return found


def processed(client: openai.OpenAI, content: bytes = ROWS) -> str:
    file = upload(client, content)
    assert [client.files.retrieve(file).status for _ in range(2)] == ["uploaded", "processed"]
    return file


def create(client: openai.OpenAI, **more: Any) -> Any:
    return client.fine_tuning.jobs.create(**{"model": BASE, "training_file": processed(client), **more})


def test_the_whole_way(connect: Connect, construction: dict[str, Any], sim: AzureSimulator) -> None:
    """With every answer checked against the models of the SDK, which has one enum of states for all."""
    client = connect(**construction)
    file = processed(client)
    assert [found.id for found in client.files.list(limit=1, purpose="fine-tune")] == [file]
    assert client.files.content(file).read() == ROWS
    job = client.fine_tuning.jobs.create(
        model=BASE, training_file=file, suffix="mine", seed=7, hyperparameters={"n_epochs": "auto", "batch_size": 2}
    )
    assert (job.status, job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == ("queued", "auto", 2)
    assert sim.jobs[job.id].body["hyperparameters"] == {"batch_size": 2}
    assert [client.fine_tuning.jobs.retrieve(job.id).status for _ in range(2)] == ["running", "succeeded"]
    assert [found.id for found in client.fine_tuning.jobs.list(limit=1)] == [job.id]
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=2))
    assert (events[0].message, events[-1].message[:12]) == ("Job succeeded.", "Job enqueued")
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert all(isinstance(each.metrics.train_loss, float) for each in checkpoints)
    tuned = client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
    assert tuned is not None
    assert client.models.retrieve(tuned).id == tuned
    assert tuned in [model.id for model in client.models.list()]
    answer = client.chat.completions.create(model="dep", messages=HI)
    assert answer.choices[0].message.content == "base:grüß ☂"
    assert client.files.delete(file).deleted
    assert {seen.bearer or seen.headers.get("api-key") for seen in sim.requests} <= {sim.key, sim.entra_token}


@pytest.mark.parametrize(
    ("construction", "path", "version"),
    [
        ({"version": STABLE}, "/openai", STABLE),
        ({"version": MODERN}, "/openai", MODERN),
        ({"version": STABLE, "headers": {"x-tuneway-azure-api-version": MODERN}}, "/openai", MODERN),
        ({"version": STABLE, "base_url": "/openai/v1"}, "/openai/v1", None),
        ({"version": "preview", "base_url": "/openai/v1"}, "/openai/v1", "preview"),
        ({"base_url": "/openai/v1"}, "/openai/v1", None),
        ({"base_url": "/v1"}, "/openai", STABLE),
        ({"base_url": "/v1", "headers": {"x-portkey-azure-api-version": "v1"}}, "/openai/v1", None),
    ],
)
def test_the_version_is_the_callers(
    connect: Connect,
    gateway: Gateway,
    sim: AzureSimulator,
    construction: dict[str, Any],
    path: str,
    version: str | None,
) -> None:
    if "base_url" in construction:
        construction = construction | {"base_url": gateway.url + construction["base_url"]}
        if "version" not in construction and "openai" in construction["base_url"]:
            construction["api_key"] = sim.entra_token
    connect(**construction, dialect="").models.list()
    assert (sim.requests[0].path, sim.requests[0].query.get("api-version")) == (f"{path}/models", version)


def test_azures_words(connect: Connect, sim: AzureSimulator) -> None:
    client = connect(STABLE, dialect="")
    made = client.files.with_raw_response.create(file=("train.jsonl", ROWS), purpose="fine-tune")
    assert made.status_code == 201
    assert made.headers["location"].endswith(f"/openai/files/{made.parse().id}?api-version={STABLE}")
    for _ in range(2):
        client.files.retrieve(made.parse().id)
    numbers: Any = {"n_epochs": -1, "batch_size": 2}
    created = client.fine_tuning.jobs.with_raw_response.create(
        model=BASE, training_file=made.parse().id, hyperparameters=numbers
    )
    job = created.parse()
    assert created.status_code == 201
    assert created.headers["location"].endswith(f"/openai/fine_tuning/jobs/{job.id}?api-version={STABLE}")
    assert not created.headers["location"].startswith("http")
    assert (str(job.status), job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == ("pending", -1, 2)
    assert sim.jobs[job.id].body["hyperparameters"] == {"batch_size": 2}
    sim.add_event(job.id, "slow", level="warn")
    assert str(client.fine_tuning.jobs.list_events(job.id).data[0].level) == "warning"
    client.delete(f"{JOBS}/{job.id}", cast_to=type(None))
    assert job.id not in sim.jobs
    with pytest.raises(openai.NotFoundError) as raised:
        client.fine_tuning.jobs.retrieve(job.id)
    assert (raised.value.code, raised.value.type) == ("notFound", "upstream_error")
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model=BASE, training_file="file-1", suffix="s" * 41)
    assert (refused.value.code, refused.value.param) == ("invalidPayload", "suffix")


def test_the_gateways_words(connect: Connect, gateway: Gateway, sim: AzureSimulator) -> None:
    job = create(connect(base_url=f"{gateway.url}/v1", dialect=""))
    assert job.status == "created"
    assert job.tuneway == {"provider": "azure-openai", "provider_status": "pending", "state": "queued"}
    sim.set_status(job.id, "canceling")
    client = connect(base_url=f"{gateway.url}/v1", dialect="")
    found: Any = client.fine_tuning.jobs.retrieve(job.id).to_dict()
    assert (found["status"], found["tuneway"]["state"]) == ("running", "cancelling")


def test_dpo_pause_and_resume_need_a_modern_version(connect: Connect, sim: AzureSimulator) -> None:
    sim.stop_at = "running"
    dpo: Any = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": -1}}}
    old, new = connect(STABLE, dialect=""), connect(MODERN, dialect="")
    with pytest.raises(openai.BadRequestError) as raised:
        create(old, method=dpo)
    assert raised.value.param == "method"
    assert f"'{MODERN}' does" in raised.value.message
    assert "api-version" in raised.value.message
    assert sim.created == []
    pairs = processed(new, b'{"input": {}, "preferred_output": [], "non_preferred_output": []}\n' * 12)
    job = create(new, training_file=pairs, method=dpo, extra_body={"trainingType": "developerTier"})
    assert sim.jobs[job.id].body["trainingType"] == "developerTier"
    assert job.method.dpo.hyperparameters.n_epochs == -1
    new.fine_tuning.jobs.retrieve(job.id)
    assert str(new.fine_tuning.jobs.pause(job.id).status) == "pending"
    assert new.fine_tuning.jobs.retrieve(job.id).to_dict()["tuneway"]["state"] == "paused"  # type: ignore[index]
    new.fine_tuning.jobs.resume(job.id)
    assert new.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    for verb in ("pause", "resume"):
        with pytest.raises(openai.BadRequestError):
            old.post(f"{JOBS}/{job.id}/{verb}", cast_to=object)


def test_a_deployments_name_is_one_segment(gateway: Gateway, sim: AzureSimulator) -> None:
    """However it is named: by the client's path, by its body, or by a header, which weighs more than both."""
    sim.deployments["a:b c"] = sim.deployments["dep"]
    headers = heads(sim.url, "azure-openai") | {"api-key": sim.key}
    body = {"messages": HI}
    path = f"/openai/deployments/a:b%20c/chat/completions?api-version={STABLE}"
    for url, more, extra in (
        (path, {}, {}),
        (path, {"model": "ignored"}, {}),
        ("/v1/chat/completions", {"model": "a:b c"}, {}),
        ("/v1/chat/completions", {"model": "x"}, {"x-portkey-azure-deployment-id": "dep"}),
    ):
        answer = gateway.http.post(url, headers=headers | extra, json=body | more)
        assert answer.status_code == 200, answer.text
        assert answer.content == sim.chat_bytes
    assert [seen.path.split("/")[3] for seen in sim.requests] == ["a:b c", "a:b c", "a:b c", "dep"]
    missing = gateway.http.post(path.replace("a:b%20c", "a%2Fb"), headers=headers, json=body)
    assert missing.status_code == 404


def test_v1_names_the_deployment_in_the_body(gateway: Gateway, sim: AzureSimulator) -> None:
    headers = heads(sim.url, "azure-openai", azure_api_version="v1") | {"api-key": sim.key}
    odd = b'{ "model" : "dep",\n "messages":[{"role":"user","content":"gr\\u00fc\\u00df"}] }'
    sent = headers | {"content-type": "application/json"}
    assert gateway.http.post("/v1/chat/completions", headers=sent, content=odd).status_code == 200
    assert sim.requests[0].body == odd
    sent |= {"x-portkey-azure-deployment-id": "dep"}
    other = odd.replace(b"dep", b"x")
    assert gateway.http.post("/v1/chat/completions", headers=sent, content=other).status_code == 200
    assert json.loads(sim.requests[1].body) == json.loads(odd)


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_comes_back_byte_for_byte(gateway: Gateway, sim: AzureSimulator, stream: bool) -> None:
    headers = heads(sim.url, "azure-openai") | {"authorization": f"Bearer {sim.entra_token}"}
    path = f"/openai/deployments/dep/chat/completions?api-version={STABLE}"
    answer = gateway.http.post(path, headers=headers, json={"messages": HI, "stream": stream})
    assert answer.status_code == 200
    assert answer.content == sim.chat_bytes


def test_an_error_of_azures_is_said_in_the_envelope(gateway: Gateway, sim: AzureSimulator) -> None:
    headers = heads(sim.url, "azure-openai") | {"api-key": "wrong"}
    asked: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", f"/openai/files?api-version={STABLE}", {}),
        ("GET", "/v1/files", {}),
        ("POST", "/v1/chat/completions", {"json": {"model": "dep", "messages": HI}}),
    ]
    for method, path, more in asked:
        answer = gateway.http.request(method, path, headers=headers, **more)
        error = answer.json()["error"]
        assert answer.status_code == 401
        assert error.keys() == {"message", "type", "param", "code"}
        assert (error["type"], error["code"]) == ("upstream_error", "401")
        assert error["message"].startswith("Access denied")


def test_a_retry_finds_its_first_try(gateway: Gateway, sim: AzureSimulator, connect: Connect) -> None:
    client = connect(STABLE, dialect="")
    file = processed(client)
    sim.fault("create_job", "cut_after")
    with pytest.raises(openai.InternalServerError):
        client.fine_tuning.jobs.create(model=BASE, training_file=file, suffix="mine")
    retry = {"x-stainless-retry-count": "1"}
    job = client.fine_tuning.jobs.create(model=BASE, training_file=file, suffix="mine", extra_headers=retry)
    assert sim.created == [job.id]
    other = client.fine_tuning.jobs.create(model=BASE, training_file=file, suffix="yours", extra_headers=retry)
    assert sim.created == [job.id, other.id]


@pytest.mark.parametrize(
    ("headers", "param"),
    [
        *(
            ({"x-portkey-azure-resource-name": name}, "x-portkey-azure-resource-name")
            for name in ("evil.com/", "a.b", "x#", "%2e", "a", "-a", "a@b", "a:1", "a b", "a" * 64, "a?b", "ä")
        ),
        *(
            ({"x-portkey-azure-api-version": version}, "x-portkey-azure-api-version")
            for version in ("v2", "1&a=b", "x")
        ),
        *(({"x-portkey-azure-deployment-id": name}, "x-portkey-azure-deployment-id") for name in ("a/b", "..", "?a")),
        *(({"x-portkey-azure-auth-mode": mode}, "x-portkey-azure-auth-mode") for mode in ("managed", "workload", "x")),
        ({"x-portkey-azure-foundry-url": "https://a@b/"}, "x-portkey-azure-foundry-url"),
        ({"x-tuneway-login-url": "https://evil.example"}, "x-tuneway-login-url"),
        ({"x-tuneway-arm-token": "t"}, "x-tuneway-arm-token"),
        ({}, "x-tuneway-azure-resource-name"),
    ],
)
def test_parts_of_urls_are_checked(gateway: Gateway, headers: dict[str, str], param: str) -> None:
    sent: Any = {"x-portkey-provider": "azure-openai", "api-key": "k"}
    sent |= {name: value.encode() for name, value in headers.items()}
    if headers and "azure-resource-name" not in param and "foundry" not in param:
        sent |= {"x-portkey-azure-resource-name": "acme"}
    answer = gateway.http.get("/v1/models", headers=sent)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_version_that_is_none(gateway: Gateway, sim: AzureSimulator) -> None:
    headers = heads(sim.url, "azure-openai") | {"api-key": sim.key}
    answer = gateway.http.get("/openai/models?api-version=2024", headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "api-version")
    assert gateway.http.get("/openai/models", headers=headers).status_code == 404
    assert sim.requests == []


def test_openai_by_azures_paths(gateway: Gateway) -> None:
    """The path says how the client speaks, the header whom it speaks to."""
    with OpenAISimulator() as other:
        headers = heads(other.base_url)
        with openai.AzureOpenAI(
            azure_endpoint=gateway.url, api_version=STABLE, api_key=other.key, default_headers=headers, max_retries=0
        ) as client:
            job = client.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=upload(client))
            assert str(job.status) == "pending"
            assert job.hyperparameters.n_epochs == -1
            assert client.chat.completions.create(model="gpt-4o-mini", messages=HI).choices[0].message.content
        assert other.leaks == []
        assert {seen.query.get("api-version") for seen in other.requests} == {None}
        assert json.loads(other.asked("chat")[0].body)["model"] == "gpt-4o-mini"
