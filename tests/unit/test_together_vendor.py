"""Together against its simulator: what is sent, how answers are read, how jobs are found again, and endpoints.

Longer than other files by its tables: of what is sent, of what is refused, and of Together's words.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.simulators.together import BASES, EVENTS, HARDWARE, TogetherSimulator
from tests.unit.relayed_form import form
from tuneway.errors import InvalidRequest, JobFailure, JobNotEnded, ProviderError, ProviderSilent, UnsupportedOperation
from tuneway.outbound import Outbound
from tuneway.providers import together
from tuneway.providers.base import LaunchUnclear
from tuneway.providers.line import Line
from tuneway.providers.registry import KINDS
from tuneway.providers.remote import Remote
from tuneway.providers.together import CAPABILITIES, KIND, Together, endpoint_name
from tuneway.providers.together_shapes import CSV_HEAD, FILE_STATUSES, STATUSES, metrics_csv, shown_file, shown_job
from tuneway.providers.vendor import Json, Options
from tuneway.relay import Relay
from tuneway.types import DataFile, Hyperparameters, JobSpec, JobStatus, LaunchSpec, Method, Model

T = TypeVar("T")
HI = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
ROWS = (json.dumps(HI) + "\n").encode() * 12
PAIR = {"input": {"messages": HI["messages"][:1]}, "preferred_output": [], "non_preferred_output": []}
PAIRS = (json.dumps(PAIR) + "\n").encode() * 12
QWEN, REFERENCE = BASES
JOB: Json = {"model": QWEN, "training_file": "file-1"}
SFT = {"method": "sft", "train_on_inputs": "auto"}
SENT = {**JOB, "n_epochs": 3, "training_method": SFT}


@pytest.fixture
def sim() -> Iterator[TogetherSimulator]:
    with TogetherSimulator() as simulator:
        yield simulator


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "FIRST_WAIT", 0.01)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def vendor(sim: TogetherSimulator | None = None, **options: str) -> Together:
    """At the simulator, or nowhere that is called."""
    given = {"api_key": "k"} if sim is None else {"base_url": sim.base_url, "api_key": sim.key}
    line = Line("acme-together", Outbound(["127.0.0.1"]).exchange)
    built = KIND.build(Options({**given, **options}, lambda name: f"<{name}>"), line)
    assert isinstance(built, Together)
    return built


def numbers(kind: str = "supervised", **chosen: Any) -> Json:
    return {"method": {"type": kind, kind: {"hyperparameters": chosen}}}


def options(**chosen: Any) -> Json:
    return {"tuneway": {"options": chosen}}


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def uploaded(account: Together, content: bytes = ROWS, name: str = "train.jsonl") -> str:
    made = await account.upload(name, "fine-tune", pieces(content), len(content))
    return str((await account.file(made["id"]))["id"])


async def created(account: Together, **more: Any) -> Json:
    return await account.create_job({"model": QWEN, "training_file": await uploaded(account), **more})


def tuned(upstream: str, **more: Any) -> Model:
    model = Model(
        seq=1,
        id="ft:Qwen3-8B:acme:tickets:Ab12Cd34",
        project_id="p",
        created_at=1,
        provider="acme-together",
        base=QWEN,
        job_id="ftjob-1",
        upstream_model=upstream,
        step_number=None,
        data_sha256="0" * 64,
        hyperparameters=Hyperparameters(),
    )
    return replace(model, **more)


class Heard:
    """What a job's owner was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    async def __call__(self, message: str) -> None:
        self.said.append(message)


