"""Pause in the middle of training, survive what may happen meanwhile, and end with the bytes of an undisturbed run."""

from __future__ import annotations

import os
import signal

import pytest

from tests.acceptance.gateway import (
    Gateway,
    adapter_bytes,
    alive,
    events,
    eventually,
    reached,
    steps,
    succeeded,
    tune,
)

EPOCHS = 30
STEPS = EPOCHS * 3


@pytest.fixture(scope="module")
def undisturbed(shared: Gateway) -> bytes:
    """The adapter that this job gives when nothing happens to it."""
    job = tune(shared.client, epochs=EPOCHS)
    succeeded(shared.client, job.id)
    return adapter_bytes(shared, job.id)


def state(gateway: Gateway, job: str) -> str:
    extension = gateway.client.fine_tuning.jobs.retrieve(job).to_dict()["tuneway"]
    assert isinstance(extension, dict)
    return str(extension["state"])


def said(gateway: Gateway, job: str, words: str) -> list[str]:
    return [event.message for event in events(gateway.client, job) if words in event.message]


def test_a_paused_job_outlives_its_gateway_and_ends_with_the_same_bytes(gateway: Gateway, undisturbed: bytes) -> None:
    job = tune(gateway.client, epochs=EPOCHS).id
    trainer = gateway.trainer(job)
    reached(gateway.client, job, 5)
    gateway.client.fine_tuning.jobs.pause(job)
    eventually(lambda: state(gateway, job) == "paused")
    assert not alive(trainer)
    at = max(steps(gateway.client, job))
    assert 5 <= at < STEPS
    assert said(gateway, job, "Job paused at") == [f"Job paused at step {at}"]
    gateway.kill()
    gateway.start()
    assert state(gateway, job) == "paused"
    gateway.client.fine_tuning.jobs.resume(job)

    reached(gateway.client, job, at + 1)
    trainer = gateway.trainer(job)  # once more, and withdrawn while the trainer is told
    os.kill(trainer, signal.SIGSTOP)
    gateway.client.fine_tuning.jobs.pause(job)
    eventually(lambda: (found := gateway.run(job).control()) is not None and found.desired == "pause")
    gateway.client.fine_tuning.jobs.resume(job)
    os.kill(trainer, signal.SIGCONT)

    succeeded(gateway.client, job)
    assert steps(gateway.client, job) == list(range(1, STEPS + 1))
    assert adapter_bytes(gateway, job) == undisturbed
    assert said(gateway, job, f"Training goes on after step {at}")
    assert not said(gateway, job, "interrupted")


def test_a_pause_that_a_kill_cuts_off_is_made_good(gateway: Gateway) -> None:
    """Gateway and trainer die while the trainer should save: the job is paused, and a cancel frees all of it."""
    jobs = gateway.client.fine_tuning.jobs
    job = tune(gateway.client, epochs=50).id
    trainer = gateway.trainer(job)
    reached(gateway.client, job, 5)
    os.kill(trainer, signal.SIGSTOP)
    jobs.pause(job)
    assert state(gateway, job) == "pausing"
    gateway.kill()
    gateway.start()
    assert state(gateway, job) == "pausing"
    os.kill(trainer, signal.SIGKILL)
    eventually(lambda: state(gateway, job) == "paused")
    assert gateway.run(job).owner() is None
    assert gateway.client.fine_tuning.jobs.cancel(job).status == "cancelled"
    run = gateway.run(job).path
    eventually(lambda: not (run / "state").exists() and not (run / "data").exists())
