"""Fireworks against its simulator: what is sent, how answers are read, creates that may be repeated, and deployments.

Longer than other files by its tables: of what is sent, of what is refused, and of Fireworks' words.
"""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.simulators.base import Answer, Handler, Request, as_json
from tests.simulators.fireworks import FireworksSimulator
from tests.simulators.fireworks_serving import BASE
from tests.unit.relayed_form import form
from tuneway.errors import (
    InvalidRequest,
    JobFailure,
    JobNotEnded,
    OutOfSpace,
    PayloadTooLarge,
    ProviderError,
    ProviderSilent,
    UnsupportedOperation,
)
from tuneway.outbound import Outbound
from tuneway.providers import fireworks, spool
from tuneway.providers.fireworks import CAPABILITIES, KIND, Fireworks, deployment_id
from tuneway.providers.fireworks_shapes import STATUSES, create_of, shown_file, shown_job
from tuneway.providers.line import Line
from tuneway.providers.registry import KINDS
from tuneway.providers.remote import Remote
from tuneway.providers.vendor import Json, Options
from tuneway.relay import Relay
from tuneway.types import DataFile, Hyperparameters, JobSpec, JobStatus, LaunchSpec, Method, Model

T = TypeVar("T")
HI = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
ROWS = (json.dumps(HI) + "\n").encode() * 12
PAIR = {"input": {"messages": HI["messages"][:1]}, "preferred_output": [], "non_preferred_output": []}
PAIRS = (json.dumps(PAIR) + "\n").encode() * 12
QWEN = "qwen3-8b"
DATA = "accounts/acme/datasets/file-1"
JOB: Json = {"model": QWEN, "training_file": "file-1"}
SENT: Json = {"dataset": DATA, "baseModel": BASE, "epochs": 3}
OWN = "accounts/acme/models/mine"


class Downloads(FireworksSimulator):
    """With the operation that the simulator leaves out; its path and answer are the SDK's (fireworks-ai 1.2.30)."""

    def routes(self) -> Iterable[tuple[str, str, str, Handler]]:
        path = "/v1/accounts/{account}/datasets/{id}:getDownloadEndpoint"
        yield "GET", path, "download_endpoint", self.sign_download
        yield "GET", "/download/{id}", "signed", self.download
        yield from super().routes()

    def sign_download(self, request: Request) -> Answer:
        name = self.find("datasets", self.files, request)["name"]
        url = f"{self.url}/download/{name.rpartition('/')[2]}?X-Goog-Signature=0"
        return as_json({"filenameToSignedUrls": {"train.jsonl": url}})

    def download(self, request: Request) -> Answer:
        return Answer([self.contents[self.named("datasets", request.params["id"])] or b""])


@pytest.fixture
def sim() -> Iterator[FireworksSimulator]:
    with Downloads() as simulator:
        yield simulator
    assert simulator.leaks == []


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fireworks, "FIRST_WAIT", 0.01)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def vendor(sim: FireworksSimulator | None = None, **options: str | None) -> Fireworks:
    """At the simulator, or nowhere that is called. None takes an option away."""
    given: dict[str, str | None] = {"api_key": "k", "fireworks_account_id": "acme"}
    if sim is not None:
        given |= {"base_url": f"{sim.url}/v1", "api_key": sim.key}
    values = {name: value for name, value in {**given, **options}.items() if value is not None}
    line = Line("acme-fireworks", Outbound(["127.0.0.1"]).exchange)
    built = KIND.build(Options(values, lambda name: f"<{name}>"), line)
    assert isinstance(built, Fireworks)
    return built


def numbers(kind: str = "supervised", **chosen: Any) -> Json:
    return {"method": {"type": kind, kind: {"hyperparameters": chosen}}}


def options(**chosen: Any) -> Json:
    return {"tuneway": {"options": chosen}}


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def uploaded(account: Fireworks, content: bytes = ROWS, name: str = "train.jsonl") -> str:
    """A dataset that is ready."""
    made = await account.upload(name, "fine-tune", pieces(content), len(content), content.count(b"\n"))
    while (await account.file(made["id"]))["status"] != "processed":
        pass
    return str(made["id"])


async def created(account: Fireworks, **more: Any) -> Json:
    return await account.create_job({"model": QWEN, "training_file": await uploaded(account), **more})


def keyed(key: str, **more: Any) -> Json:
    return {"tuneway": {"key": key, **more}}


