"""Relays to vendors of other shapes: the same calls of the SDK, and what a vendor does not have is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest

from tests.simulators.fireworks import FireworksSimulator
from tests.simulators.nebius import NebiusSimulator
from tests.simulators.sdk import ROWS, upload
from tests.simulators.together import TogetherSimulator
from tests.wire.conftest import Gateway
from tests.wire.relays import heads, relayed


@dataclass(frozen=True)
class Case:
    """`made` is where a create goes, `lacks` what the vendor does not offer."""

    provider: str
    make: Callable[[], Any]
    model: str
    made: str
    lacks: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)


RATE = {"tuneway": {"learning_rate": 1e-5}}
LLAMA = "meta-llama/Meta-Llama-3.1-8B-Instruct"
FLAT = {"hyperparameters": "flat", "auto": "no", "learning_rate": "absolute"}
CASES = [
    Case("together-ai", TogetherSimulator, f"{LLAMA}-Reference", "/v1/fine-tunes", ("pause", "permissions")),
    Case(
        "fireworks-ai",
        FireworksSimulator,
        "accounts/fireworks/models/qwen3-8b",
        "/v1/accounts/acme/supervisedFineTuningJobs",
        ("pause", "events", "checkpoints", "permissions"),
        {"fireworks_account_id": "acme"},
    ),
    Case("nebius", NebiusSimulator, LLAMA, "/v1/fine_tuning/jobs", ("pause",)),
    Case("openai-compatible", NebiusSimulator, LLAMA, "/v1/fine_tuning/jobs", ("pause",), FLAT),
]


@pytest.fixture(params=CASES, ids=lambda case: case.provider)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def sim(case: Case) -> Iterator[Any]:
    with case.make() as sim:
        yield sim
    assert sim.leaks == []


@pytest.fixture
def client(gateway: Gateway, case: Case, sim: Any) -> Iterator[openai.OpenAI]:
    headers = heads(sim.base_url, case.provider, **case.options)
    with relayed(gateway, sim.base_url, sim.key, default_headers=headers, _strict_response_validation=False) as client:
        yield client


def create(client: openai.OpenAI, case: Case, file: str, **more: Any) -> Any:
    given: dict[str, Any] = {"model": case.model, "training_file": file, "suffix": "mine", "extra_body": RATE}
    return client.fine_tuning.jobs.create(**{**given, **more})


def test_a_job_from_file_to_success(client: openai.OpenAI, case: Case, sim: Any) -> None:
    file = upload(client)
    assert file in [found.id for found in client.files.list()]
    assert client.files.retrieve(file).bytes == len(ROWS)
    job = create(client, case, file)
    assert (job.status, job.model) == ("created", case.model)
    assert [seen.path for seen in sim.requests if seen.operation.startswith("create")][-1] == case.made
    states = [client.fine_tuning.jobs.retrieve(job.id).status for _ in range(8)]
    assert states[-1] == "succeeded"
    assert set(states) <= {"created", "running", "succeeded"}
    assert [found.id for found in client.fine_tuning.jobs.list()] == [job.id]
    assert client.files.delete(file).deleted


def test_a_retry_finds_its_first_try(client: openai.OpenAI, case: Case, sim: Any) -> None:
    file = upload(client)
    again: Any = {"x-stainless-retry-count": "1"}
    job = create(client, case, file)
    assert create(client, case, file, extra_headers=again).id == job.id
    assert create(client, case, file, suffix="other", extra_headers=again).id != job.id
    assert len(sim.created) == 2


def test_what_a_vendor_does_not_have_is_said(client: openai.OpenAI, case: Case, sim: Any) -> None:
    job = create(client, case, upload(client)).id
    jobs = client.fine_tuning.jobs
    calls: dict[str, Callable[[], Any]] = {
        "pause": lambda: jobs.pause(job),
        "events": lambda: jobs.list_events(job),
        "checkpoints": lambda: jobs.checkpoints.list(job),
        "permissions": lambda: client.fine_tuning.checkpoints.permissions.list("c"),
    }
    for name, call in calls.items():
        before = len(sim.requests)
        if name not in case.lacks:
            if name != "permissions":
                call()
            continue
        with pytest.raises(openai.BadRequestError) as raised:
            call()
        assert raised.value.code == "unsupported_operation"
        assert len(sim.requests) == before


def test_nothing_is_left_out_in_silence(client: openai.OpenAI, case: Case, sim: Any) -> None:
    """A multiplier has no meaning at any of these."""
    file = upload(client)
    with pytest.raises(openai.BadRequestError) as raised:
        create(client, case, file, hyperparameters={"learning_rate_multiplier": 2})
    assert raised.value.param == "hyperparameters.learning_rate_multiplier"
    assert sim.created == []
