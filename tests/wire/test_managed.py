"""One contract for every provider: a file, a job, its events and checkpoints, and a chat with the tuned model.

The gateway's own API is all that is asked; each vendor is a simulator that refuses what the vendor refuses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.simulators.azure import AzureSimulator
from tests.simulators.base import Simulator
from tests.simulators.fireworks import FireworksSimulator
from tests.simulators.mantle import MantleSimulator
from tests.simulators.nebius import NebiusSimulator
from tests.simulators.openai import OpenAISimulator
from tests.simulators.together import TogetherSimulator
from tests.wire.conftest import Gateway, rows, running
from tests.wire.vendors import account, ended, eventually, messages, settings, state, succeeded

LAMBDA = {"type": "lambda", "lambda": {"function": "arn:aws:lambda:us-west-2:123456789012:function:grade"}}
GRADED = {"type": "reinforcement", "reinforcement": {"grader": LAMBDA}}


def graded_rows() -> bytes:
    row = {"messages": [{"role": "user", "content": "2 + 2?"}], "answer": "4"}
    return b"".join(json.dumps(row).encode() + b"\n" for _ in range(12))


def preferences() -> bytes:
    row = {
        "input": {"messages": [{"role": "user", "content": "hi"}]},
        "preferred_output": [{"role": "assistant", "content": "Hello!"}],
        "non_preferred_output": [{"role": "assistant", "content": "what"}],
    }
    return b"".join(json.dumps(row).encode() + b"\n" for _ in range(12))


@dataclass(frozen=True)
class Case:
    """An account at a vendor, and a job that it takes. `refused` are requests that it must refuse, with the field."""

    name: str
    simulator: Callable[[], Any]
    options: Callable[[Any], dict[str, Any]]
    model: str
    job: Mapping[str, Any] = field(default_factory=dict)
    data: Callable[[], bytes] = rows
    refused: tuple[tuple[Mapping[str, Any], str], ...] = ()
    running: str = "running"
    """The vendor's word for a job that trains."""
    dpo: Callable[[Any], bool] | None = None
    """Whether the vendor's newest job is one of dpo, where it has such jobs."""


def _supervised(**numbers: Any) -> dict[str, Any]:
    return {"method": {"type": "supervised", "supervised": {"hyperparameters": numbers}}}


DPO: Mapping[str, Any] = {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}}

CASES = [
    Case(
        "openai",
        OpenAISimulator,
        lambda sim: {"base_url": f"{sim.url}/v1"},
        "gpt-4o-mini-2024-07-18",
        {"suffix": "mine", "seed": 7, "metadata": {"team": "a"}, **_supervised(n_epochs=2)},
        refused=(({"tuneway": {"learning_rate": 1e-5}}, "tuneway.learning_rate"),),
        dpo=lambda sim: sim.jobs[sim.created[-1]].body["method"]["type"] == "dpo",
    ),
    Case(
        "azure-openai",
        AzureSimulator,
        lambda sim: {
            "base_url": sim.url,
            "arm_url": sim.arm_url,
            "arm_token": "env:ARM_TOKEN",
            "subscription": sim.subscription,
            "resource_group": sim.resource_group,
            "account": sim.account,
        },
        "gpt-4o-mini-2024-07-18",
        {"suffix": "mine", "seed": 7, **_supervised(n_epochs=2)},
        refused=((DPO, "method.type"), ({"metadata": {"a": "b"}}, "metadata")),
    ),
    Case(
        "nebius",
        NebiusSimulator,
        lambda sim: {"base_url": f"{sim.url}/v1"},
        NebiusSimulator.tunable[0],
        {"suffix": "mine", "tuneway": {"learning_rate": 2e-5, "options": {"lora": True, "lora_r": 16}}},
        refused=(
            (_supervised(learning_rate_multiplier=2), "hyperparameters.learning_rate_multiplier"),
            ({"metadata": {"a": "b"}}, "metadata"),
            ({"tuneway": {"options": {"lora_s": 1}}}, "tuneway.options.lora_s"),
            (DPO, "method.type"),
        ),
    ),
    Case(
        "bedrock-mantle",
        MantleSimulator,
        lambda sim: {"base_url": f"{sim.url}/v1"},
        MantleSimulator.tunable[0],
        {"method": GRADED},
        data=graded_rows,
        refused=((_supervised(n_epochs=1), "method.type"),),
    ),
    Case(
        "together",
        TogetherSimulator,
        lambda sim: {"base_url": sim.base_url, "hardware": "1x_nvidia_h100_80gb_sxm"},
        "Qwen/Qwen3-8B",
        {"suffix": "mine", "seed": 7, "tuneway": {"learning_rate": 1e-5}},
        refused=(
            (_supervised(learning_rate_multiplier=2), "method.supervised.hyperparameters.learning_rate_multiplier"),
            ({"metadata": {"a": "b"}}, "metadata"),
        ),
        dpo=lambda sim: sim.jobs[sim.created[-1]]["training_method"]["method"] == "dpo",
    ),
    Case(
        "fireworks",
        FireworksSimulator,
        lambda sim: {
            "base_url": sim.base_url,
            "inference_url": f"{sim.url}/inference/v1",
            "fireworks_account_id": sim.account,
        },
        "accounts/fireworks/models/qwen3-8b",
        {"tuneway": {"learning_rate": 1e-5}},
        refused=(
            (_supervised(learning_rate_multiplier=2), "method.supervised.hyperparameters.learning_rate_multiplier"),
            ({"metadata": {"a": "b"}}, "metadata"),
            ({"seed": 7}, "seed"),
        ),
        running="JOB_STATE_RUNNING",
        dpo=lambda sim: "/dpoJobs/" in sim.created[-1],
    ),
]