def tuned(upstream: str, **more: Any) -> Model:
    model = Model(
        seq=1,
        id="ft:qwen3-8b:acme:tickets:Ab12Cd34",
        project_id="p",
        created_at=1,
        provider="acme-fireworks",
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
        ({"model": BASE}, {}),
        ({"training_file": DATA}, {}),
        ({"metadata": {}, "integrations": [], "seed": None, "validation_file": None}, {}),
        (numbers(n_epochs="auto", batch_size="auto", learning_rate_multiplier="auto"), {}),
        (numbers(n_epochs=5, batch_size=16), {"epochs": 5, "batchSizeSamples": 16}),
        (options(batchSize=32768), {"batchSize": 32768}),
        ({"tuneway": {"learning_rate": 1e-4}}, {"learningRate": 1e-4}),
        ({"validation_file": "file-2"}, {"evaluationDataset": "accounts/acme/datasets/file-2"}),
        (
            options(loraRank=8, maxContextLength=4096, earlyStop=True, useReservation=True),
            {"loraRank": 8, "maxContextLength": 4096, "earlyStop": True, "useReservation": True},
        ),
        (options(outputModel="mine"), {"outputModel": "mine"}),
    ],
)
def test_what_is_sent(asked: Json, sent: Json) -> None:
    assert vendor().translate({**JOB, **asked}) == {**SENT, **sent}


def test_a_model_beyond_the_library_is_tuned_on_unless_it_is_said_to_be_a_base() -> None:
    account = vendor()
    assert account.translate({**JOB, "model": OWN}) == {"dataset": DATA, "warmStartFrom": OWN, "epochs": 3}
    asked = {**JOB, "model": OWN, **options(baseModel=OWN)}
    assert account.translate(asked) == {"dataset": DATA, "baseModel": OWN, "epochs": 3}


@pytest.mark.parametrize(
    ("asked", "loss", "training"),
    [
        (numbers("dpo"), {"method": "DPO"}, {}),
        (numbers("dpo", beta=0.2, batch_size=4), {"method": "DPO", "dpo": {"beta": 0.2}}, {"batchSizeSamples": 4}),
        ({**numbers("dpo"), **options(loraRank=8)}, {"method": "DPO"}, {"loraRank": 8}),
    ],
)
def test_preferences_have_a_body_of_their_own(asked: Json, loss: Json, training: Json) -> None:
    config = {"baseModel": BASE, "epochs": 3, **training}
    assert vendor().translate({**JOB, **asked}) == {"dataset": DATA, "lossConfig": loss, "trainingConfig": config}


