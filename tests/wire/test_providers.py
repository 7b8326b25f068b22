"""Provider accounts over HTTP: added to a running gateway, checked, removed, and their secrets shown to nobody."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.simulators.azure import AzureSimulator
from tests.simulators.openai import OpenAISimulator
from tests.wire.conftest import SETTINGS, Gateway, rows, running
from tests.wire.test_keys import make_key
from tests.wire.vendors import account, settings, state, succeeded

PROVIDERS = "/v1/tuneway/providers"
SECRET = "sk-simulated-0123456789abcdef"
ENVELOPE = {"message", "type", "param", "code"}

Start = Callable[..., Gateway]


@pytest.fixture
def sim() -> Iterator[OpenAISimulator]:
    with OpenAISimulator(SECRET) as sim:
        yield sim


def add(gateway: Gateway, sim: OpenAISimulator, name: str = "mine", **options: str) -> httpx2.Response:
    quick = {"base_url": f"{sim.url}/v1", "poll_seconds": "0.1", **options}
    asked = {"name": name, "kind": "openai", "options": quick, "secrets": {"api_key": SECRET}}
    return gateway.http.post(PROVIDERS, json=asked)


def create(gateway: Gateway, **more: Any) -> str:
    file = gateway.client.files.create(file=("train.jsonl", rows()), purpose="fine-tune")
    body = {"model": "mine:gpt-4o-mini", "training_file": file.id, **more}
    answer = gateway.http.post("/v1/fine_tuning/jobs", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["error"]
    assert found.keys() == ENVELOPE
    return found


def is_nowhere(secret: str, folder: Path) -> None:
    """In no file below the folder: not in the database or its log, not in the gateway's."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "tuneway.db" for path in files)
    for path in files:
        assert secret.encode() not in path.read_bytes(), path


# --------------------------------------------------------------------------------------------------- add and remove


def test_an_account_from_its_adding_to_its_removal(start: Start, sim: OpenAISimulator, tmp_path: Path) -> None:
    gateway = start()
    assert gateway.http.get(PROVIDERS).json()["data"] == []
    answers = [add(gateway, sim, concurrency="3")]
    assert answers[0].status_code == 200, answers[0].text
    made = answers[0].json()
    assert (made["object"], made["name"], made["kind"]) == ("tuneway.provider", "mine", "openai")
    assert (made["origin"], made["secrets"], made["unended_jobs"]) == ("store", ["api_key"], 0)
    assert made["options"] == {"base_url": f"{sim.url}/v1", "poll_seconds": "0.1", "concurrency": "3"}
    assert made["capabilities"]["methods"] == ["dpo", "reinforcement", "supervised"]
    assert (made["capabilities"]["pause"], made["capabilities"]["learning_rate"]) == (True, False)
    assert made["line"] == {
        "circuit": "closed",
        "under_way": 0,
        "concurrency": 3,
        "timeout_seconds": 120.0,
        "answered": {},
        "failures_in_a_row": 0,
        "resting_until": None,
        "last_error": None,
    }
    answers.append(gateway.http.post(f"{PROVIDERS}/mine/check"))
    assert answers[1].json() == {"ok": True}
    answers += [gateway.http.get(f"{PROVIDERS}/mine"), gateway.http.get(PROVIDERS), gateway.http.get("/metrics")]
    assert answers[2].json()["line"]["answered"] == {"2xx": 1}
    assert [one["name"] for one in answers[3].json()["data"]] == ["mine"]
    # A second one of the name, and one of the gateway's own names.
    for name in ("mine", "fake", "local"):
        refused = add(gateway, sim, name)
        assert (refused.status_code, error_of(refused)["param"]) == (400, "name")
        answers.append(refused)

    sim.stop_at = "running"
    job = create(gateway)
    assert gateway.http.get(f"{PROVIDERS}/mine").json()["unended_jobs"] == 1
    refused = gateway.http.delete(f"{PROVIDERS}/mine")
    assert (refused.status_code, error_of(refused)["code"]) == (400, "conflict")
    assert "1 job" in error_of(refused)["message"]

    gateway.process.kill()
    gateway.process.wait()
    again = start()
    assert [one["name"] for one in again.http.get(PROVIDERS).json()["data"]] == ["mine"]
    assert again.http.post(f"{PROVIDERS}/mine/check").json() == {"ok": True}
    sim.stop_at = None
    succeeded(again, job)
    assert state(again, job)["provider_job_id"] == sim.created[0]
    assert sim.created == [sim.created[0]]
    answers += [refused, again.http.get(f"/v1/fine_tuning/jobs/{job}/events?limit=100"), again.http.get("/v1/models")]
    removed = again.http.delete(f"{PROVIDERS}/mine")
    assert removed.json() == {"id": "mine", "object": "tuneway.provider", "deleted": True}
    assert again.http.get(f"{PROVIDERS}/mine").status_code == 404
    assert error_of(again.http.post(f"{PROVIDERS}/mine/check"))["param"] == "provider"
    # Its bases are gone; what was tuned there is still known, and says whom it would need.
    models = {model["id"]: model["tuneway"] for model in again.http.get("/v1/models").json()["data"]}
    tuned = again.client.fine_tuning.jobs.retrieve(job).fine_tuned_model or ""
    assert {name for name, more in models.items() if more["provider"] == "mine" and "base" not in more} == set()
    assert (models[tuned]["base"], models[tuned]["imported"]) == ("gpt-4o-mini-2024-07-18", False)
    assert models[tuned]["upstream_model"] in sim.models
    chat = {"model": tuned, "messages": [{"role": "user", "content": "hi"}]}
    assert error_of(again.http.post("/v1/chat/completions", json=chat))["code"] == "provider_gone"
    assert add(again, sim).status_code == 200
    assert sim.leaks == []
    assert not [answer.text for answer in answers if SECRET in answer.text]
    is_nowhere(SECRET, tmp_path)