@dataclass
class Managed:
    """A gateway with one account, named `vendor`."""

    case: Case
    sim: Any
    gateway: Gateway

    @property
    def client(self) -> openai.OpenAI:
        """Strict, but for a grader that the SDK's types do not know."""
        return self.gateway.client if self.case.job.get("method") != GRADED else self.gateway.lenient

    def file(self, content: bytes) -> str:
        return self.client.files.create(file=("train.jsonl", content), purpose="fine-tune").id

    def create(self, file: str | None = None, **more: Any) -> Any:
        asked = {**self.case.job, **more}
        extra = {"tuneway": {**asked.pop("tuneway", {}), "provider": "vendor"}}
        training = file or self.file(self.case.data())
        return self.client.fine_tuning.jobs.create(
            model=self.case.model, training_file=training, extra_body=extra, **asked
        )


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def managed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Managed]:
    case: Case = request.param
    with ExitStack() as stack:
        sim: Simulator = stack.enter_context(case.simulator())
        data = tmp_path_factory.mktemp(case.name)
        text = settings(account("vendor", kind=case.name, **case.options(sim)))
        secrets = {"VENDOR_KEY": sim.key, "ARM_TOKEN": getattr(sim, "arm_token", "none")}
        gateway = stack.enter_context(running(data, text, secrets=secrets))
        yield Managed(case, sim, gateway)
        assert sim.leaks == []
        for secret in secrets.values():
            assert secret not in gateway.log()