@pytest.mark.parametrize(
    ("suffix", "start"), [("My_Model", "my-model-"), ("7b", "m-7b-"), ("_-_", "m-"), ("x" * 63, "x" * 38 + "-")]
)
def test_a_suffix_is_the_display_name_and_as_far_as_it_can_be_in_the_model_s(suffix: str, start: str) -> None:
    body = vendor().translate({**JOB, "suffix": suffix, **keyed("ftjob-1")})
    assert body["displayName"] == suffix
    assert body["outputModel"].startswith(start)
    assert len(body["outputModel"]) <= 63
    again = vendor().translate({**JOB, "suffix": suffix, **keyed("ftjob-1")})
    assert again == body
    other = vendor().translate({**JOB, "suffix": suffix, **keyed("ftjob-2")})
    assert other["outputModel"] != body["outputModel"]


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"seed": 0}, "seed"),
        (numbers(learning_rate_multiplier=2), "method.supervised.hyperparameters.learning_rate_multiplier"),
        ({"hyperparameters": {"learning_rate_multiplier": 2}}, "hyperparameters.learning_rate_multiplier"),
        (numbers(beta=0.1), "method.supervised.hyperparameters.beta"),
        (numbers("dpo", beta=0.5), "method.dpo.hyperparameters.beta"),
        (numbers(batch_size="32"), "method.supervised.hyperparameters.batch_size"),
        ({"method": {"type": "reinforcement", "reinforcement": {}}}, "method.type"),
        ({**numbers("dpo"), "validation_file": "file-2"}, "validation_file"),
        ({"metadata": {"a": "b"}}, "metadata"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
        ({"surprise": 1}, "surprise"),
        ({"suffix": "a" * 64}, "suffix"),
        ({"model": "gpt-4o/../x"}, "model"),
        (options(wandbConfig={}), "tuneway.options.wandbConfig"),
        ({**numbers("dpo"), **options(earlyStop=True)}, "tuneway.options.earlyStop"),
        (options(baseModel=OWN), "tuneway.options.baseModel"),
    ],
)
def test_what_fireworks_cannot_take_is_refused_by_name(asked: Json, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        vendor().translate({**JOB, **asked})
    assert refused.value.param == param


@pytest.mark.parametrize("file", ["accounts/other/datasets/x", "accounts/acme/models/x", "../x", "a/b", "a:cancel", ""])
def test_ids_of_other_things_are_refused(file: str) -> None:
    with pytest.raises(InvalidRequest):
        vendor().translate({**JOB, "training_file": file})


def test_the_simulator_takes_all_that_is_sent(sim: FireworksSimulator) -> None:
    async def ask() -> None:
        account = vendor(sim)
        rows, pairs = await uploaded(account), await uploaded(account, PAIRS, "pairs.jsonl")
        more = {**numbers(n_epochs=2, batch_size=8), "validation_file": rows, "suffix": "My_Model"}
        more["tuneway"] = {
            "learning_rate": 1e-4,
            "options": {"loraRank": 8, "earlyStop": True, "maxContextLength": 4096},
        }
        job = await account.create_job({"model": QWEN, "training_file": rows, **more})
        assert job["hyperparameters"] == {"n_epochs": 2, "batch_size": 8}
        assert (job["training_file"], job["validation_file"]) == (rows, rows)
        assert (job["user_provided_suffix"], job["model"]) == ("My_Model", BASE)
        assert job["tuneway"]["learning_rate"] == 1e-4
        dpo = {**numbers("dpo", beta=0.2, batch_size=8), "suffix": "liked", **options(loraRank=16)}
        job = await account.create_job({"model": BASE, "training_file": pairs, **dpo})
        assert job["hyperparameters"] == {"n_epochs": 3, "batch_size": 8, "beta": 0.2}
        assert (job["method"]["type"], job["model"]) == ("dpo", BASE)

    run(ask())
    assert len(sim.created) == 2


# ------------------------------------------------------------------------------------------------------------- words

SUPERVISED = '"name": "accounts/acme/supervisedFineTuningJobs/j", "dataset": "accounts/acme/datasets/d"'


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (f'{{{SUPERVISED}, "state": "JOB_STATE_CREATING"}}', "validating_files"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_CREATING_INPUT_DATASET"}}', "validating_files"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_VALIDATING"}}', "validating_files"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_PENDING"}}', "queued"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_RE_QUEUEING"}}', "queued"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_IDLE"}}', "queued"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_RUNNING", "jobProgress": {{"percent": 40}}}}', "running"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_ROLLOUT"}}', "running"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_EVALUATION"}}', "running"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_POLICY_UPDATE"}}', "running"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_WRITING_RESULTS"}}', "running"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_CANCELLING"}}', "running"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_PAUSED"}}', "paused"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_COMPLETED", "outputModel": "accounts/acme/models/m"}}', "succeeded"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_EARLY_STOPPED", "outputModel": "m"}}', "succeeded"),
        (
            f'{{{SUPERVISED}, "state": "JOB_STATE_FAILED", "status": {{"code": "INTERNAL", "message": "Oops"}}}}',
            "failed",
        ),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_EXPIRED"}}', "failed"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_CANCELLED"}}', "cancelled"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_DELETING"}}', "cancelled"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_DELETING_CLEANING_UP"}}', "cancelled"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_DELETED"}}', "cancelled"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_ARCHIVED"}}', "cancelled"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_UNSPECIFIED"}}', "running"),
        (f'{{{SUPERVISED}, "state": "JOB_STATE_NAPPING"}}', "running"),
    ],
)
def test_fireworks_words(answer: str, status: str) -> None:
    raw = json.loads(answer)
    shown = shown_job(raw, "acme")
    assert shown["status"] == status
    assert (shown["id"], shown["training_file"], shown["tuneway"]["name"]) == ("j", "d", raw["name"])
    assert shown["tuneway"]["provider_status"] == raw["state"]
    word = raw["state"].removeprefix("JOB_STATE_")
    assert shown["tuneway"].get("unknown_status") == (None if word in STATUSES else raw["state"])
    assert (shown["error"] is not None) == (status == "failed")
    assert shown["fine_tuned_model"] == ("accounts/acme/models/m" if status == "succeeded" else None)
    assert shown["tuneway"].get("percent") == (40 if "percent" in answer else None)


def test_every_word_has_a_row() -> None:
    rows = next(mark for mark in test_fireworks_words.pytestmark if mark.name == "parametrize").args[1]  # type: ignore[attr-defined]
    words = {json.loads(row[0])["state"].removeprefix("JOB_STATE_") for row in rows}
    assert words - {"NAPPING", "UNSPECIFIED"} == set(STATUSES)


def test_a_cost_is_told_in_dollars() -> None:
    cost = {"currencyCode": "USD", "units": "3", "nanos": 250_000_000}
    raw = {"name": "accounts/acme/dpoJobs/j", "state": "JOB_STATE_PENDING", "estimatedCost": cost}
    assert shown_job(raw, "acme")["tuneway"]["estimated_cost_usd"] == 3.25
    raw["estimatedCost"] = {**cost, "currencyCode": "EUR"}
    assert "estimated_cost_usd" not in shown_job(raw, "acme")["tuneway"]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ('{"name": "accounts/acme/datasets/d", "state": "UPLOADING", "status": {"code": "OK"}}', "uploaded"),
        ('{"name": "accounts/acme/datasets/d", "state": "READY"}', "processed"),
        ('{"name": "accounts/acme/datasets/d", "state": "STATE_UNSPECIFIED"}', "uploaded"),
        (
            '{"name": "accounts/acme/datasets/d", "state": "UPLOADING", '
            '"status": {"code": "INTERNAL", "message": "No"}}',
            "error",
        ),
    ],
)
def test_words_of_datasets(answer: str, status: str) -> None:
    shown = shown_file(json.loads(answer))
    assert (shown["id"], shown["filename"], shown["status"]) == ("d", "d.jsonl", status)
    assert shown["bytes"] is None
    assert shown.get("status_details") == ("No" if status == "error" else None)


