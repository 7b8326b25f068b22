"""The way out of OpenAI through the public door: a real gateway reads a simulated account, and trains on elsewhere."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.simulators.openai import OpenAISimulator
from tests.wire.conftest import SETTINGS, Gateway, rows

IMPORTS = "/v1/tuneway/imports"
BASE = "gpt-4o-mini-2024-07-18"
WAIT = 60
CSV_HEAD = b"step,train_loss,"

Start = Callable[..., Gateway]


@pytest.fixture
def sim() -> Iterator[OpenAISimulator]:
    with OpenAISimulator() as found:
        yield found


@dataclass
class Account:
    """What somebody has done at OpenAI, with the official SDK, before there was a gateway."""

    sim: OpenAISimulator
    client: openai.OpenAI

    def file(self, name: str = "train.jsonl", count: int = 12) -> str:
        return self.client.files.create(file=(name, rows(count)), purpose="fine-tune").id

    def job(self, file: str, *, finish: bool = True, **more: Any) -> str:
        made = self.client.fine_tuning.jobs.create(model=BASE, training_file=file, **more)
        if finish:
            self.sim.finish_job(made.id)
        return made.id

    def shown(self, job: str) -> dict[str, Any]:
        """The job as OpenAI shows it."""
        wire: dict[str, Any] = self.sim.jobs[job].wire
        return wire


@pytest.fixture
def account(sim: OpenAISimulator) -> Iterator[Account]:
    with openai.OpenAI(base_url=sim.base_url, api_key=sim.key, max_retries=0) as client:
        yield Account(sim, client)


@pytest.fixture
def settings(sim: OpenAISimulator, tmp_path: Path) -> str:
    key = tmp_path / "openai.key"
    key.write_text(sim.key)
    return SETTINGS + (
        f'\n[providers.openai]\nbase_url = "{sim.base_url}"\napi_key = "file:{key}"\npoll_seconds = 0.1\n'
    )


def begun(gateway: Gateway, provider: str = "openai", key: str | None = None) -> dict[str, Any]:
    answer = gateway.http_with(key).post(IMPORTS, json={"provider": provider})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ended(gateway: Gateway, import_id: str, key: str | None = None) -> dict[str, Any]:
    http, deadline = gateway.http_with(key), time.monotonic() + WAIT
    while True:
        found: dict[str, Any] = http.get(f"{IMPORTS}/{import_id}").json()
        if found["state"] != "running":
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


def imported(gateway: Gateway, key: str | None = None) -> dict[str, Any]:
    found = ended(gateway, begun(gateway, key=key)["id"], key)
    assert (found["state"], found["error"]) == ("done", None)
    return found


def job_of(gateway: Gateway, job: str) -> dict[str, Any]:
    found: dict[str, Any] = gateway.http.get(f"/v1/fine_tuning/jobs/{job}").json()
    return found


def listed(gateway: Gateway, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = gateway.http.get(path, params={"limit": 1000}).json()["data"]
    return found


# --------------------------------------------------------------------------------------------------- what is read


def test_everything_comes_under_its_own_id(start: Start, account: Account, settings: str) -> None:
    sim = account.sim
    sim.base64_results = True
    valid = account.file("valid.jsonl", 10)
    first = account.job(account.file(), suffix="mail", seed=7, metadata={"team": "support"}, validation_file=valid)
    second = account.job(account.file("pairs.jsonl"))
    failed = account.job(account.file("few.jsonl", 3), finish=False)
    sim.finish_job(failed)
    running = account.job(account.file("late.jsonl"), finish=False)
    cancelled = account.job(account.file("never.jsonl"), finish=False)
    account.client.fine_tuning.jobs.cancel(cancelled)
    before = len(sim.requests)

    gateway = start(settings)
    found = imported(gateway)

    jobs, files = [first, second, failed, cancelled], len(sim.files)
    assert found["problems"] == []
    assert found["finished_at"] >= found["created_at"]
    assert found["counts"] == {
        "jobs": 4,
        "events": sum(len(sim.jobs[job].events) for job in jobs),
        "checkpoints": sum(len(sim.jobs[job].checkpoints) for job in jobs),
        "files": files,
        "bytes": sum(file.wire["bytes"] for file in sim.files.values()),
        "models": len([name for name in sim.models if name.startswith("ft:")]),
        "skipped": 0,
        "still_running": 1,
    }
    assert {seen.method for seen in sim.requests[before:]} == {"GET"}
    assert sim.leaks == []

    # The official SDK, checking every answer against its models, reads it as it reads OpenAI.
    assert [job.id for job in gateway.client.fine_tuning.jobs.list()] == [cancelled, failed, second, first]
    job, wire = job_of(gateway, first), account.shown(first)
    kept = ("created_at", "finished_at", "fine_tuned_model", "model", "training_file", "validation_file", "seed")
    for name in (*kept, "result_files", "trained_tokens", "user_provided_suffix", "metadata", "status"):
        assert job[name] == wire[name], name
    assert job["hyperparameters"] == wire["hyperparameters"]
    assert (job["tuneway"]["provider"], job["tuneway"]["state"]) == ("openai", "succeeded")
    error = job_of(gateway, failed)["error"]
    assert (error["code"], error["param"]) == ("invalid_n_examples", "training_file")
    assert job_of(gateway, cancelled)["status"] == "cancelled"
    assert gateway.http.get(f"/v1/fine_tuning/jobs/{running}").status_code == 404

    events = listed(gateway, f"/v1/fine_tuning/jobs/{first}/events")
    theirs = account.sim.jobs[first].events[::-1]
    told = ("message", "created_at", "type", "level")
    assert [[event[name] for name in told] for event in events] == [[event[name] for name in told] for event in theirs]
    metrics = next(event for event in events if event["type"] == "metrics")
    assert metrics["data"] == next(event["data"] for event in theirs if event["type"] == "metrics")

    points = listed(gateway, f"/v1/fine_tuning/jobs/{first}/checkpoints")
    shown = ("id", "step_number", "created_at", "fine_tuned_model_checkpoint")
    theirs = sorted(account.sim.jobs[first].checkpoints, key=lambda point: -point["step_number"])
    assert [[point[name] for name in shown] for point in points] == [
        [point[name] for name in shown] for point in theirs
    ]
    assert points[0]["metrics"]["train_loss"] == theirs[0]["metrics"]["train_loss"]

    file = gateway.client.files.retrieve(wire["training_file"])
    assert (file.filename, file.purpose, file.created_at) == (
        "train.jsonl",
        "fine-tune",
        sim.files[file.id].wire["created_at"],
    )
    assert gateway.client.files.content(file.id).read() == rows()
    result = gateway.client.files.content(job["result_files"][0]).read()
    assert result == sim.files[job["result_files"][0]].content
    assert result.startswith(CSV_HEAD)


def test_an_imported_model_answers_until_it_is_deleted_here(start: Start, account: Account, settings: str) -> None:
    job = account.job(account.file())
    model = account.shown(job)["fine_tuned_model"]
    checkpoint = account.sim.jobs[job].checkpoints[0]["fine_tuned_model_checkpoint"]
    gateway = start(settings)
    imported(gateway)

    messages: Any = [{"role": "user", "content": "hello"}]
    for name in (model, checkpoint):
        answer = gateway.client.chat.completions.create(model=name, messages=messages)
        assert (answer.choices[0].message.content or "").startswith("tuned:")
        assert answer.model == name
        assert json.loads(account.sim.asked("chat")[-1].body)["model"] == name
    shown = gateway.http.get(f"/v1/models/{model}").json()["tuneway"]
    assert (shown["job"], shown["base"], shown["imported"]) == (job, BASE, True)

    assert gateway.client.models.delete(model).deleted
    assert gateway.http.get(f"/v1/models/{model}").status_code == 404
    assert model in account.sim.models
    assert account.sim.asked("delete_model") == []
    again = imported(gateway)
    assert again["counts"]["models"] == 0
    assert gateway.http.get(f"/v1/models/{model}").status_code == 404


def test_a_second_import_doubles_nothing_and_brings_what_ended_since(
    start: Start, account: Account, settings: str
) -> None:
    done = account.job(account.file())
    account.sim.stop_at = "running"
    late = account.job(account.file("late.jsonl"), finish=False)
    for _ in range(4):
        account.client.fine_tuning.jobs.retrieve(late)  # it runs, and has published a checkpoint
    ghost = "ft:gpt-4o-mini-2024-07-18:acme:other-project:AbCdEfGh"
    account.sim.models[ghost] = {"id": ghost, "object": "model", "created": 5, "owned_by": "org-acme"}
    gateway = start(settings)
    first = imported(gateway)
    assert first["counts"]["still_running"] == 1
    shown = gateway.http.get(f"/v1/models/{ghost}").json()["tuneway"]
    assert (shown["job"], shown["base"]) == (None, BASE)

    asked = len(account.sim.asked("events")), len(account.sim.asked("file_content"))
    same = imported(gateway)
    assert (len(account.sim.asked("events")), len(account.sim.asked("file_content"))) == asked
    assert {name: number for name, number in same["counts"].items() if number} == {"skipped": 4, "still_running": 1}

    account.sim.finish_job(late)
    third = imported(gateway)
    assert third["counts"]["jobs"] == 1
    assert third["counts"]["files"] == 1
    assert third["counts"]["still_running"] == 0
    assert [job["id"] for job in listed(gateway, "/v1/fine_tuning/jobs")] == [late, done]
    checkpoint = account.sim.jobs[late].checkpoints[0]["fine_tuned_model_checkpoint"]
    assert gateway.http.get(f"/v1/models/{checkpoint}").json()["tuneway"]["job"] == late
    assert len(listed(gateway, "/v1/files")) == len(account.sim.files)
    imports = gateway.http.get(IMPORTS).json()
    assert [found["id"] for found in imports["data"]] == [third["id"], same["id"], first["id"]]
    page = gateway.http.get(IMPORTS, params={"limit": 1, "after": third["id"]}).json()
    assert ([found["id"] for found in page["data"]], page["has_more"]) == ([same["id"]], True)


def test_many_jobs_and_events_come_page_by_page(start: Start, account: Account, settings: str) -> None:
    file = account.file()
    jobs = [account.job(file) for _ in range(105)]
    long = account.job(account.file("long.jsonl", 25), method=_supervised(n_epochs=4, batch_size=1))
    gateway = start(settings)
    found = imported(gateway)
    assert found["counts"]["jobs"] == 106
    shown = [job.id for job in gateway.client.fine_tuning.jobs.list(limit=50)]
    assert shown == [long, *reversed(jobs)]
    events = account.sim.jobs[long].events
    assert len(events) > 100
    told = [event.message for event in gateway.client.fine_tuning.jobs.list_events(long, limit=50)]
    assert told == [event["message"] for event in reversed(events)]


def test_jobs_that_the_gateway_has_at_the_account_are_not_read_back(
    start: Start, account: Account, settings: str
) -> None:
    gateway = start(settings)
    file = gateway.client.files.create(file=("mine.jsonl", rows()), purpose="fine-tune")
    made = gateway.client.fine_tuning.jobs.create(
        model=BASE, training_file=file.id, extra_body={"tuneway": {"provider": "openai"}}
    )
    deadline = time.monotonic() + WAIT
    while gateway.client.fine_tuning.jobs.retrieve(made.id).status != "succeeded":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    models, files = listed(gateway, "/v1/models"), listed(gateway, "/v1/files")
    found = imported(gateway)
    assert found["problems"] == []
    assert {name for name, number in found["counts"].items() if number} == {"skipped"}
    assert [job["id"] for job in listed(gateway, "/v1/fine_tuning/jobs")] == [made.id]
    assert listed(gateway, "/v1/models") == models
    assert listed(gateway, "/v1/files") == files


@pytest.mark.parametrize("kind", ["openai", "openai-compatible"])
def test_a_job_that_the_gateway_is_about_to_find_is_left_to_it(
    start: Start, account: Account, settings: str, kind: str
) -> None:
    """Else its launch would look lost, and be made and paid for twice. The second kind has no metadata to tell by."""
    settings += f'kind = "{kind}"\nsettle_seconds = 0\n'
    elsewhere = account.job(account.file())
    account.shown(elsewhere)["created_at"] -= 3600
    gateway = start(settings)
    file = gateway.client.files.create(file=("mine.jsonl", rows()), purpose="fine-tune")
    account.sim.fault("create_job", "hold_after")
    made = gateway.client.fine_tuning.jobs.create(
        model=BASE, training_file=file.id, extra_body={"tuneway": {"provider": "openai"}}
    )
    account.sim.wait_held("create_job", WAIT)
    os.kill(gateway.process.pid, signal.SIGKILL)
    gateway.process.wait()
    account.sim.release("create_job")
    _, theirs = account.sim.created
    account.sim.finish_job(theirs)

    account.sim.fault("jobs", "hold_before")
    gateway = start(settings)
    account.sim.wait_held("jobs", WAIT)  # the gateway looks for what it launched
    found = imported(gateway)
    assert found["counts"]["jobs"] == 1
    assert [job["id"] for job in listed(gateway, "/v1/fine_tuning/jobs")] == [elsewhere, made.id]
    if kind == "openai-compatible":
        assert f"{theirs} may be a job that this gateway is starting" in " ".join(found["problems"])
    account.sim.release("jobs")
    deadline = time.monotonic() + WAIT
    while gateway.client.fine_tuning.jobs.retrieve(made.id).status != "succeeded":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert account.sim.created == [elsewhere, theirs]
    again = imported(gateway)
    assert (again["problems"], again["counts"]["jobs"], again["counts"]["files"]) == ([], 0, 0)
    assert len(listed(gateway, "/v1/fine_tuning/jobs")) == 2
    assert {name["filename"] for name in listed(gateway, "/v1/files")} == {
        "mine.jsonl",
        "train.jsonl",
        "step_metrics.csv",
    }


# ---------------------------------------------------------------------------------------------------- what goes wrong


def test_a_file_that_is_gone_is_a_problem_until_it_can_be_read(start: Start, account: Account, settings: str) -> None:
    gone, kept = account.file("gone.jsonl"), account.file("kept.jsonl")
    jobs = [account.job(gone), account.job(gone), account.job(kept)]
    lost = account.sim.files.pop(gone)
    gateway = start(settings)
    found = imported(gateway)
    [problem] = found["problems"]
    for word in (gone, jobs[0], "and 1 more", "No such File object", "uploaded"):
        assert word in problem
    assert found["counts"]["jobs"] == 3
    assert job_of(gateway, jobs[0])["training_file"] == gone
    refused = gateway.http.post("/v1/fine_tuning/jobs", json={"model": "fake-1", "training_file": gone})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "training_file")

    account.sim.files[gone] = lost
    again = imported(gateway)
    assert (again["problems"], again["counts"]["files"], again["counts"]["jobs"]) == ([], 1, 0)
    assert gateway.client.files.content(gone).read() == rows()


def test_what_the_vendor_has_lost_is_said(start: Start, account: Account, settings: str) -> None:
    job = account.job(account.file())
    model = account.shown(job)["fine_tuned_model"]
    del account.sim.models[model]
    account.sim.set_status(account.job(account.file("odd.jsonl"), finish=False), "meditating")
    account.sim.fault("file_content", "error_before", status=403)
    gateway = start(settings)
    found = imported(gateway)
    assert found["counts"]["jobs"] == 1
    assert found["counts"]["still_running"] == 1
    told = " ".join(found["problems"])
    assert len(found["problems"]) == 3
    assert f"{model}, the model of {job}, is not at openai any more." in told
    assert "'meditating'" in told
    assert gateway.http.get(f"/v1/models/{model}").status_code == 404


def test_only_the_operator_reads_an_account(start: Start, account: Account, settings: str) -> None:
    gateway = start(settings)
    body = {"name": "other", "project": "other", "scopes": ["read", "tune", "chat", "admin"]}
    key = gateway.http.post("/v1/tuneway/keys", json=body).json()["key"]
    refused = gateway.http_with(key).post(IMPORTS, json={"provider": "openai"})
    assert refused.status_code == 403
    assert account.sim.requests == []


def test_a_rate_limit_is_waited_for(start: Start, account: Account, settings: str) -> None:
    account.job(account.file())
    gateway = start(settings)
    # Nine seconds are more than the line itself waits; downloads it never sends twice by itself.
    account.sim.fault("jobs", "error_before", status=429, retry_after="9")
    account.sim.fault("file_content", "error_before", status=429, retry_after="1")
    since = time.monotonic()
    found = imported(gateway)
    assert time.monotonic() - since >= 10
    assert (found["problems"], found["counts"]["jobs"], found["counts"]["files"]) == ([], 1, 2)


def test_an_account_that_cannot_be_read_fails_the_import_which_can_be_run_again(
    start: Start, account: Account, settings: str
) -> None:
    account.job(account.file())
    gateway = start(settings)
    account.sim.fault("jobs", "error_before", status=429, retry_after="700")
    found = ended(gateway, begun(gateway)["id"])
    assert found["state"] == "failed"
    assert "could not be read within 10 minutes" in found["error"]
    assert "start the import again" in found["error"]
    account.sim.fault("events", "error_before", status=401)
    refused = ended(gateway, begun(gateway)["id"])
    assert (refused["state"], refused["counts"]["jobs"], refused["counts"]["files"]) == ("failed", 0, 2)
    assert imported(gateway)["counts"]["jobs"] == 1


def test_what_breaks_off_is_asked_for_again(start: Start, account: Account, settings: str) -> None:
    account.job(account.file())
    account.sim.fault("file_content", "cut_during")
    account.sim.fault("jobs", "cut_during")
    account.sim.fault("events", "error_before", status=502)
    gateway = start(settings)
    found = imported(gateway)
    assert (found["problems"], found["counts"]["jobs"]) == ([], 1)
    assert gateway.client.files.content(listed(gateway, "/v1/files")[-1]["id"]).read() == rows()


@pytest.mark.parametrize(("operation", "files", "jobs"), [("file_content", 0, 0), ("checkpoints", 12, 0)])
def test_a_killed_gateway_goes_on_where_it_was(
    start: Start, account: Account, settings: str, operation: str, files: int, jobs: int
) -> None:
    for number in range(6):
        account.job(account.file(f"{number}.jsonl"))
    gateway = start(settings)
    account.sim.fault(operation, "hold_before", times=100)
    started = begun(gateway)
    account.sim.wait_held(operation, count=4)
    middle = gateway.http.get(f"{IMPORTS}/{started['id']}").json()
    assert (middle["state"], middle["counts"]["files"], middle["counts"]["jobs"]) == ("running", files, jobs)
    assert listed(gateway, "/v1/fine_tuning/jobs") == []
    assert begun(gateway)["id"] == started["id"]
    os.kill(gateway.process.pid, signal.SIGKILL)
    gateway.process.wait()
    account.sim.release(operation)

    gateway = start(settings)
    found = ended(gateway, started["id"])
    assert (found["state"], found["problems"]) == ("done", [])
    assert (found["counts"]["jobs"], found["counts"]["files"], found["counts"]["skipped"]) == (6, 12, 0)
    assert len(listed(gateway, "/v1/fine_tuning/jobs")) == 6
    assert len(listed(gateway, "/v1/files")) == 12
    assert len(list((gateway.data / "data" / "blobs" / "incoming").iterdir())) == 0
    for job in listed(gateway, "/v1/fine_tuning/jobs"):
        told = listed(gateway, f"/v1/fine_tuning/jobs/{job['id']}/events")
        assert len(told) == len(account.sim.jobs[job["id"]].events)


def test_a_stop_leaves_the_import_for_the_next_start(start: Start, account: Account, settings: str) -> None:
    account.job(account.file())
    gateway = start(settings)
    account.sim.fault("events", "hold_before", times=10)
    started = begun(gateway)
    account.sim.wait_held("events")
    gateway.process.send_signal(signal.SIGTERM)
    assert gateway.process.wait(WAIT) == 0
    account.sim.release("events")
    gateway = start(SETTINGS)
    gone = ended(gateway, started["id"])
    assert gone["state"] == "failed"
    assert "No such provider: openai" in gone["error"]
    gateway.process.send_signal(signal.SIGTERM)
    gateway.process.wait(WAIT)
    assert imported(start(settings))["counts"]["jobs"] == 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "provider"),
        ({"provider": ""}, "provider"),
        ({"provider": "nowhere"}, "provider"),
        ({"provider": "fake"}, "provider"),
        ({"provider": "openai", "since": 1}, "since"),
    ],
)
def test_refused(gateway: Gateway, body: dict[str, Any], param: str) -> None:
    answer = gateway.http.post(IMPORTS, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    unknown = gateway.http.get(f"{IMPORTS}/import_none")
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "import_id")
    after = gateway.http.get(IMPORTS, params={"after": "import_none"})
    assert (after.status_code, after.json()["error"]["param"]) == (400, "after")


def test_only_an_admin_imports(start: Start, settings: str) -> None:
    gateway = start(settings)
    key = gateway.http.post("/v1/tuneway/keys", json={"name": "all but one", "scopes": ["read", "tune", "chat"]})
    http = gateway.http_with(key.json()["key"])
    assert http.post(IMPORTS, json={"provider": "openai"}).status_code == 403
    assert http.get(IMPORTS).status_code == 403


def _supervised(**hyperparameters: Any) -> Any:
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


# -------------------------------------------------------------------------------------------------- the command line


def command(gateway: Gateway, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TUNEWAY_", "OPENAI_"))}
    return subprocess.run(
        [sys.executable, "-m", "tuneway", *arguments],
        env={**kept, "TUNEWAY_URL": f"{gateway.url}/v1"},
        capture_output=True,
        text=True,
        timeout=WAIT,
    )


def test_the_whole_way_out(start: Start, account: Account, settings: str) -> None:
    """Import, train elsewhere, and code that names the old model gets the new one."""
    method = _supervised(n_epochs=2, batch_size=3, learning_rate_multiplier=1.5)
    valid = account.file("valid.jsonl", 10)
    old = account.job(account.file(), validation_file=valid, suffix="mail", seed=9, metadata={"a": "b"}, method=method)
    model = account.shown(old)["fine_tuned_model"]
    gateway = start(settings)

    done = command(gateway, "import", "openai")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^jobs +1$", done.stdout, re.MULTILINE)
    assert re.search(r"^files +3$", done.stdout, re.MULTILINE)
    assert f"Next: tuneway retrain {old} --provider local" in done.stdout
    assert "import_" in done.stderr

    done = command(gateway, "retrain", old, "--provider", "fake", "--model", "fake-1")
    assert done.returncode == 0, done.stderr
    new = gateway.client.fine_tuning.jobs.list(limit=1).data[0]
    asked = (new.training_file, new.validation_file, new.seed, new.metadata)
    assert asked == (account.shown(old)["training_file"], valid, 9, {"a": "b"})
    assert new.hyperparameters.n_epochs == 2
    assert new.hyperparameters.batch_size == 3
    assert new.hyperparameters.learning_rate_multiplier != 1.5
    assert ":mail:" in (new.fine_tuned_model or "")
    for line in (
        "carried over      n_epochs = 2",
        "carried over      seed = 9",
        "not carried over  learning_rate_mult",
    ):
        assert line in done.stderr
    assert f"`tuneway models delete {model}`, which leaves it at openai as it is" in done.stderr
    lines = tomllib.loads(done.stdout)
    assert lines == {"model_map": {BASE: "fake:fake-1", model: new.fine_tuned_model}}

    gateway.process.send_signal(signal.SIGTERM)
    gateway.process.wait(WAIT)
    gateway = start(settings + done.stdout)
    messages: Any = [{"role": "user", "content": "hello"}]

    def answered_by(name: str) -> str:
        return gateway.client.chat.completions.create(model=name, messages=messages).model

    assert answered_by(model) == model
    assert len(account.sim.asked("chat")) == 1
    assert command(gateway, "models", "delete", model).returncode == 0
    assert answered_by(model) == new.fine_tuned_model
    assert answered_by(BASE) == "fake-1"
    assert len(account.sim.asked("chat")) == 1
    again = gateway.client.fine_tuning.jobs.create(model=BASE, training_file=new.training_file)
    assert again.model == "fake-1"


def test_import_as_one_document(start: Start, account: Account, settings: str) -> None:
    account.job(account.file("gone.jsonl"))
    account.sim.files.popitem()
    gateway = start(settings)
    account.sim.fault("jobs", "hold_before")
    begun = json.loads(command(gateway, "import", "openai", "--no-wait", "--json").stdout)
    assert (begun["object"], begun["state"]) == ("tuneway.import", "running")
    account.sim.wait_held("jobs")
    account.sim.release("jobs")
    done = command(gateway, "import", "openai", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["state"]) == (0, "done")
    shown = command(gateway, "import", "openai")
    assert "Problems:\n  file-" in shown.stdout
    refused = command(gateway, "import", "openai", "--provider", "nowhere", "--json")
    assert (refused.returncode, json.loads(refused.stdout)["error"]["param"]) == (1, "provider")
    account.sim.fault("jobs", "error_before", status=401)
    failed = command(gateway, "import", "openai")
    assert failed.returncode == 1
    assert "openai could not be read" in failed.stderr


def test_retrain_says_what_it_needs(start: Start, account: Account, settings: str, tmp_path: Path) -> None:
    gone = account.file("gone.jsonl")
    first = account.job(gone)
    second = account.client.fine_tuning.jobs.create(model=account.shown(first)["fine_tuned_model"], training_file=gone)
    account.sim.finish_job(second.id)
    del account.sim.files[gone]
    gateway = start(settings)
    imported(gateway)
    lost = command(gateway, "retrain", first, "--provider", "fake", "--model", "fake-1")
    assert lost.returncode == 1
    assert "--training-file" in lost.stderr
    data = tmp_path / "again.jsonl"
    data.write_bytes(rows())
    unknown = command(gateway, "retrain", first, "--provider", "fake", "--training-file", str(data), "--json")
    assert unknown.returncode == 1
    assert "fake-1" in json.loads(unknown.stdout)["error"]["message"]
    more = ("--provider", "fake", "--training-file", str(data), "--no-watch", "--json")
    tuned = command(gateway, "retrain", second.id, *more)
    assert tuned.returncode == 1
    assert "--model" in tuned.stderr
    done = json.loads(command(gateway, "retrain", first, "--model", "fake-1", *more).stdout)
    assert done["job"]["model"] == "fake-1"
    assert done["carried_over"]["n_epochs"] == account.shown(first)["hyperparameters"]["n_epochs"]
    assert "learning_rate_multiplier" in done["not_carried_over"]
    assert done["model_map"] == {BASE: "fake:fake-1", account.shown(first)["fine_tuned_model"]: None}
    other = json.loads(command(gateway, "retrain", first, "--provider", "openai", *more[2:]).stdout)
    rate = account.shown(first)["hyperparameters"]["learning_rate_multiplier"]
    assert other["carried_over"]["learning_rate_multiplier"] == rate
    assert BASE not in other["model_map"]


@pytest.mark.parametrize(
    ("method", "left"),
    [
        ({"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3}}}, {"beta": 0.3}),
        (
            {
                "type": "reinforcement",
                "reinforcement": {
                    "grader": {
                        "type": "string_check",
                        "name": "same",
                        "operation": "eq",
                        "input": "{{sample.output_text}}",
                        "reference": "ho",
                    }
                },
            },
            {},
        ),
    ],
)
def test_other_methods_come_whole(
    start: Start, account: Account, settings: str, method: Any, left: dict[str, Any]
) -> None:
    kind = method["type"]
    pair = {"input": {"messages": [{"role": "user", "content": "hi"}]}}
    pair |= {f"{which}_output": [{"role": "assistant", "content": which}] for which in ("preferred", "non_preferred")}
    content = rows() if kind == "reinforcement" else (json.dumps(pair) + "\n").encode() * 12
    file = account.client.files.create(file=("pairs.jsonl", content), purpose="fine-tune").id
    model = "o4-mini-2025-04-16" if kind == "reinforcement" else BASE
    made = account.client.fine_tuning.jobs.create(model=model, training_file=file, method=method)
    account.sim.finish_job(made.id)
    gateway = start(settings)
    assert imported(gateway)["counts"]["jobs"] == 1
    job, theirs = job_of(gateway, made.id), account.shown(made.id)["method"][kind]
    assert job["method"]["type"] == kind
    assert job["method"][kind] == theirs
    assert {**job["hyperparameters"], **left} == job["hyperparameters"]
    gateway.client.fine_tuning.jobs.retrieve(made.id)
