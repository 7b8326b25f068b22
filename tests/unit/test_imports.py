"""What an import makes of what a vendor shows: result files in their two encodings, and jobs with things left out."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tuneway.imports import values
from tuneway.imports.reading import plain
from tuneway.types import AUTO, JobError, JobStatus, Method

CSV = b"step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n" + b"".join(
    b"%d,1.52347,0.5,,\n" % step for step in range(300)
)


def decoded(content: bytes, size: int) -> bytes:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(content), size):
            yield content[at : at + size]

    async def read() -> bytes:
        return b"".join([piece async for piece in plain(pieces())])

    return asyncio.run(read())


@pytest.mark.parametrize("size", [1, 3, 64, 199, 200, 201, 10**6])
def test_a_result_file_is_plain_however_it_comes(size: int) -> None:
    assert decoded(CSV, size) == CSV
    assert decoded(base64.b64encode(CSV), size) == CSV
    assert decoded(base64.encodebytes(CSV), size) == CSV
    assert decoded(base64.b64encode(b"step,loss\n"), size) == b"step,loss\n"


@pytest.mark.parametrize("content", [b"", b"abcd", b"step\n1\n", b"\xff\xfe" * 300, b"c3RlcA=="])
def test_what_is_no_base64_of_a_table_stays_as_it_is(content: bytes) -> None:
    assert decoded(content, 100) == content


@pytest.mark.parametrize("end", [b"!", b"A"])
def test_base64_that_breaks_off_is_told(end: bytes) -> None:
    with pytest.raises(ValueError):
        decoded(base64.b64encode(CSV[:-2]) + end, 1000)


def job(**more: Any) -> Any:
    wire = {"id": "ftjob-1", "model": "gpt-4o-mini-2024-07-18", "status": "succeeded", "training_file": "file-1"}
    return values.job(
        {**wire, **more}, project="default", provider="openai", training_sha256="", validation_sha256=None
    )


def test_a_job_of_which_little_is_shown() -> None:
    found = job(hyperparameters={"n_epochs": 3, "batch_size": None}, integrations=[{"type": "wandb"}], metadata={})
    assert (found.status, found.spec.method, found.spec.seed) == (JobStatus.SUCCEEDED, Method.SUPERVISED, 0)
    assert (found.spec.hyperparameters.n_epochs, found.spec.hyperparameters.batch_size) == (3, AUTO)
    assert (found.resolved, found.spec.metadata, found.spec.integrations) == (None, None, ())
    assert found.planned_model.startswith("ft:gpt-4o-mini-2024-07-18:default::")


def test_a_suffix_is_what_was_asked_for_or_stands_in_the_name() -> None:
    name = "ft:gpt-4o-mini-2024-07-18:acme:mail:AbCdEfGh"
    assert job(fine_tuned_model=name).spec.suffix == "mail"
    assert job(fine_tuned_model=name, user_provided_suffix="Mail 1").spec.suffix == "Mail 1"
    assert job(fine_tuned_model="ft:gpt-4o-mini-2024-07-18:acme::AbCdEfGh").spec.suffix is None
    assert job(fine_tuned_model="gpt-4o-mini.ft-0123").spec.suffix is None


def test_only_a_failed_job_has_an_error() -> None:
    error = {"code": "invalid_n_examples", "message": "Too few", "param": "training_file"}
    assert job(status="failed", error=error).error == JobError("invalid_n_examples", "Too few", "training_file")
    assert job(status="failed", error=None).error == JobError("server_error", "The provider gave no reason.")
    assert job(status="cancelled", error=error).error is None


def test_numbers_that_no_list_could_show_are_left_out() -> None:
    found = job(hyperparameters={"n_epochs": float("inf"), "batch_size": True, "learning_rate_multiplier": "x"})
    assert found.resolved is None
    points = [
        {"id": "ftckpt_2", "step_number": 20, "fine_tuned_model_checkpoint": "ft:b", "metrics": {"train_loss": "1"}},
        {"id": "ftckpt_1", "step_number": 10, "fine_tuned_model_checkpoint": "ft:a", "metrics": {"train_loss": 0.5}},
        {"id": "ftckpt_0", "step_number": 5},
    ]
    made = values.checkpoints(points, found)
    assert [(point.id, point.metrics) for point in made] == [("ftckpt_1", {"train_loss": 0.5}), ("ftckpt_2", {})]