# ------------------------------------------------------------------------------------------------------------- files


def test_a_file_from_its_upload_to_its_end(sim: FireworksSimulator) -> None:
    async def ask() -> None:
        account = vendor(sim)
        made = await account.upload("train.jsonl", "fine-tune", pieces(ROWS), len(ROWS), 12)
        assert (made["status"], made["bytes"], made["filename"]) == ("uploaded", len(ROWS), "train.jsonl")
        assert made["tuneway"]["rows"] == "12"
        whole = f"accounts/acme/datasets/{made['id']}"
        assert (await account.file(whole))["status"] == "processed"
        async with account.content(made["id"]) as reply:
            assert b"".join([chunk async for chunk in reply.chunks()]) == ROWS
        other = await uploaded(account, PAIRS, "pairs.jsonl")
        listed = await account.list_files({"limit": "1"})
        assert ([file["id"] for file in listed["data"]], listed["has_more"]) == ([other], True)
        rest = await account.list_files({"after": other, "purpose": "fine-tune"})
        assert [file["id"] for file in rest["data"]] == [made["id"]]
        assert [file["id"] for file in (await account.list_files({"order": "asc"}))["data"]] == [made["id"], other]
        assert (await account.list_files({"purpose": "assistants"}))["data"] == []
        assert await account.delete_file(whole) == {"id": made["id"], "object": "file", "deleted": True}
        with pytest.raises(ProviderError) as missing:
            await account.file(made["id"])
        assert (missing.value.status, missing.value.code) == (404, "not_found")

    run(ask())
    assert "authorization" not in sim.asked("signed")[0].headers