def test_an_account_of_the_settings_is_changed_there(start: Start, sim: OpenAISimulator, tmp_path: Path) -> None:
    gateway = start(settings(account("openai", base_url=f"{sim.url}/v1")), secrets={"VENDOR_KEY": SECRET})
    shown = gateway.http.get(f"{PROVIDERS}/openai").json()
    assert (shown["origin"], shown["secrets"], shown["created_at"]) == ("settings", ["api_key"], None)
    assert gateway.http.post(f"{PROVIDERS}/openai/check").json() == {"ok": True}
    refused = gateway.http.delete(f"{PROVIDERS}/openai")
    assert (refused.status_code, error_of(refused)["param"]) == (400, "provider")
    assert "tuneway.toml" in error_of(refused)["message"]
    assert add(gateway, sim, "openai").status_code == 400
    assert add(gateway, sim, "second").status_code == 200  # several accounts of one kind
    is_nowhere(SECRET, tmp_path)


def test_kinds(start: Start) -> None:
    found = start().http.get(f"{PROVIDERS}/kinds").json()
    kinds = {kind["name"]: kind for kind in found["data"]}
    assert {"openai", "azure-openai", "nebius", "bedrock-mantle", "openai-compatible"} <= kinds.keys()
    assert kinds["openai"]["object"] == "tuneway.provider.kind"
    assert kinds["openai"]["secrets"].keys() == {"api_key"}
    assert "base_url" in kinds["openai"]["options"]
    assert kinds["nebius"]["capabilities"]["methods"] == ["supervised"]
    assert kinds["openai-compatible"]["capabilities"] is None
    assert {"running_jobs", "concurrency", "timeout_seconds"} <= found["limits"].keys()


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({}, "name"),
        ({"name": "mine"}, "kind"),
        ({"name": "mine", "kind": SECRET}, "kind"),
        ({"name": SECRET.upper(), "kind": "openai"}, "name"),
        ({"name": "ft", "kind": "openai"}, "name"),
        ({"name": "kinds", "kind": "openai"}, "name"),
        ({"name": "a" * 33, "kind": "openai"}, "name"),
        ({"name": "a/b", "kind": "openai"}, "name"),
        ({"name": "mine\n", "kind": "openai"}, "name"),
        ({"name": "openai"}, "openai.api_key"),
        ({"name": "openai", "options": {"api_key": SECRET}}, "api_key"),
        ({"name": "openai", "options": {"base_url": SECRET}, "secrets": {"api_key": SECRET}}, "openai.base_url"),
        (
            {"name": "openai", "options": {"running_jobs": SECRET}, "secrets": {"api_key": SECRET}},
            "openai.running_jobs",
        ),
        ({"name": "openai", "options": {"concurrency": "0"}, "secrets": {"api_key": SECRET}}, "openai.concurrency"),
        ({"name": "openai", "options": {"colour": SECRET}, "secrets": {"api_key": SECRET}}, "colour"),
        ({"name": "openai", "options": {SECRET: "x"}}, "options"),
        ({"name": "openai", "secrets": {SECRET: "api_key"}}, "secrets"),
        ({"name": "openai", "secrets": {SECRET: 1}}, "secrets"),
        ({"name": "openai", "secrets": {"api_key": ["x", SECRET]}}, "secrets.api_key"),
        ({"name": "openai", "secrets": {"api_key": SECRET + "\n"}}, "openai.api_key"),
        ({"name": "openai", "secrets": {"api_key": SECRET * 1000}}, "secrets.api_key"),
        ({"name": "openai", "secrets": {"api_key": ""}}, "secrets.api_key"),
        ({"name": "openai", "secrets": SECRET}, "secrets"),
        ({"name": "openai", "secrets": [SECRET]}, "secrets"),
        ({"name": "openai", "api_key": SECRET}, "api_key"),
    ],
)
def test_what_is_wrong_is_named_and_not_repeated(gateway: Gateway, asked: dict[str, Any], param: str) -> None:
    refused = gateway.http.post(PROVIDERS, json=asked)
    assert refused.status_code == 400, refused.text
    error = error_of(refused)
    assert error["param"] == param
    text = json.dumps(asked)
    if SECRET in text and asked.get("kind") != SECRET:
        assert SECRET not in refused.text
    assert gateway.http.get(PROVIDERS).json()["data"] == []
    assert SECRET not in gateway.log()