# ------------------------------------------------------------------------------------------------------ what is sent


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({}, {}),
        ({"suffix": "a-B_9", "seed": 0}, {"suffix": "a-B_9", "random_seed": 0}),
        ({"validation_file": None, "metadata": {}, "integrations": [], "seed": None}, {}),
        (numbers(n_epochs="auto", batch_size="auto", learning_rate_multiplier="auto"), {}),
        (numbers(n_epochs=5, batch_size=16), {"n_epochs": 5, "batch_size": 16}),
        ({"hyperparameters": {"n_epochs": 2}}, {"n_epochs": 2}),
        ({"hyperparameters": {"n_epochs": 2}, **numbers(n_epochs=2)}, {"n_epochs": 2}),
        ({"tuneway": {"learning_rate": 1e-4, "provider": "acme"}}, {"learning_rate": 1e-4}),
        (
            {"validation_file": "file-2", **numbers(n_epochs=4)},
            {"validation_file": "file-2", "n_epochs": 4, "n_evals": 4},
        ),
        (
            {"validation_file": "file-2", **options(n_evals=9)},
            {"validation_file": "file-2", "n_evals": 9},
        ),
        (numbers("dpo", beta=0.2), {"training_method": {"method": "dpo", "dpo_beta": 0.2}}),
        (numbers("dpo", beta="auto"), {"training_method": {"method": "dpo"}}),
        (
            {**numbers("dpo"), **options(rpo_alpha=0.1)},
            {"training_method": {"method": "dpo", "rpo_alpha": 0.1}},
        ),
        (options(train_on_inputs=True), {"training_method": {"method": "sft", "train_on_inputs": True}}),
        (options(warmup_ratio=0.1, n_checkpoints=2), {"warmup_ratio": 0.1, "n_checkpoints": 2}),
        (options(lora_r=8), {"training_type": {"type": "Lora", "lora_r": 8, "lora_alpha": 16}}),
        (
            options(lora_r=8, lora_alpha=4, lora_dropout=0.1),
            {"training_type": {"type": "Lora", "lora_r": 8, "lora_alpha": 4, "lora_dropout": 0.1}},
        ),
        (options(training_type="Full"), {"training_type": {"type": "Full"}}),
    ],
)
def test_what_is_sent(asked: Json, sent: Json) -> None:
    assert vendor().translate({**JOB, **asked}) == {**SENT, **sent}


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (numbers(learning_rate_multiplier=2), "method.supervised.hyperparameters.learning_rate_multiplier"),
        ({"hyperparameters": {"learning_rate_multiplier": 0.1}}, "hyperparameters.learning_rate_multiplier"),
        ({"hyperparameters": {"n_epochs": 2}, **numbers(n_epochs=3)}, "method.supervised.hyperparameters.n_epochs"),
        (numbers(beta=0.1), "method.supervised.hyperparameters.beta"),
        (numbers(n_epochs=0), "method.supervised.hyperparameters.n_epochs"),
        (numbers(n_epochs=1.5), "method.supervised.hyperparameters.n_epochs"),
        (numbers(batch_size="max"), "method.supervised.hyperparameters.batch_size"),
        (numbers(batch_size=True), "method.supervised.hyperparameters.batch_size"),
        (numbers("dpo", beta=-1), "method.dpo.hyperparameters.beta"),
        (numbers(surprise=1), "method.supervised.hyperparameters.surprise"),
        ({"method": {"type": "reinforcement", "reinforcement": {"grader": {}}}}, "method.type"),
        ({"method": {"type": ["dpo"]}}, "method.type"),
        ({"method": "dpo"}, "method"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
        ({"method": {"type": "dpo", "dpo": {"x": 1}}}, "method.dpo.x"),
        ({"metadata": {"a": "b"}}, "metadata"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
        ({"surprise": None}, "surprise"),
        ({"suffix": "a" * 41}, "suffix"),
        ({"model": ""}, "model"),
        ({"tuneway": {"learning_rate": "fast"}}, "tuneway.learning_rate"),
        (options(wandb_api_key="secret"), "tuneway.options.wandb_api_key"),
        (options(rpo_alpha=0.1), "tuneway.options.rpo_alpha"),
        ({**numbers("dpo"), **options(train_on_inputs=True)}, "tuneway.options.train_on_inputs"),
        (options(training_type="Full", lora_r=8), "tuneway.options.lora_r"),
        (options(training_type="QLoRA"), "tuneway.options.training_type"),
        (options(lora_dropout=0.1), "tuneway.options.lora_r"),
        (options(lora_r="8"), "tuneway.options.lora_r"),
        (options(from_checkpoint="ft-1"), "tuneway.options.from_checkpoint"),
    ],
)
def test_what_together_cannot_take_is_refused_by_name(asked: Json, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        vendor().translate({**JOB, **asked})
    assert refused.value.param == param


def test_a_multiplier_is_refused_with_what_to_send_instead() -> None:
    with pytest.raises(InvalidRequest, match=r"'tuneway': \{'learning_rate': …\}"):
        vendor().translate({**JOB, **numbers(learning_rate_multiplier=1)})


@pytest.mark.parametrize(
    ("model", "goes_on"),
    [
        ("ft-ca14b3d1-2b3c", True),
        ("ft-ca14b3d1-2b3c:30", True),
        ("acme/Qwen3-8B-mine-ca14b3d1", True),
        ("acme/Qwen3-8B-mine-ca14b3d1:10", True),
        ("Qwen/Qwen3-8B", False),
        ("acme/model-20250720", False),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct-Reference", False),
    ],
)
def test_a_model_that_was_tuned_there_is_tuned_on(model: str, goes_on: bool) -> None:
    account = vendor(lora_r="8")
    sent = account.translate({**JOB, "model": model})
    assert sent["from_checkpoint" if goes_on else "model"] == model
    assert ("model" in sent) != ("from_checkpoint" in sent)
    assert ("training_type" in sent) != goes_on, "a checkpoint goes on as it was trained"
    forced = account.translate({**JOB, "model": model, **options(from_checkpoint=model)})
    assert (forced["from_checkpoint"], "model" in forced) == (model, False)


def test_an_account_s_rank_is_for_jobs_that_set_none() -> None:
    account = vendor(lora_r="8", lora_alpha="32")
    assert account.translate(JOB)["training_type"] == {"type": "Lora", "lora_r": 8, "lora_alpha": 32}
    asked = {**JOB, **options(lora_r=4)}
    assert account.translate(asked)["training_type"] == {"type": "Lora", "lora_r": 4, "lora_alpha": 8}
    with pytest.raises(InvalidRequest, match="<lora_r>"):
        vendor(lora_alpha="32")


def test_the_simulator_takes_all_that_is_sent(sim: TogetherSimulator) -> None:
    async def ask() -> None:
        account = vendor(sim)
        pairs = await uploaded(account, PAIRS, "pairs.jsonl")
        more = {
            **numbers("dpo", beta=0.2, n_epochs=2, batch_size=8),
            "validation_file": pairs,
            "suffix": "x",
            "seed": 1,
        }
        more["tuneway"] = {
            "learning_rate": 1e-4,
            "options": {"lora_r": 8, "n_checkpoints": 2, "dpo_reference_free": True},
        }
        job = await account.create_job({"model": QWEN, "training_file": pairs, **more})
        assert job["hyperparameters"] == {"n_epochs": 2, "batch_size": 8, "beta": 0.2}
        assert job["method"]["type"] == "dpo"
        assert job["tuneway"]["learning_rate"] == 1e-4

    run(ask())
    assert len(sim.created) == 1


# ------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ('{"id": "ft-1", "status": "pending", "created_at": "2026-11-24T10:00:00.250Z"}', "queued"),
        ('{"id": "ft-1", "status": "queued", "created_at": "2026-11-24T10:00:00.250Z"}', "queued"),
        ('{"id": "ft-1", "status": "running", "created_at": "2026-11-24T10:00:00.250Z"}', "running"),
        ('{"id": "ft-1", "status": "compressing", "created_at": "2026-11-24T10:00:00.250Z"}', "running"),
        ('{"id": "ft-1", "status": "uploading", "created_at": "2026-11-24T10:00:00.250Z"}', "running"),
        ('{"id": "ft-1", "status": "cancel_requested", "created_at": "2026-11-24T10:00:00.250Z"}', "running"),
        ('{"id": "ft-1", "status": "cancelled", "created_at": "2026-11-24T10:00:00.250Z"}', "cancelled"),
        ('{"id": "ft-1", "status": "error", "created_at": "2026-11-24T10:00:00.250Z"}', "failed"),
        ('{"id": "ft-1", "status": "user_error", "created_at": "2026-11-24T10:00:00.250Z"}', "failed"),
        ('{"id": "ft-1", "status": "completed", "created_at": "2026-11-24T10:00:00.250Z"}', "succeeded"),
        ('{"id": "ft-1", "status": "napping", "created_at": "2026-11-24T10:00:00.250Z"}', "running"),
    ],
)
def test_together_s_words(answer: str, status: str) -> None:
    raw = json.loads(answer)
    shown = shown_job(raw)
    assert shown["status"] == status
    assert shown["tuneway"]["provider_status"] == raw["status"]
    assert (shown["tuneway"].get("unknown_status") == "napping") == (raw["status"] == "napping")
    assert shown["created_at"] == 1795514400
    assert (shown["error"] is not None) == (status == "failed")


