"""Kills, at chosen moments and at random ones: nothing lost, nothing doubled, the same bytes in the end."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Callable

import openai
import psutil
import pytest

from tests.acceptance.gateway import (
    Gateway,
    adapter_bytes,
    alive,
    ask,
    ended,
    events,
    eventually,
    jsonl,
    reached,
    rows,
    steps,
    succeeded,
    tune,
    upload,
)

EPOCHS = 40
END_TOKENS = (0, 2)  # of the tiny base: <|endoftext|> and <|im_end|>
STEPS = EPOCHS * 3
KILLS = 200 if "SOAK" in os.environ else 20


@pytest.fixture(scope="session")
def undisturbed(shared: Gateway) -> bytes:
    """The adapter that this job gives when nothing happens to it."""
    job = tune(shared.client, epochs=EPOCHS)
    succeeded(shared.client, job.id)
    return adapter_bytes(shared, job.id)


def whole(gateway: Gateway, job: str, expected: bytes) -> None:
    """The job succeeded, every step is there once, and the adapter is the undisturbed one."""
    client = gateway.client
    done = succeeded(client, job)
    assert steps(client, job) == list(range(1, STEPS + 1))
    keys = [event.id for event in events(client, job)]
    assert len(keys) == len(set(keys))
    assert adapter_bytes(gateway, job) == expected
    assert done.fine_tuned_model is not None
    assert isinstance(ask(client, done.fine_tuned_model), str)


def test_a_killed_gateway_finds_its_trainer_again(gateway: Gateway, undisturbed: bytes) -> None:
    job = tune(gateway.client, epochs=EPOCHS)
    trainer = gateway.trainer(job.id)
    reached(gateway.client, job.id, 5)
    gateway.kill()
    assert alive(trainer)
    gateway.start()
    # None where it has ended meanwhile: the tiny model may be faster than the gateway.
    assert gateway.run(job.id).owner() in (trainer, None)
    whole(gateway, job.id, undisturbed)
    assert not [event for event in events(gateway.client, job.id) if "attempt 2" in event.message]


def test_a_killed_trainer_goes_on(gateway: Gateway, undisturbed: bytes) -> None:
    job = tune(gateway.client, epochs=EPOCHS)
    trainer = gateway.trainer(job.id)
    reached(gateway.client, job.id, 30)
    os.kill(trainer, signal.SIGKILL)
    whole(gateway, job.id, undisturbed)
    assert [event for event in events(gateway.client, job.id) if "attempt 2" in event.message]


def test_both_killed(gateway: Gateway, undisturbed: bytes) -> None:
    job = tune(gateway.client, epochs=EPOCHS)
    trainer = gateway.trainer(job.id)
    reached(gateway.client, job.id, 30)
    gateway.kill()
    os.kill(trainer, signal.SIGKILL)
    gateway.start()
    whole(gateway, job.id, undisturbed)


def test_an_orderly_stop_leaves_nothing_running_and_the_job_goes_on(gateway: Gateway, undisturbed: bytes) -> None:
    job = tune(gateway.client, epochs=EPOCHS)
    trainer = gateway.trainer(job.id)
    reached(gateway.client, job.id, 10)
    assert gateway.stop() == 0
    assert not alive(trainer)
    gateway.start()
    whole(gateway, job.id, undisturbed)


def test_an_orderly_stop_ends_a_trainer_that_an_earlier_gateway_started(gateway: Gateway) -> None:
    job = tune(gateway.client, epochs=50)
    trainer = gateway.trainer(job.id)
    gateway.kill()
    gateway.start()
    assert gateway.stop() == 0
    assert not alive(trainer)


def test_ctrl_c_while_files_are_checked_costs_nothing(gateway: Gateway) -> None:
    many = jsonl(rows() * 4000)
    job = tune(gateway.client, upload(gateway.client, many), epochs=1)
    (check,) = eventually(lambda: gateway.children("tuneway.dataset"))
    os.kill(gateway.pid, signal.SIGINT)
    gateway.stop()
    assert not alive(check.pid)
    gateway.start()
    eventually(lambda: [event for event in events(gateway.client, job.id) if "has 48000 examples" in event.message])


def test_a_killed_check_is_tried_again(gateway: Gateway) -> None:
    job = tune(gateway.client, upload(gateway.client, jsonl(rows() * 4000)), epochs=1)
    (check,) = eventually(lambda: gateway.children("tuneway.dataset"))
    check.kill()
    eventually(lambda: [event for event in events(gateway.client, job.id) if "has 48000 examples" in event.message])


def test_nothing_is_left_of_a_job_but_what_it_made(gateway: Gateway) -> None:
    client = gateway.client
    done = succeeded(client, tune(client, epochs=1).id)
    run = gateway.run(done.id).path
    eventually(lambda: not (run / "state").exists() and not (run / "data").exists())
    assert [p.pid for p in psutil.Process(gateway.pid).children() if p.status() == psutil.STATUS_ZOMBIE] == []
    client.models.delete(done.fine_tuned_model or "")
    assert not list(run.rglob("*.safetensors"))
    failed = tune(client, upload(client, jsonl(rows(3))))
    ended(client, failed.id)
    eventually(lambda: not gateway.run(failed.id).path.exists())


def test_a_cancelled_jobs_trainer_is_gone_in_ten_seconds(gateway: Gateway) -> None:
    job = tune(gateway.client, epochs=50)
    trainer = gateway.trainer(job.id)
    gateway.client.fine_tuning.jobs.cancel(job.id)
    gone = threading.Event()
    threading.Timer(10, gone.set).start()
    while alive(trainer):
        assert not gone.wait(0.05), "the trainer is still there"
    assert ended(gateway.client, job.id).status == "cancelled"


def test_a_cancel_survives_a_kill(gateway: Gateway) -> None:
    job = tune(gateway.client, epochs=50)
    trainer = gateway.trainer(job.id)
    os.kill(trainer, signal.SIGSTOP)
    gateway.client.fine_tuning.jobs.cancel(job.id)
    gateway.kill()
    gateway.start()
    eventually(lambda: not alive(trainer))
    assert gateway.client.fine_tuning.jobs.retrieve(job.id).status == "cancelled"


def test_a_trainer_that_never_gets_further_fails_its_job(gateway: Gateway) -> None:
    job = tune(gateway.client, epochs=50)
    killed = set()

    def failed() -> bool:
        trainer = gateway.run(job.id).owner()
        if trainer is not None and trainer not in killed:
            killed.add(trainer)
            os.kill(trainer, signal.SIGKILL)
        return gateway.client.fine_tuning.jobs.retrieve(job.id).status == "failed"

    eventually(failed)
    error = gateway.client.fine_tuning.jobs.retrieve(job.id).error
    assert error is not None
    assert error.code == "server_error"
    assert "3 times without getting further" in (error.message or "")


def test_a_killed_engine_ends_its_stream_with_an_error_and_the_next_request_works(gateway: Gateway) -> None:
    client = gateway.client
    ask(client, "tiny")
    (engine,) = gateway.engines()
    never_ending = {str(token): -100 for token in END_TOKENS}
    stream = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "go on"}], stream=True, logit_bias=never_ending
    )
    next(stream)
    engine.suspend()  # a tiny model would be done before the kill arrives
    engine.kill()
    with stream, pytest.raises(openai.APIError) as broken:
        list(stream)
    assert broken.value.type == "upstream_error"
    assert isinstance(ask(client, "tiny"), str)


def test_engines_end_with_a_killed_gateway(gateway: Gateway) -> None:
    ask(gateway.client, "tiny")
    (engine,) = gateway.engines()
    gateway.kill()
    eventually(lambda: not alive(engine.pid))


def test_a_second_gateway_on_the_same_folder_is_refused(gateway: Gateway, make: Callable[..., Gateway]) -> None:
    second = make(gateway.data)
    process = second.spawn()
    out, _ = process.communicate()
    assert process.returncode != 0
    assert "Another gateway" in json.loads(out)["error"]["message"]
    assert upload(gateway.client)


def test_random_kills(gateway: Gateway, undisturbed: bytes) -> None:
    """KILLS seeded kills of gateway, trainer or both, over as many jobs as it takes."""
    dice = random.Random(20261122)
    left = KILLS
    while left:
        job = tune(gateway.client, epochs=EPOCHS)
        alone = 0  # deaths of the trainer that this gateway may count: three without a new step would fail the job
        for _ in range(min(left, 4)):
            left -= 1
            pause = threading.Event()
            pause.wait(dice.uniform(0.0, 4.0))  # not for anything to happen: a random moment is what is tested
            victims = dice.choice(("gateway", "trainer", "both")) if alone < 2 else "both"
            # A new gateway starts to count anew, with the death that it finds.
            alone = {"trainer": alone + 1, "both": 1, "gateway": min(alone, 1)}[victims]
            trainer = gateway.run(job.id).owner()
            if victims != "trainer":
                gateway.kill()
            if victims != "gateway" and trainer is not None:
                os.kill(trainer, signal.SIGKILL)
            if victims != "trainer":
                gateway.start()
        whole(gateway, job.id, undisturbed)