# ------------------------------------------------------------------------------------------------------------- check


def test_a_check_has_the_providers_own_words(start: Start, sim: OpenAISimulator) -> None:
    gateway = start()
    asked = {"name": "openai", "options": {"base_url": f"{sim.url}/v1"}, "secrets": {"api_key": "sk-wrong-0123456789"}}
    assert gateway.http.post(PROVIDERS, json=asked).status_code == 200
    refused = gateway.http.post(f"{PROVIDERS}/openai/check")
    assert refused.status_code == 401
    error = error_of(refused)
    assert (error["type"], error["code"]) == ("upstream_error", "invalid_api_key")
    assert "Incorrect API key provided" in error["message"]
    assert refused.headers["x-request-id"].startswith("req_")
    # A vendor that repeats the whole key: it is taken out.
    body = b'{"error": {"message": "sk-wrong-0123456789 is no key of ours"}}'
    sim.fault("jobs", "answer", status=401, body=body)
    assert error_of(gateway.http.post(f"{PROVIDERS}/openai/check"))["message"] == "*** is no key of ours"
    assert "sk-wrong-0123456789" not in gateway.log()


def test_a_check_of_what_cannot_be_reached(start: Start) -> None:
    gateway = start()
    for name, url, code in (
        ("gone", "http://127.0.0.1:9/v1", "provider_silent"),
        ("forbidden", "http://10.0.0.1/v1", "outbound_refused"),
    ):
        asked = {"name": name, "kind": "openai", "options": {"base_url": url}, "secrets": {"api_key": SECRET}}
        assert gateway.http.post(PROVIDERS, json=asked).status_code == 200
        refused = gateway.http.post(f"{PROVIDERS}/{name}/check")
        assert (refused.status_code, error_of(refused)["code"]) == (502, code)