def test_every_word_has_a_row() -> None:
    rows = next(mark for mark in test_together_s_words.pytestmark if mark.name == "parametrize").args[1]  # type: ignore[attr-defined]
    assert {json.loads(row[0])["status"] for row in rows} - {"napping"} == set(STATUSES)


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ('{"id": "file-1", "processing_status": "PENDING", "Processed": false}', "uploaded"),
        ('{"id": "file-1", "processing_status": "QUEUED"}', "uploaded"),
        ('{"id": "file-1", "processing_status": "RUNNING"}', "uploaded"),
        ('{"id": "file-1", "processing_status": "COMPLETED"}', "processed"),
        ('{"id": "file-1", "processing_status": "FAILED"}', "error"),
        ('{"id": "file-1", "processing_status": "INVALID_FORMAT", "validation_report": {"error": "Line 3"}}', "error"),
        ('{"id": "file-1", "processing_status": "NAPPING"}', "uploaded"),
        ('{"id": "file-1", "Processed": true}', "processed"),
        ('{"id": "file-1", "Processed": false}', "uploaded"),
        ('{"id": "file-1"}', "processed"),
    ],
)
def test_words_of_files(answer: str, status: str) -> None:
    shown = shown_file(json.loads(answer))
    assert shown["status"] == status
    assert ("status_details" in shown) == (status == "error")
    assert "Line 3" not in answer or shown["status_details"] == "Line 3"
    assert set(FILE_STATUSES.values()) == {"uploaded", "processed", "error"}