def test_a_job_ends_with_a_model_that_answers(managed: Managed) -> None:
    client = managed.client
    before = len(managed.sim.created)
    job = succeeded(managed.gateway, managed.create().id)
    assert len(managed.sim.created) == before + 1
    assert job.fine_tuned_model is not None
    assert job.fine_tuned_model.startswith("ft:")
    assert "/" not in job.fine_tuned_model
    hi: Any = [{"role": "user", "content": "hi"}]
    answer = client.chat.completions.create(model=job.fine_tuned_model, messages=hi)
    assert answer.choices[0].message.content == "tuned:hi"
    stream = client.chat.completions.create(model=job.fine_tuned_model, messages=hi, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == "tuned:hi"
    said = messages(client, job.id)
    assert said[0].startswith("Created fine-tuning job")
    assert said[-1] == "The job has successfully completed"
    # Fireworks' names are paths, of which the last part is the id.
    assert state(managed.gateway, job.id)["provider_job_id"] == managed.sim.created[before].rpartition("/")[2]
    found = client.models.retrieve(job.fine_tuned_model)
    assert found.id == job.fine_tuned_model
    for checkpoint in client.fine_tuning.jobs.checkpoints.list(job.id):
        assert checkpoint.fine_tuned_model_checkpoint.startswith(job.fine_tuned_model.rpartition(":")[0])


def test_numbers_are_those_that_the_vendor_chose(managed: Managed) -> None:
    job = succeeded(managed.gateway, managed.create().id)
    assert isinstance(job.hyperparameters.n_epochs, int)
    assert managed.gateway.http.get(f"/v1/fine_tuning/jobs/{job.id}").json()["method"]["type"]


def test_one_file_is_sent_once(managed: Managed) -> None:
    file = managed.file(managed.case.data() + managed.case.data())
    sent = len(managed.sim.asked("create_file"))
    first, second = managed.create(file), managed.create(file, **{})
    succeeded(managed.gateway, first.id)
    succeeded(managed.gateway, second.id)
    assert len(managed.sim.asked("create_file")) == sent + 1


def test_a_cancel_is_the_vendors_word(managed: Managed) -> None:
    managed.sim.stop_at = managed.case.running
    try:
        job = managed.create()
        eventually(lambda: state(managed.gateway, job.id)["provider_job_id"])
        managed.sim.fault("cancel_job", "hold_before")
        shown = managed.client.fine_tuning.jobs.cancel(job.id)
        assert shown.status not in ("cancelled", "succeeded", "failed")
        assert state(managed.gateway, job.id)["state"] == "cancelling"
        managed.sim.wait_held("cancel_job", 30)
        managed.sim.release("cancel_job")
        assert ended(managed.client, job.id).status == "cancelled"
        assert getattr(managed.sim, "destroyed", []) == []
    finally:
        managed.sim.stop_at = None


def test_an_unknown_word_is_no_end(managed: Managed) -> None:
    managed.sim.stop_at = managed.case.running
    try:
        job = managed.create()
        eventually(lambda: state(managed.gateway, job.id)["provider_job_id"])
        upstream = managed.sim.created[-1]
        managed.sim.set_status(upstream, "pondering")
        eventually(lambda: state(managed.gateway, job.id)["provider_status"] == "pondering")
        assert managed.client.fine_tuning.jobs.retrieve(job.id).status == "running"
        assert any("pondering" in message for message in messages(managed.client, job.id))
        managed.sim.stop_at = None
        managed.sim.set_status(upstream, None)
        succeeded(managed.gateway, job.id)
    finally:
        managed.sim.stop_at = None


def test_a_provider_that_fails_for_a_while_loses_nothing(managed: Managed) -> None:
    managed.sim.fault("job", "error_before", status=503, times=4)
    managed.sim.fault("job", "error_before", status=429, retry_after="1")
    managed.sim.fault("job", "cut_before", times=3)
    succeeded(managed.gateway, managed.create().id)


def test_what_the_vendor_cannot_take_is_refused_by_name(managed: Managed) -> None:
    file = managed.file(managed.case.data())
    before = len(managed.sim.created)
    for asked, field_at_fault in managed.case.refused:
        with pytest.raises(openai.BadRequestError) as refused:
            managed.create(file, **asked)
        assert refused.value.param == field_at_fault
    assert len(managed.sim.created) == before


def test_dpo_is_dpo_or_nothing(managed: Managed) -> None:
    if managed.case.dpo is None:
        with pytest.raises(openai.BadRequestError):
            managed.create(managed.file(preferences()), **DPO)
        return
    job = succeeded(managed.gateway, managed.create(managed.file(preferences()), **DPO).id)
    assert managed.case.dpo(managed.sim)
    assert job.method is not None
    assert job.method.type == "dpo"


def test_a_bad_file_fails_before_anything_is_sent(managed: Managed) -> None:
    sent = len(managed.sim.requests)
    job = managed.create(managed.file(b'{"messages": 3}\n' * 12))
    assert ended(managed.client, job.id).status == "failed"
    assert [seen.operation for seen in managed.sim.requests[sent:] if seen.method == "POST"] == []


def test_listing_needs_no_vendor(managed: Managed) -> None:
    sent = len(managed.sim.requests)
    page = managed.client.fine_tuning.jobs.list(limit=3)
    for job in page.data:
        if job.status == "succeeded":
            managed.client.fine_tuning.jobs.list_events(job.id)
            managed.client.fine_tuning.jobs.checkpoints.list(job.id)
    assert [seen.operation for seen in managed.sim.requests[sent:]] == []


def test_a_model_that_is_deleted_is_no_more(managed: Managed) -> None:
    job = succeeded(managed.gateway, managed.create().id)
    assert managed.client.models.delete(job.fine_tuned_model or "").deleted
    with pytest.raises(openai.NotFoundError):
        managed.client.chat.completions.create(
            model=job.fine_tuned_model or "", messages=[{"role": "user", "content": "hi"}]
        )


def test_a_restart_goes_on(managed: Managed, tmp_path: Path) -> None:
    """Jobs of one gateway that is stopped are followed by the next one on the same folder."""
    case, sim = managed.case, managed.sim
    text = settings(account("vendor", kind=case.name, **case.options(sim)))
    secrets = {"VENDOR_KEY": sim.key, "ARM_TOKEN": getattr(sim, "arm_token", "none")}
    sim.stop_at = case.running
    before = len(sim.created)
    try:
        with running(tmp_path, text, secrets=secrets) as gateway:
            job = Managed(case, sim, gateway).create().id
            eventually(lambda: state(gateway, job)["provider_status"])
    finally:
        sim.stop_at = None
    with running(tmp_path, text, secrets=secrets) as gateway:
        succeeded(gateway, job)
    assert len(sim.created) == before + 1