def test_a_circuit_that_opens_is_seen(start: Start, sim: OpenAISimulator) -> None:
    gateway = start()
    add(gateway, sim)
    assert gateway.http.post(f"{PROVIDERS}/mine/check").status_code == 200
    sim.fault("jobs", "error_before", times=5, status=500)
    while gateway.http.get(f"{PROVIDERS}/mine").json()["line"]["circuit"] == "closed":
        assert gateway.http.post(f"{PROVIDERS}/mine/check").status_code in (500, 503)
    line = gateway.http.get(f"{PROVIDERS}/mine").json()["line"]
    assert (line["circuit"], line["failures_in_a_row"], line["answered"]) == ("open", 5, {"2xx": 1, "5xx": 5})
    assert line["resting_until"] is not None
    assert "server had an error" in line["last_error"]
    resting = gateway.http.post(f"{PROVIDERS}/mine/check")
    assert (resting.status_code, error_of(resting)["code"]) == (503, "provider_resting")
    assert int(resting.headers["retry-after"]) > 0
    metrics = gateway.http.get("/metrics").text.splitlines()
    for shown in (
        'tuneway_provider_circuit{provider="mine",state="open"} 1.0',
        'tuneway_provider_circuit{provider="mine",state="closed"} 0.0',
        'tuneway_provider_requests_total{outcome="5xx",provider="mine"} 5.0',
        'tuneway_provider_requests_total{outcome="2xx",provider="mine"} 1.0',
        'tuneway_provider_under_way{provider="mine"} 0.0',
        'tuneway_provider_concurrency_limit{provider="mine"} 16.0',
        'tuneway_provider_timeout_seconds{provider="mine"} 120.0',
    ):
        assert shown in metrics


# ----------------------------------------------------------------------------------------------------- who may do what


def test_only_the_operators_project_changes_accounts(tmp_path: Path, sim: OpenAISimulator) -> None:
    data = tmp_path / "data"
    everything = [f"--scope={scope}" for scope in ("read", "tune", "chat", "admin", "relay")]
    operator, other = make_key(data, *everything), make_key(data, "--project", "other", *everything)
    reader, tuner = make_key(data, "--project", "other", "--scope", "read"), make_key(data)
    with running(tmp_path, SETTINGS + 'auth = "on"\n') as gateway:
        asked = {"name": "mine", "kind": "openai", "options": {"base_url": f"{sim.url}/v1"}}
        asked["secrets"] = {"api_key": SECRET}
        changes = (("POST", PROVIDERS), ("POST", f"{PROVIDERS}/mine/check"), ("DELETE", f"{PROVIDERS}/mine"))
        for key, said in ((other, "of the project 'default'"), (reader, "needs admin"), (tuner, "needs admin")):
            for method, path in changes:
                body = {"json": asked} if path == PROVIDERS else {}
                refused = gateway.http_with(key).request(method, path, **body)  # type: ignore[arg-type]
                assert (refused.status_code, error_of(refused)["type"]) == (403, "permission_error"), path
                assert said in refused.text
        assert gateway.http_with(operator).post(PROVIDERS, json=asked).status_code == 200
        for key in (operator, other, reader, tuner):
            assert gateway.http_with(key).get(f"{PROVIDERS}/mine").json()["name"] == "mine"
        assert gateway.http_with(operator).post(f"{PROVIDERS}/mine/check").json() == {"ok": True}
        assert gateway.http_with(operator).delete(f"{PROVIDERS}/mine").status_code == 200
        relaying = gateway.http_with(operator).post("/v1/tuneway/keys", json={"scopes": ["relay"]})
        assert relaying.json()["scopes"] == ["relay"]


# -------------------------------------------------------------------------------------------------------- their jobs