def test_metrics_become_a_result_file() -> None:
    metrics = [
        {"timestamp": 1, "train/global_step": 1, "train/loss": 2.5},
        {"timestamp": 2, "train/global_step": 2, "train/loss": 1.5},
        {"timestamp": 3, "eval/global_step": 2, "eval/loss": 1.25},
        {"timestamp": 4},
    ]
    assert metrics_csv(metrics).decode() == f"{CSV_HEAD}\n1,2.5,,,\n2,1.5,,1.25,\n"


# ------------------------------------------------------------------------------------------------------------- files


def test_a_file_from_its_upload_to_its_end(sim: TogetherSimulator) -> None:
    async def ask() -> None:
        account = vendor(sim)
        made = await account.upload("train.jsonl", "fine-tune", pieces(ROWS), len(ROWS))
        assert (made["status"], made["bytes"], made["purpose"]) == ("uploaded", len(ROWS), "fine-tune")
        seen = await account.file(made["id"])
        assert (seen["status"], seen["tuneway"]["lines"]) == ("processed", 12)
        async with account.content(made["id"]) as reply:
            assert b"".join([chunk async for chunk in reply.chunks()]) == ROWS
        broken = await uploaded(account, b"no", "broken.jsonl")
        assert (await account.file(broken))["status_details"] == "Line 1 has no known format."
        listed = await account.list_files({"limit": "1", "purpose": "fine-tune", "order": "asc"})
        assert ([file["id"] for file in listed["data"]], listed["has_more"]) == ([made["id"]], True)
        after = await account.list_files({"after": made["id"], "order": "asc"})
        assert [file["id"] for file in after["data"]] == [broken]
        assert (await account.list_files({"purpose": "assistants"}))["data"] == []
        assert await account.delete_file(made["id"]) == {"id": made["id"], "object": "file", "deleted": True}
        with pytest.raises(ProviderError) as missing:
            await account.file(made["id"])
        assert missing.value.status == 404

    run(ask())
    assert "content-length" in sim.asked("create_file")[0].headers


