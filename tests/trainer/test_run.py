"""The trainer as a process on a run directory: what it leaves there, undisturbed, told to stop, and killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.small_runs import build_run
from tuneway.rundir import EXIT_STOPPED, Control, RunDir, RunResult, TokenExample, write_json

MakeRun = Callable[..., RunDir]

ATTEMPT_KEYS = ("attempt:", "resume:", "version:", "damaged:")


def start(run: RunDir) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tuneway.trainer", str(run.path)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def finish(run: RunDir) -> int:
    process = start(run)
    _, errors = process.communicate(timeout=120)
    assert process.returncode in (0, EXIT_STOPPED), errors
    return process.returncode


def crash(run: RunDir, *counts: int) -> None:
    """Kills attempt after attempt at these numbers of durable operations, then lets one end."""
    command = [sys.executable, str(Path(__file__).with_name("crashing.py")), str(run.path), *map(str, counts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def wait_for(run: RunDir, key: str) -> None:
    """Returns as soon as the trainer has written the event `key`."""
    deadline = time.monotonic() + 60
    while not any(event["key"] == key for event in run.events()[0]):
        assert time.monotonic() < deadline, f"no event {key}"
        time.sleep(0.001)


def facts(run: RunDir) -> dict[str, tuple[Any, ...]]:
    """The job's events by key, without times and speeds; a key that comes again must say the same again."""
    found: dict[str, tuple[Any, ...]] = {}
    for event in run.events()[0]:
        if not event["key"].startswith(ATTEMPT_KEYS):
            said = (event["level"], event["type"], event["message"], event["data"])
            assert found.setdefault(event["key"], said) == said
    return found


def left_behind(run: RunDir) -> dict[str, bytes]:
    """Every file that a reader of the finished run sees, and its bytes."""
    paths = [run.path / "result.csv"]
    paths += [
        path for folder in ("adapter", "checkpoints") for path in (run.path / folder).rglob("*") if path.is_file()
    ]
    return {str(path.relative_to(run.path)): path.read_bytes() for path in paths}


def assert_same_result(run: RunDir, undisturbed: RunDir) -> None:
    assert left_behind(run) == left_behind(undisturbed)
    assert facts(run) == facts(undisturbed)
    ours, theirs = run.result(), undisturbed.result()
    assert ours is not None
    assert theirs is not None
    assert (ours.trained_tokens, ours.steps, ours.error) == (theirs.trained_tokens, theirs.steps, None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, chats: list[TokenExample]) -> RunDir:
    run = build_run(tmp_path_factory.mktemp("runs") / "undisturbed", tiny_base, chats, {})
    assert finish(run) == 0
    return run