def test_a_large_file_goes_to_a_signed_url_without_our_key_and_without_being_held(
    sim: FireworksSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fireworks, "UPLOAD_BYTES", 10**6)
    sim.upload_limit = 10**6
    row = json.dumps({"messages": [*HI["messages"], {"role": "user", "content": "x" * 10**6}]}).encode() + b"\n"
    count = 64

    async def content() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield row

    async def ask() -> Json:
        return await vendor(sim).upload("large.jsonl", "fine-tune", content(), count * len(row), count)

    tracemalloc.start()
    try:
        made = run(ask())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 24 * 10**6, "the simulator itself keeps 8 MB"
    (signed,) = sim.asked("signed")
    assert "authorization" not in signed.headers
    assert (signed.length, signed.headers["content-length"]) == (count * len(row), str(count * len(row)))
    assert [seen.operation for seen in sim.requests][:4] == [
        "create_file",
        "upload_endpoint",
        "signed",
        "validate_upload",
    ]
    assert made["bytes"] == count * len(row)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("operation", "how"),
    [
        ("create_file", "cut_after"),
        ("create_file", "cut_before"),
        ("file", "error_after"),
        ("upload", "cut_before"),
        ("upload", "cut_after"),
        ("upload", "cut_during"),
        ("upload", "error_before"),
        ("validate_upload", "cut_after"),
    ],
)
def test_an_upload_that_broke_off_is_gone_on_with(
    sim: FireworksSimulator, operation: str, how: str, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(fireworks, "UPLOAD_BYTES", 10)
    if operation == "upload":
        operation = "signed" if large else "upload_file"
    sim.fault(operation, how, status=500, times=3)  # of a GET that is tried three times; of others once is enough

    async def ask() -> None:
        account = vendor(sim)
        for _ in range(4):
            try:
                return await _complete(account)
            except (ProviderError, ProviderSilent):
                pass
        raise AssertionError("it never came to an end")

    async def _complete(account: Fireworks) -> None:
        await account.upload("train.jsonl", "fine-tune", pieces(ROWS), len(ROWS), 12)
        while (await account.file(next(iter(sim.files))))["status"] != "processed":
            pass

    run(ask())
    assert list(sim.contents.values()) == [ROWS]
    assert [file["exampleCount"] for file in sim.files.values()] == ["12"]


def test_a_managed_file_is_counted_and_sent_once(sim: FireworksSimulator, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n" + ROWS + b" \n" + ROWS.rstrip(b"\n"))
    file = DataFile(path, "a" * 64, path.stat().st_size, Method.SUPERVISED)

    async def ask() -> None:
        account = vendor(sim)
        account.capabilities = replace(account.capabilities, poll_seconds=0.01)
        remote = Remote("acme-fireworks", account)
        first = await remote.send(file, None)
        assert await remote.send(file, None) == first, "as after a crash that forgot what was sent"
        assert await remote.send(file, first) == first
        await account.delete_file(str(first))
        assert await remote.send(file, first) == first

    run(ask())
    assert [found["exampleCount"] for found in sim.files.values()] == ["24"]
    assert len(sim.asked("upload_file")) == 2
    assert sim.asked("files") == []


@pytest.mark.parametrize("fields", ["before", "behind"])
@pytest.mark.parametrize("piece", [7, 100_000])
def test_a_relayed_file_is_counted_before_it_is_sent(sim: FireworksSimulator, fields: str, piece: int) -> None:
    purpose, none = {"purpose": "fine-tune"}, dict[str, str]()
    content = b"\n" + ROWS + b"  \n" + ROWS.rstrip(b"\n")
    given = {"before": purpose, "behind": none} if fields == "before" else {"before": none, "behind": purpose}
    account = vendor(sim, file_upload_size=str(len(content)))
    made = run(account.relay_upload(form(content, "mine.jsonl", piece=piece, **given)))
    assert (made["filename"], made["bytes"], made["status"]) == ("mine.jsonl", len(content), "processed")
    assert made["id"].startswith("file-")
    assert list(sim.contents.values()) == [content]
    assert [file["exampleCount"] for file in sim.files.values()] == ["24"]
    run(vendor(sim).relay_upload(form(content, "mine.jsonl")))
    assert len(sim.files) == 2, "a client may well want two of one file"


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"before": {"purpose": "batch"}}, "purpose"),
        ({"before": {}, "behind": {"purpose": "assistants"}}, "purpose"),
        ({"before": {}}, "purpose"),
        ({"behind": {"expires_after[anchor]": "created_at"}}, "expires_after[anchor]"),
        ({"name": "train.csv"}, "file"),
        ({"broken_off": True}, None),
        ({"content": b" \n\n"}, "file"),
        ({"content": ROWS[:-1]}, "<file_upload_size>"),
    ],
)
def test_of_a_form_that_must_not_be_nothing_is_asked(
    sim: FireworksSimulator, given: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        run(vendor(sim, file_upload_size=str(len(ROWS))).relay_upload(form(**{"content": ROWS, **given})))
    assert refused.value.param == param
    assert sim.requests == []


def test_a_relayed_file_is_bounded(sim: FireworksSimulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "MOST_BYTES", len(ROWS) - 1)
    with pytest.raises(PayloadTooLarge):
        run(vendor(sim).relay_upload(form(ROWS)))
    assert sim.requests == []


def test_a_full_disk_is_told_as_such(sim: FireworksSimulator) -> None:
    """/dev/full is a disk that is always full."""

    async def write() -> None:
        with open("/dev/full", "wb", buffering=0) as full:
            await spool._write(full, bytearray(b"x"))

    with pytest.raises(OutOfSpace, match="temporary files"):
        run(write())


def test_a_relayed_upload_that_fails_leaves_no_dataset(sim: FireworksSimulator) -> None:
    sim.fault("upload_file", "error_before", status=503)
    with pytest.raises(ProviderError):
        run(vendor(sim).relay_upload(form(ROWS)))
    assert sim.files == {}


# -------------------------------------------------------------------------------------------------------------- jobs


@pytest.mark.parametrize("kind", ["supervised", "dpo"])
def test_a_job_from_its_file_to_its_results(sim: FireworksSimulator, kind: str) -> None:
    async def ask() -> None:
        account = vendor(sim)
        file = await uploaded(account, ROWS if kind == "supervised" else PAIRS)
        job = await account.create_job({"model": QWEN, "training_file": file, **numbers(kind, n_epochs=2)})
        assert "/" not in job["id"]
        assert job["tuneway"]["name"] == sim.created[0]
        assert job["method"]["type"] == kind
        states = [(await account.job(job["id"]))["status"] for _ in range(5)]
        assert states == ["validating_files", "queued", "running", "running", "succeeded"]
        done = await account.job(job["tuneway"]["name"])
        assert done["id"] == job["id"]
        assert done["fine_tuned_model"] == f"accounts/acme/models/{job['id']}"
        assert done["finished_at"] >= done["created_at"]
        assert done["hyperparameters"] == {"n_epochs": 2, "batch_size": "auto"}
        assert done["organization_id"] == "acme"
        assert await account.result_csv(done) is None
        for ask_for in (account.events, account.checkpoints):
            with pytest.raises(UnsupportedOperation):
                await ask_for(job["id"], {})

    run(ask())
    looks = [seen for seen in sim.asked("job") if kind == "dpo" and "dpoJobs" not in seen.path]
    assert looks == [], "an id of ours says of which kind its job is"


def test_a_job_of_anyone_s_is_found_by_its_id(sim: FireworksSimulator) -> None:
    async def ask() -> None:
        account = vendor(sim)
        file = f"accounts/acme/datasets/{await uploaded(account, PAIRS)}"
        body = {"dataset": file, "trainingConfig": {"baseModel": BASE}}
        await account._ask("POST", "/dpoJobs?dpoJobId=theirs", body=body)
        for name in ("theirs", "accounts/acme/dpoJobs/theirs"):
            found = await account.job(name)
            assert (found["id"], found["method"]["type"]) == ("theirs", "dpo")
        with pytest.raises(ProviderError) as missing:
            await account.job("accounts/acme/supervisedFineTuningJobs/theirs")
        assert missing.value.status == 404
        with pytest.raises(InvalidRequest):
            await account.job("accounts/other/dpoJobs/theirs")

    run(ask())


def test_jobs_of_all_kinds_are_listed_newest_first_page_by_page(
    sim: FireworksSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fireworks, "PAGE", 2)

    async def ask() -> None:
        account = vendor(sim)
        file, pairs = await uploaded(account), await uploaded(account, PAIRS, "pairs.jsonl")
        jobs = []
        for number in range(7):
            more = numbers("dpo") if number % 3 == 1 else {}
            data = pairs if more else file
            jobs.append((await account.create_job({"model": QWEN, "training_file": data, **more}))["id"])
        first = await account.list_jobs({"limit": "4"})
        assert ([job["id"] for job in first["data"]], first["has_more"]) == (jobs[:2:-1], True)
        rest = await account.list_jobs({"limit": "4", "after": first["data"][-1]["id"]})
        assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (jobs[2::-1], False)

    run(ask())
    sizes = {seen.query["pageSize"] for seen in sim.asked("jobs")}
    assert (sizes, len(sim.asked("jobs"))) == ({"2"}, 2 * (3 + 1))


def test_a_cancel_cancels_and_nothing_is_destroyed(sim: FireworksSimulator) -> None:
    sim.stop_at = "JOB_STATE_RUNNING"

    async def ask() -> None:
        account = vendor(sim)
        job = await created(account)
        with pytest.raises(JobNotEnded):
            await account.delete_job(job["id"])
        cancelled = await account.change_job(job["id"], "cancel")
        assert (cancelled["id"], cancelled["status"]) == (job["id"], "cancelled")
        with pytest.raises(ProviderError) as refused:
            await account.change_job(job["id"], "cancel")
        assert (refused.value.status, refused.value.code) == (400, "failed_precondition")
        resumed = await account.change_job(job["id"], "resume")
        assert resumed["status"] in ("queued", "running")
        with pytest.raises(UnsupportedOperation):
            await account.change_job(job["id"], "pause")
        assert sim.destroyed == []
        await account.change_job(job["id"], "cancel")
        await account.delete_job(job["id"])

    run(ask())
    assert len(sim.destroyed) == 1


def test_a_failed_job_says_why(sim: FireworksSimulator) -> None:
    async def ask() -> Json:
        account = vendor(sim)
        file = await uploaded(account, PAIRS)
        job = await account.create_job({"model": QWEN, "training_file": file})
        while (found := await account.job(job["id"]))["status"] != "failed":
            pass
        return found

    error = run(ask())["error"]
    assert (error["code"], error["param"]) == ("INVALID_ARGUMENT", None)
    assert "row 1 has no 'messages'" in error["message"]


# ---------------------------------------------------------------------------------------------------- exactly once


def launch(file: str, key: str = "ftjob-1", method: Method = Method.SUPERVISED) -> LaunchSpec:
    spec = JobSpec(QWEN, "file-x", "acme-fireworks", method=method, suffix="mine", seed=7)
    return LaunchSpec(key, spec, Hyperparameters(n_epochs=2), 1, training_file=file, intended_at=1)


@pytest.mark.parametrize("method", [Method.SUPERVISED, Method.DPO])
@pytest.mark.parametrize("how", ["cut_after", "cut_before", "error_after", "cut_during"])
def test_a_create_may_be_sent_again_and_is_found_by_its_key(sim: FireworksSimulator, how: str, method: Method) -> None:
    async def ask() -> None:
        account = vendor(sim)
        remote = Remote("acme-fireworks", account)
        file = await uploaded(account, ROWS if method is Method.SUPERVISED else PAIRS)
        assert await remote.find(launch(file, method=method)) is None
        sim.fault("create_job", how)
        with pytest.raises((ProviderSilent, ProviderError)):
            await remote.launch(launch(file, method=method))
        found = await remote.find(launch(file, method=method))
        assert (found is not None) == (how != "cut_before")
        again = await remote.launch(launch(file, method=method))
        assert found in (None, again)
        assert len(sim.created) == 1
        other = await remote.launch(launch(file, "ftjob-2", method))
        assert other != again
        assert len(sim.created) == 2
        both = [await remote.find(launch(file, key, method)) for key in ("ftjob-1", "ftjob-2")]
        assert both == [again, other]

    run(ask())


def test_a_name_that_is_taken_by_another_model_is_no_job_of_ours(sim: FireworksSimulator) -> None:
    async def ask() -> None:
        account = vendor(sim)
        file = await uploaded(account)
        body = {"model": QWEN, "training_file": file}
        first = await account.create_job({**body, **keyed("one", options={"outputModel": "mine"})})
        sim.finish_job(first["tuneway"]["name"])
        with pytest.raises(ProviderError) as refused:
            await account.create_job({**body, **keyed("two", options={"outputModel": "mine"})})
        assert (refused.value.status, refused.value.param) == (400, "tuneway.options.outputModel")
        assert refused.value.without_effect
        assert await account.job_by_key("two") is None

    run(ask())
    assert len(sim.created) == 1


def test_without_a_key_two_creates_are_two_jobs_and_a_retry_finds_its_first(sim: FireworksSimulator) -> None:
    async def ask() -> None:
        account = vendor(sim)
        relay = Relay(KINDS, Outbound([]).exchange, allowed=True)
        file = await uploaded(account)
        body = {"model": QWEN, "training_file": f"accounts/acme/datasets/{file}", "suffix": "mine"}
        first = await relay.create_job(account, body, retry=0, caller={})
        again = await relay.create_job(account, body, retry=1, caller={})
        assert (again["id"], again["tuneway"]["retried"]) == (first["id"], True)
        second = await relay.create_job(account, body, retry=0, caller={})
        assert second["id"] != first["id"]
        await relay.create_job(account, {**body, "suffix": "other"}, retry=1, caller={})

    run(ask())
    assert len(sim.created) == 3


def test_ids_are_such_as_fireworks_takes(sim: FireworksSimulator) -> None:
    """Small letters, digits and '-', a letter first, at most 63."""
    account = vendor(sim)
    for key in ("ftjob-Ab12Cd34Ef56Gh78Ij90Kl12", "1", "ä" * 100):
        for kind in (Method.SUPERVISED, Method.DPO):
            asked = fireworks.taken_apart({**JOB, **numbers(kind.value), **keyed(key)}, account)
            create = create_of(asked, "acme")
            assert len(create.id) < 63
            assert create.id.replace("-", "").isalnum()
            assert create.id == create.id.lower()
    assert deployment_id("ft:Qwen3:acme::Ab12Cd34").startswith("tuneway-")


def test_a_poll_tells_of_the_job_s_end(sim: FireworksSimulator) -> None:
    async def ask() -> None:
        account = vendor(sim)
        remote, file = Remote("acme-fireworks", account), await uploaded(account)
        handle = await remote.launch(launch(file))
        update = await remote.poll(handle, None)
        said = [event.message for event in update.events]
        while update.status is not JobStatus.SUCCEEDED:
            update = await remote.poll(handle, update.cursor)
            said += [event.message for event in update.events]
        assert update.result is not None
        assert update.result.upstream_model.startswith("accounts/acme/models/mine-")
        assert update.checkpoints == ()
        assert [message.rpartition("JOB_STATE_")[2] for message in said] == [
            state.removeprefix("JOB_STATE_") for state in sim.states[1:]
        ]

    run(ask())


# ---------------------------------------------------------------------------------------------------------- serving


def model_of(sim: FireworksSimulator) -> str:
    async def ask() -> str:
        job = await created(vendor(sim))
        sim.finish_job(job["tuneway"]["name"])
        return str((await vendor(sim).job(job["id"]))["fine_tuned_model"])

    return run(ask())


def test_a_model_is_deployed_once_and_sleeps_until_it_is_asked(sim: FireworksSimulator) -> None:
    account = vendor(sim)
    heard, model = Heard(), tuned(model_of(sim))
    deployment = run(account.serve(model, heard))
    assert deployment is not None
    assert deployment.name == f"accounts/acme/deployments/{deployment_id(model.id)}"
    assert deployment.usd_per_hour is None
    (made,) = sim.deployments.values()
    assert (made["baseModel"], made["minReplicaCount"], made["maxReplicaCount"]) == (model.upstream_model, 0, 1)
    assert made["deploymentShape"] == "default"
    assert len(heard.said) == 1
    assert "503" in heard.said[0]

    async def chat() -> Any:
        upstream = await account.chat(deployment.name)
        body = {"model": deployment.name, "messages": [{"role": "user", "content": "x"}]}
        return await account.line.json("POST", upstream.url, headers=upstream.headers, body=body)

    assert run(chat())["choices"][0]["message"]["content"] == "tuned:x"
    assert run(account.serve(model, heard)) == deployment
    assert (len(sim.deployments), len(heard.said)) == (1, 1)
    run(account.withdraw(replace(model, id=f"{model.id}:ckpt-step-10")))
    assert len(sim.deployments) == 1
    run(account.withdraw(replace(model, deployment=deployment)))
    assert (sim.deployments, model.upstream_model in sim.models) == ({}, False)
    assert sim.asked("delete_deployment")[0].query == {"ignoreChecks": "true"}
    run(account.withdraw(model))


def test_a_deployment_that_was_not_recorded_is_ended_too(sim: FireworksSimulator) -> None:
    account, model = vendor(sim), tuned(model_of(sim))
    run(account.serve(model, Heard()))
    run(account.withdraw(model))
    assert sim.deployments == {}


def test_what_was_made_before_the_gateway_stays(sim: FireworksSimulator) -> None:
    account, model = vendor(sim), tuned(model_of(sim), imported=True)
    run(account.withdraw(model))
    assert model.upstream_model in sim.models


def test_a_model_that_is_deployed_elsewhere_stays_without_an_error(sim: FireworksSimulator) -> None:
    account, model = vendor(sim), tuned(model_of(sim))
    run(account._ask("POST", "/deployments?deploymentId=theirs", body={"baseModel": model.upstream_model}))
    run(account.withdraw(model))
    assert list(sim.deployments) == ["accounts/acme/deployments/theirs"]


@pytest.mark.parametrize("state", ["FAILED", "DELETED"])
def test_a_deployment_that_fails_is_deleted(sim: FireworksSimulator, state: str) -> None:
    account, model = vendor(sim), tuned(model_of(sim))
    sim.set_status(f"accounts/acme/deployments/{deployment_id(model.id)}", state)
    with pytest.raises(JobFailure, match=rf"stays at Fireworks as accounts/acme/models/.*\({state}\)"):
        run(account.serve(model, Heard()))
    assert sim.deployments == {}


def test_without_deployments_the_owner_is_told_what_to_do(sim: FireworksSimulator) -> None:
    heard, model = Heard(), tuned(model_of(sim))
    assert run(vendor(sim, deploy="no").serve(model, heard)) is None
    assert "`deploy` is off" in heard.said[0]
    assert sim.deployments == {}


# ------------------------------------------------------------------------------------------------------ the account


def test_models(sim: FireworksSimulator) -> None:
    mine = model_of(sim)

    async def ask() -> None:
        account = vendor(sim)
        assert [model["id"] for model in (await account.list_models())["data"]] == [mine]
        for name in (QWEN, BASE):
            found = await account.model(name)
            assert (found["id"], found["owned_by"], found["object"]) == (BASE, "fireworks", "model")
        assert await account.delete_model(mine) == {"id": mine, "object": "model", "deleted": True}
        with pytest.raises(ProviderError) as missing:
            await account.model(mine)
        assert missing.value.status == 404
        with pytest.raises(InvalidRequest):
            await account.model("accounts/acme/models/../../other")

    run(ask())


def test_chat_alone_needs_no_account(sim: FireworksSimulator) -> None:
    account = vendor(sim, fireworks_account_id=None)
    assert run(account.chat("any")).url == f"{sim.url}/inference/v1/chat/completions"
    for work in (account.list_jobs({}), account.file("x"), account.list_models()):
        with pytest.raises(InvalidRequest, match="Missing <fireworks_account_id>"):
            run(work)


@pytest.mark.parametrize(
    ("options", "chat"),
    [
        ({}, "https://api.fireworks.ai/inference/v1/chat/completions"),
        ({"base_url": "https://f.example/v1"}, "https://f.example/inference/v1/chat/completions"),
        ({"base_url": "https://f.example/inference/v1/"}, "https://f.example/inference/v1/chat/completions"),
        ({"base_url": "https://f.example/v1/accounts/acme"}, "https://f.example/inference/v1/chat/completions"),
        ({"base_url": "https://f.example"}, "https://f.example/inference/v1/chat/completions"),
        ({"inference_url": "https://i.example/v1/"}, "https://i.example/v1/chat/completions"),
    ],
)
def test_a_url_may_be_given_however_far_down(options: dict[str, str], chat: str) -> None:
    account = vendor(**options)
    assert run(account.chat("any")).url == chat
    assert account._root == ("https://f.example/v1" if "base_url" in options else "https://api.fireworks.ai/v1")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("fireworks_account_id", "../other"),
        ("fireworks_account_id", "Acme"),
        ("fireworks_account_id", "a" * 64),
        ("base_url", "https://f.example@evil.com/v1"),
        ("inference_url", "file:///etc/passwd"),
        ("deploy", "maybe"),
        ("file_upload_size", "many"),
        ("file_upload_size", "0"),
        ("api_key", "a\r\nb"),
    ],
)
def test_options_are_checked(option: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        vendor(**{option: value})
    assert refused.value.param == f"<{option}>"


def test_a_refusal_has_the_vendor_s_words_and_a_word_for_its_number(sim: FireworksSimulator) -> None:
    with pytest.raises(ProviderError) as refused:
        run(vendor(sim, api_key="another-key").list_jobs({}))
    assert (refused.value.status, refused.value.code) == (401, "unauthenticated")
    with pytest.raises(ProviderError) as forbidden:
        run(vendor(sim, fireworks_account_id="other").list_jobs({}))
    assert (forbidden.value.status, forbidden.value.code) == (403, "permission_denied")


def test_what_there_is_to_configure() -> None:
    assert KINDS["fireworks"] is KIND
    assert KIND.not_relayed == {"deploy"}
    assert (CAPABILITIES.seed, CAPABILITIES.metadata, CAPABILITIES.pause) == (False, False, False)
    assert (CAPABILITIES.remote, CAPABILITIES.any_base, CAPABILITIES.suffix) == (True, True, True)
    assert CAPABILITIES.refused_features == {"image_urls", "developer", "functions"}