@pytest.mark.parametrize("fields", ["before", "behind"])
def test_a_relayed_form_is_framed_anew_as_it_comes(sim: TogetherSimulator, fields: str) -> None:
    purpose, none = {"purpose": "fine-tune"}, dict[str, str]()
    given = form(
        ROWS,
        "mine.jsonl",
        before=purpose if fields == "before" else none,
        behind=none if fields == "before" else purpose,
    )
    made = run(vendor(sim).relay_upload(given))
    assert (made["filename"], made["bytes"]) == ("mine.jsonl", len(ROWS))
    assert bytes(sim.parts[made["id"]].content or b"") == ROWS


@pytest.mark.parametrize(
    ("given", "param", "asks"),
    [
        ({"before": {"purpose": "batch"}}, "purpose", False),
        ({"before": {}, "behind": {"purpose": "assistants"}}, "purpose", True),
        ({"before": {}}, "purpose", True),
        ({"behind": {"expires_after[anchor]": "created_at"}}, "expires_after[anchor]", True),
        ({"name": "train.csv"}, "file", False),
        ({"name": "jsonl"}, "file", False),
        ({"broken_off": True}, None, True),
    ],
)
def test_of_a_form_that_must_not_be_nothing_is_kept(
    sim: TogetherSimulator, given: dict[str, Any], param: str | None, asks: bool
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        run(vendor(sim).relay_upload(form(ROWS, **given)))
    assert refused.value.param == param
    assert sim.files == {}
    assert asks or sim.asked("create_file") == []
    assert not [seen for seen in sim.asked("create_file") if seen.complete]


# -------------------------------------------------------------------------------------------------------------- jobs


def test_a_job_from_its_file_to_its_results(sim: TogetherSimulator) -> None:
    async def ask() -> None:
        account = vendor(sim)
        job = await created(account, suffix="mine", seed=7, tuneway={"options": {"n_checkpoints": 2}})
        assert (job["user_provided_suffix"], job["seed"], job["status"]) == ("mine", 7, "queued")
        assert (job["object"], job["model"], job["validation_file"]) == ("fine_tuning.job", QWEN, None)
        states = [(await account.job(job["id"]))["tuneway"]["provider_status"] for _ in range(5)]
        assert states == [*sim.states[1:]]
        done = await account.job(job["id"])
        assert not {"user_provided_suffix", "seed"} & set(done), "Together does not show them here"
        assert done["fine_tuned_model"] == sim.jobs[job["id"]]["model_output_name"]
        assert done["trained_tokens"] > 0
        assert done["finished_at"] >= done["created_at"]
        assert done["hyperparameters"] == {"n_epochs": 3, "batch_size": 32}
        assert not [name for name in done["hyperparameters"] if "rate" in name]
        csv = await account.result_csv(done)
        assert csv is not None
        assert csv.decode().splitlines() == [CSV_HEAD, "1,2.0,,,", "2,1.0,,,", f"3,{2 / 3},,,"]
        found = await account.checkpoints(job["id"], {})
        assert [each["step_number"] for each in found["data"]] == [20, 10]
        assert [each["fine_tuned_model_checkpoint"] for each in found["data"]] == [
            done["fine_tuned_model"],
            f"{job['id']}:10",
        ]
        assert account.translate({**JOB, "model": f"{job['id']}:10"})["from_checkpoint"] == f"{job['id']}:10"

    run(ask())


def test_events_are_newest_first_page_by_page_and_keep_their_ids(sim: TogetherSimulator) -> None:
    async def ask() -> None:
        account = vendor(sim)
        job = await created(account)
        sim.finish_job(job["id"], "running")
        first = await account.events(job["id"], {"limit": "1"})
        assert (first["data"][0]["data"]["type"], first["has_more"]) == ("training_start", True)
        older = await account.events(job["id"], {"after": first["data"][0]["id"]})
        assert [event["message"] for event in older["data"]] == ["Fine-tune request created"]
        again = await account.events(job["id"], {})
        assert [event["id"] for event in again["data"]] == [first["data"][0]["id"], older["data"][0]["id"]]
        assert {event["level"] for event in again["data"]} == {"info"}

    run(ask())


def test_jobs_are_listed_newest_first_page_by_page(sim: TogetherSimulator) -> None:
    async def ask() -> None:
        account = vendor(sim)
        jobs = [(await created(account, suffix=f"n{number}"))["id"] for number in range(3)]
        first = await account.list_jobs({"limit": "2"})
        assert ([job["id"] for job in first["data"]], first["has_more"]) == (jobs[:0:-1], True)
        rest = await account.list_jobs({"limit": "2", "after": first["data"][-1]["id"]})
        assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (jobs[:1], False)
        assert [job["user_provided_suffix"] for job in rest["data"]] == ["n0"]

    run(ask())


def test_a_cancel_cancels_and_nothing_is_destroyed(sim: TogetherSimulator) -> None:
    sim.stop_at = "running"

    async def ask() -> None:
        account = vendor(sim)
        job = await created(account)
        with pytest.raises(JobNotEnded):
            await account.delete_job(job["id"])
        asked = await account.change_job(job["id"], "cancel")
        assert (asked["status"], asked["tuneway"]["provider_status"]) == ("running", "cancel_requested")
        assert (await account.job(job["id"]))["status"] == "cancelled"
        assert sim.destroyed == []
        for verb in ("pause", "resume"):
            with pytest.raises(UnsupportedOperation):
                await account.change_job(job["id"], verb)  # type: ignore[arg-type]  # of the loop
        await account.delete_job(job["id"])

    run(ask())
    assert len(sim.destroyed) == 1


@pytest.mark.parametrize("events", ["inside", "apart"])
def test_a_failed_job_says_why(sim: TogetherSimulator, events: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> Json:
        account = vendor(sim)
        job = await created(account)
        sim.finish_job(job["id"], "user_error")
        if events == "apart":
            monkeypatch.setattr("tests.simulators.together.NOT_RETRIEVED", frozenset({"events"}))
        return await account.job(job["id"])

    failed = run(ask())
    assert failed["status"] == "failed"
    assert failed["error"] == {"code": "user_error", "message": "The training file could not be read", "param": None}


# ---------------------------------------------------------------------------------------------------- exactly once


def launch(file: str, **more: Any) -> LaunchSpec:
    spec = JobSpec(model=QWEN, training_file="file-x", provider="acme-together", suffix="mine", seed=7)
    return LaunchSpec(
        "ftjob-1", replace(spec, **more), Hyperparameters(n_epochs=2), 1, training_file=file, intended_at=1
    )


def test_a_create_that_was_not_answered_is_found_by_file_model_suffix_and_seed(sim: TogetherSimulator) -> None:
    async def ask() -> None:
        account = vendor(sim)
        remote, file = Remote("acme-together", account), await uploaded(account)
        assert await remote.find(launch(file)) is None
        await account.create_job({"model": QWEN, "training_file": file, "suffix": "other", "seed": 7})
        await account.create_job({"model": QWEN, "training_file": file, "seed": 7})
        await account.create_job({"model": QWEN, "training_file": file, "suffix": "mine", "seed": 8})
        assert await remote.find(launch(file)) is None
        sim.fault("create_job", "cut_after")
        with pytest.raises(ProviderSilent):
            await remote.launch(launch(file))
        found = await remote.find(launch(file))
        assert found is not None
        assert found.provider_job_id == sim.created[-1]
        assert len(sim.asked("create_job")) == len(sim.created) == 4
        await remote.launch(launch(file))
        with pytest.raises(LaunchUnclear) as unclear:
            await remote.find(launch(file))
        assert {candidate.provider_job_id for candidate in unclear.value.candidates} == set(sim.created[-2:])

    run(ask())


def test_a_relay_s_retry_gets_the_job_of_its_first_try(sim: TogetherSimulator) -> None:
    async def ask() -> None:
        account = vendor(sim)
        relay = Relay(KINDS, Outbound([]).exchange, allowed=True)
        body = {"model": QWEN, "training_file": await uploaded(account), "suffix": "mine", "seed": 1}
        first = await relay.create_job(account, body, retry=0, caller={})
        again = await relay.create_job(account, body, retry=1, caller={})
        assert (again["id"], again["tuneway"]["retried"]) == (first["id"], True)
        for number, more in enumerate(
            ({"suffix": "another"}, {"tuneway": {"learning_rate": 1e-4}}, numbers(n_epochs=4))
        ):
            await relay.create_job(account, {**body, **more}, retry=1, caller={})
            assert len(sim.created) == number + 2

    run(ask())


def test_a_managed_file_is_sent_once(sim: TogetherSimulator, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(ROWS)
    file = DataFile(path, "a" * 64, len(ROWS), Method.SUPERVISED)

    async def ask() -> None:
        remote = Remote("acme-together", vendor(sim))
        first = await remote.send(file, None)
        assert await remote.send(file, None) == first
        assert await remote.send(file, first) == first

    run(ask())
    assert len(sim.files) == 1


def test_a_poll_tells_of_the_job_s_end(sim: TogetherSimulator) -> None:
    async def ask() -> None:
        account = vendor(sim)
        remote, job = Remote("acme-together", account), await created(account)
        handle = await remote.find(replace(launch("x"), provider_job_id=job["id"]))
        assert handle is not None
        update = await remote.poll(handle, None)
        said = {event.key: event.message for event in update.events}
        while update.status is not JobStatus.SUCCEEDED:
            update = await remote.poll(handle, update.cursor)
            said |= {event.key: event.message for event in update.events}
        assert update.result is not None
        assert update.result.upstream_model == sim.jobs[job["id"]]["model_output_name"]
        assert [(each.step_number, each.final) for each in update.checkpoints] == [(10, True)]
        assert list(said.values()) == [f"acme-together: {message}" for _, message in list(EVENTS.values())[: len(said)]]
        assert update.hyperparameters == Hyperparameters(n_epochs=3, batch_size=32)

    run(ask())


# ---------------------------------------------------------------------------------------------------------- serving


def model_of(sim: TogetherSimulator, base: str = QWEN) -> str:
    async def ask() -> str:
        job = await created(vendor(sim), model=base)
        sim.finish_job(job["id"])
        return str((await vendor(sim).job(job["id"]))["fine_tuned_model"])

    return run(ask())


def test_without_hardware_nothing_is_served_and_the_owner_is_told_what_to_do(sim: TogetherSimulator) -> None:
    heard, model = Heard(), tuned(model_of(sim))
    assert run(vendor(sim).serve(model, heard)) is None
    assert len(heard.said) == 1
    assert "`hardware`" in heard.said[0]
    run(vendor(sim).withdraw(model))
    assert not [seen for seen in sim.requests if "endpoint" in seen.operation]


def test_an_endpoint_serves_the_model_until_it_is_withdrawn(sim: TogetherSimulator) -> None:
    account = vendor(sim, hardware=HARDWARE, max_replicas="2", inactive_timeout="30")
    heard, model = Heard(), tuned(model_of(sim))
    deployment = run(account.serve(model, heard))
    assert deployment is not None
    assert deployment.usd_per_hour is None
    (endpoint,) = sim.endpoints.values()
    assert (endpoint["name"], endpoint["state"]) == (deployment.name, "STARTED")
    assert (endpoint["display_name"], endpoint["autoscaling"]) == (
        endpoint_name(model.id),
        {"min_replicas": 1, "max_replicas": 2},
    )
    assert json.loads(sim.asked("create_endpoint")[0].body)["inactive_timeout"] == 30
    assert "bills by the minute" in heard.said[0]

    async def chat() -> Any:
        upstream = await account.chat(deployment.name)
        body = {"model": deployment.name, "messages": [{"role": "user", "content": "x"}]}
        return await account.line.json("POST", upstream.url, headers=upstream.headers, body=body)

    assert run(chat())["choices"][0]["message"]["content"] == "tuned:x"
    again = run(account.serve(model, heard))
    assert again is not None
    assert again.name == deployment.name
    assert len(sim.asked("create_endpoint")) == 1
    run(account.withdraw(replace(model, id=f"{model.id}:ckpt-step-10", step_number=10)))
    assert len(sim.endpoints) == 1
    run(vendor(sim).withdraw(replace(model, deployment=deployment)))
    assert sim.endpoints == {}
    run(account.withdraw(model))


def test_an_endpoint_that_was_not_recorded_is_ended_too(sim: TogetherSimulator) -> None:
    account, model = vendor(sim, hardware=HARDWARE), tuned(model_of(sim))
    run(account.serve(model, Heard()))
    run(account.withdraw(model))
    assert sim.endpoints == {}


def test_of_two_endpoints_that_a_crash_made_one_is_left(sim: TogetherSimulator) -> None:
    account, model = vendor(sim, hardware=HARDWARE), tuned(model_of(sim))
    deployment = run(account.serve(model, Heard()))
    assert deployment is not None
    (first,) = sim.endpoints.values()
    sim.endpoints["endpoint-2"] = {**first, "id": "endpoint-2", "name": "acme/again", "state": "PENDING"}
    sim.endpoints["endpoint-3"] = {**first, "id": "endpoint-3", "name": "acme/other", "display_name": "not ours"}
    again = run(account.serve(model, Heard()))
    assert again is not None
    assert again.name == deployment.name
    assert [endpoint["name"] for endpoint in sim.endpoints.values()] == [deployment.name, "acme/other"]
    run(account.withdraw(replace(model, deployment=deployment)))
    assert list(sim.endpoints) == ["endpoint-3"]


def test_an_endpoint_that_does_not_start_is_deleted(sim: TogetherSimulator) -> None:
    account, model = vendor(sim, hardware=HARDWARE), tuned(model_of(sim))
    broken = {"id": "endpoint-1", "name": "acme/x", "state": "ERROR", "display_name": endpoint_name(model.id)}
    sim.endpoints["endpoint-1"] = {**broken, "model": model.upstream_model}
    with pytest.raises(JobFailure, match=r"stays at Together as .*it was ERROR"):
        run(account.serve(model, Heard()))
    assert sim.endpoints == {}


def test_what_is_tuned_from_a_reference_model_is_not_served(sim: TogetherSimulator) -> None:
    heard, model = Heard(), tuned(model_of(sim, REFERENCE))
    assert run(vendor(sim, hardware=HARDWARE).serve(model, heard)) is None
    assert "No hardware can serve" in heard.said[0]


# ------------------------------------------------------------------------------------------------------ the account


def test_models(sim: TogetherSimulator) -> None:
    async def ask() -> None:
        account = vendor(sim)
        found = await account.list_models()
        assert (found["object"], found["has_more"]) == ("list", False)
        one = await account.model(QWEN)
        assert (one["id"], one["object"]) == (QWEN, "model")
        with pytest.raises(ProviderError) as missing:
            await account.model("acme/other")
        assert missing.value.status == 404
        with pytest.raises(UnsupportedOperation):
            await account.delete_model(QWEN)

    run(ask())


def test_a_refusal_keeps_the_vendor_s_words(sim: TogetherSimulator) -> None:
    with pytest.raises(ProviderError) as refused:
        run(vendor(sim, api_key="another-key").list_jobs({}))
    assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")
    assert "another-key" not in refused.value.message


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("base_url", "file:///etc/passwd"),
        ("hardware", "a b"),
        ("min_replicas", "many"),
        ("max_replicas", "0"),
        ("inactive_timeout", "-1"),
        ("lora_r", "0"),
        ("api_key", "a\r\nb"),
    ],
)
def test_options_are_checked(option: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        vendor(**{option: value})
    assert refused.value.param == f"<{option}>"


def test_what_there_is_to_configure() -> None:
    assert KINDS["together"] is KIND
    assert KIND.not_relayed == {"hardware", "min_replicas", "max_replicas", "inactive_timeout"}
    assert (CAPABILITIES.remote, CAPABILITIES.any_base, CAPABILITIES.metadata, CAPABILITIES.pause) == (
        True,
        True,
        False,
        False,
    )
    assert CAPABILITIES.refused_features == {"image_urls", "developer", "functions"}