def test_a_providers_fields_reach_it_or_are_refused(start: Start, sim: OpenAISimulator) -> None:
    gateway = start()
    add(gateway, sim)
    file = gateway.client.files.create(file=("train.jsonl", rows()), purpose="fine-tune")
    body = {"model": "mine:gpt-4o-mini", "training_file": file.id}
    for extension, param in (
        ({"learning_rate": 1e-4}, "tuneway.learning_rate"),
        ({"options": {"lora_r": 8}}, "tuneway.options.lora_r"),
    ):
        refused = gateway.http.post("/v1/fine_tuning/jobs", json={**body, "tuneway": extension})
        assert (refused.status_code, error_of(refused)["param"]) == (400, param)
    assert sim.created == []
    integrations = [{"type": "wandb", "wandb": {"project": "p"}}]
    made = gateway.http.post("/v1/fine_tuning/jobs", json={**body, "integrations": integrations})
    assert "x-tuneway-ignored" not in made.headers  # it is the provider's to have them
    succeeded(gateway, made.json()["id"])
    assert sim.job_of().body["integrations"] == integrations


def test_a_grader_reaches_the_provider_whole(start: Start, sim: OpenAISimulator) -> None:
    gateway = start()
    add(gateway, sim)
    grader = {"type": "string_check", "name": "g", "operation": "eq", "input": "{{sample.output_text}}"}
    grader["reference"] = "{{item.answer}}"
    own = {"grader": grader, "response_format": {"type": "text"}, "hyperparameters": {"reasoning_effort": "low"}}
    row = {"messages": [{"role": "user", "content": "hi"}], "answer": "ho"}
    data = b"".join(json.dumps(row).encode() + b"\n" for _ in range(12))
    file = gateway.client.files.create(file=("train.jsonl", data), purpose="fine-tune")
    body = {"model": "mine:o4-mini", "training_file": file.id}
    made = gateway.http.post(
        "/v1/fine_tuning/jobs", json={**body, "method": {"type": "reinforcement", "reinforcement": own}}
    )
    assert made.status_code == 200, made.text
    assert made.json()["method"]["reinforcement"]["grader"] == grader
    succeeded(gateway, made.json()["id"])
    sent = sim.job_of().body["method"]["reinforcement"]
    assert (sent["grader"], sent["response_format"]) == (grader, own["response_format"])
    assert sent["hyperparameters"]["reasoning_effort"] == "low"
    shown = gateway.http.get(f"/v1/fine_tuning/jobs/{made.json()['id']}").json()["method"]["reinforcement"]
    assert shown["grader"] == grader
    assert isinstance(shown["hyperparameters"]["n_epochs"], int)


def test_where_azure_trains_is_asked_of_azure_and_ignored_elsewhere(start: Start) -> None:
    with AzureSimulator() as azure:
        options = {"base_url": azure.url, "azure_api_version": "v1", "poll_seconds": 0.1}
        gateway = start(settings(account("azure", kind="azure-openai", **options)), secrets={"VENDOR_KEY": azure.key})
        file = gateway.client.files.create(file=("train.jsonl", rows()), purpose="fine-tune")
        body = {"training_file": file.id, "trainingType": "globalstandard"}
        url = "/openai/v1/fine_tuning/jobs"
        made = gateway.http.post(url, json={**body, "model": "azure:gpt-4o-mini-2024-07-18"})
        assert made.status_code == 201, made.text
        assert "x-tuneway-ignored" not in made.headers
        assert made.json()["tuneway"]["options"] == {"training_type": "globalstandard"}
        succeeded(gateway, made.json()["id"])
        assert azure.job_of().body["trainingType"] == "globalstandard"
        ignored = gateway.http.post(url, json={**body, "model": "fake-1"})
        assert ignored.headers["x-tuneway-ignored"] == "trainingType"
        twice = {**body, "model": "azure:gpt-4o-mini-2024-07-18", "tuneway": {"options": {"training_type": "standard"}}}
        assert error_of(gateway.http.post(url, json=twice))["param"] == "tuneway.options.training_type"