def test_what_a_run_leaves(undisturbed: RunDir, chats: list[TokenExample]) -> None:
    run = undisturbed
    result = run.result()
    assert result is not None
    assert (result.steps, result.error) == (24, None)
    assert result.trained_tokens == 8 * sum(len(chat.tokens) for chat in chats)

    events = run.events()[0]
    assert set(events[0]) == {"key", "created_at", "level", "type", "message", "data", "progress"}
    found = {event["key"]: event for event in events}
    assert [key for key in found if key.startswith("step:")] == [f"step:{n}" for n in range(1, 25)]
    assert [key for key in found if key.startswith("ckpt:")] == [f"ckpt:{n}" for n in range(3, 25, 3)]
    plain, validated, last = found["step:1"], found["step:2"], found["step:24"]
    assert plain["type"] == "metrics"
    assert plain["message"] == f"Step 1/24: training loss={plain['data']['train_loss']:.2f}"
    assert set(plain["data"]) == {"step", "total_steps", "train_loss", "train_mean_token_accuracy"}
    assert set(validated["data"]) == {*plain["data"], "valid_loss", "valid_mean_token_accuracy"}
    assert set(last["data"]) == {*validated["data"], "full_valid_loss", "full_valid_mean_token_accuracy"}
    assert last["data"]["valid_loss"] == last["data"]["full_valid_loss"]
    loss, valid = last["data"]["train_loss"], last["data"]["valid_loss"]
    assert last["message"] == (
        f"Step 24/24: training loss={loss:.2f}, validation loss={valid:.2f}, full validation loss={valid:.2f}"
    )
    assert last["progress"]["step"] == last["progress"]["total_steps"] == 24
    assert last["progress"]["seconds_left"] == 0

    rows = (run.path / "result.csv").read_text().splitlines()
    assert rows[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert len(rows) == 25
    assert rows[1] == f"1,{plain['data']['train_loss']:.5f},{plain['data']['train_mean_token_accuracy']:.5f},,"
    assert rows[24].split(",")[3] == f"{valid:.5f}"

    assert [step for step, _ in run.steps("checkpoints")] == [18, 21, 24]
    assert [step for step, _ in run.steps("state")] == [21, 24]
    checkpoint = found["ckpt:24"]
    assert checkpoint["type"] == "checkpoint"
    assert checkpoint["data"] == {
        "step": 24,
        "total_steps": 24,
        "path": "checkpoints/step-00000024",
        "metrics": {name: value for name, value in last["data"].items() if name != "total_steps"},
    }
    newest = (run.path / checkpoint["data"]["path"] / "adapter_model.safetensors").read_bytes()
    assert newest == (run.path / "adapter" / "adapter_model.safetensors").read_bytes()
    assert not list(run.path.rglob("*.tmp"))
    assert run.owner() is None


def test_killed_at_any_write_it_ends_alike(make_run: MakeRun, undisturbed: RunDir) -> None:
    rng = random.Random(20)
    for case in range(5):
        run = make_run(f"killed-{case}")
        crash(run, *(rng.randint(1, 30) for _ in range(4)))
        assert_same_result(run, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_stopped_by_a_signal_it_ends_alike(make_run: MakeRun, undisturbed: RunDir, number: signal.Signals) -> None:
    run = make_run()
    for step in (2, 13):
        process = start(run)
        wait_for(run, f"step:{step}")
        process.send_signal(number)
        process.communicate(timeout=60)
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == EXIT_STOPPED
            newest = run.newest("state")
            assert newest is not None
            assert f"step:{newest[0] + 1}" not in facts(run), "the resume point is older than the last step"
        assert run.result() is None
    assert finish(run) == 0
    assert_same_result(run, undisturbed)


def test_with_two_threads_it_ends_alike(make_run: MakeRun) -> None:
    undisturbed, run = (make_run(name, threads=2, n_epochs=2) for name in ("undisturbed", "killed"))
    assert finish(undisturbed) == 0
    crash(run, 9, 21)
    assert_same_result(run, undisturbed)


def test_signal_before_training_stops_at_once(make_run: MakeRun) -> None:
    run = make_run()
    process = start(run)
    wait_for(run, "attempt:1")
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED
    assert run.result() is None


@pytest.mark.parametrize("control", [Control("pause", 1), Control("cancel", 1), Control("run", 2)])
def test_control_stops_it(make_run: MakeRun, control: Control) -> None:
    run = make_run(n_epochs=2000)
    process = start(run)
    wait_for(run, "step:4")
    run.write_control(control)
    process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED
    newest = run.newest("state")
    steps = [int(key.removeprefix("step:")) for key in facts(run) if key.startswith("step:")]
    assert newest is not None
    if control.desired == "pause":
        assert newest[0] == max(steps)
    assert run.result() is None
    if control.desired != "run":
        assert finish(run) == EXIT_STOPPED, "it must not start while it is not wanted"


def test_a_second_trainer_is_refused(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuneway.trainer import __main__

    run = make_run()
    monkeypatch.setattr(__main__, "LOCK_PATIENCE", 0.0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    lock = run.acquire()
    assert lock is not None
    with lock:
        assert __main__.main([str(run.path)]) == 1
    assert run.events() == ([], 0)


def test_a_finished_run_is_left_alone(make_run: MakeRun) -> None:
    run = make_run()
    run.write_result(RunResult(1, 1, 1))
    assert finish(run) == 0
    assert run.events() == ([], 0)


def test_divergence_is_a_result(make_run: MakeRun) -> None:
    run = make_run(learning_rate=1e30)
    assert finish(run) == 0
    result = run.result()
    assert result is not None
    assert result.error is not None
    assert "diverged" in result.error
    assert "learning_rate_multiplier" in result.error
    assert not (run.path / "adapter").exists()
    assert run.events()[0][-1]["level"] == "error"


def test_other_versions_are_told_and_borne(make_run: MakeRun) -> None:
    run = make_run(n_epochs=1, versions={"torch": "0.1", "python": sys.version.split()[0]})
    assert finish(run) == 0
    (warning,) = [event for event in run.events()[0] if event["level"] == "warn"]
    assert "torch" in warning["message"]
    assert "0.1" in warning["message"]


def test_a_damaged_resume_point_is_passed_over(make_run: MakeRun, undisturbed: RunDir) -> None:
    run = make_run()
    process = start(run)
    wait_for(run, "ckpt:9")
    process.kill()
    process.communicate(timeout=60)
    steps = dict(run.steps("state"))
    (steps[max(steps)] / "optimizer.safetensors").write_bytes(b"\0" * 64)
    assert finish(run) == 0
    assert any(event["key"] == f"damaged:{max(steps)}" for event in run.events()[0])
    assert_same_result(run, undisturbed)


def test_a_torn_event_is_cut(make_run: MakeRun) -> None:
    run = make_run(n_epochs=1)
    (run.path / "events.jsonl").write_bytes(b'{"key": "whole"}\n{"key": "to')
    assert finish(run) == 0
    lines = (run.path / "events.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["key"] for line in lines][:2] == ["whole", "attempt:1"]


def test_bad_arguments_are_refused_in_a_sentence(tmp_path: Path) -> None:
    write_json(tmp_path / "unrelated.json", {})
    command = [sys.executable, "-m", "tuneway.trainer", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 1
    assert "not a run directory" in done.stderr
