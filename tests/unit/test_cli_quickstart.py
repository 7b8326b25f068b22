"""The quickstart against the stub gateway, and the gateway process that it starts: nothing of it may stay behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli_gateway import BASE, StubGateway
from tuneway.cli.child import GatewayProcess
from tuneway.cli.comparison import Row, Score, parse, score, shown
from tuneway.cli.exits import Exit, Failure
from tuneway.cli.quickstart import examples_folder
from tuneway.cli.serve import named
from tuneway.cli.signals import Interrupted, Signals
from tuneway.rundir import Control, RunDir, RunSpec


@pytest.fixture
def stub() -> Iterator[StubGateway]:
    gateway = StubGateway()
    gateway.start()
    yield gateway
    gateway.stop()


def quickstart(stub: StubGateway, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tuneway", "quickstart", "--url", stub.url, *arguments]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TUNEWAY_")}
    return subprocess.run(command, env=kept, capture_output=True, text=True, timeout=60)


def support_desk(model: str, messages: list[dict[str, Any]]) -> str:
    """The tuned model knows every held-out row by heart; the base answers in prose."""
    if model == BASE:
        return "I am [happy] to help!"
    rows = (examples_folder() / "support_test.jsonl").read_text(encoding="utf-8").splitlines()
    known = {row[-2]["content"]: row[-1]["content"] for row in (json.loads(line)["messages"] for line in rows)}
    return str(known[messages[-1]["content"]])


def test_first_run_trains_and_compares_the_second_reuses(stub: StubGateway) -> None:
    stub.answer = support_desk
    first = quickstart(stub, "--json")
    assert first.returncode == 0, first.stderr
    outcome = json.loads(first.stdout)
    assert outcome["trained"] is True
    assert outcome["base"] == {"rows": 60, "category": 0, "valid_json": 0, "all_keys": 0}
    assert outcome["tuned"] == {"rows": 60, "category": 60, "valid_json": 60, "all_keys": 60}
    assert len(outcome["samples"]) == 3

    second = quickstart(stub)
    assert second.returncode == 0, second.stderr
    assert len(stub.contents) == 2
    assert len(stub.jobs) == 1
    model = stub.models[-1]
    for needed in ("0 of 60    0%", "60 of 60  100%", "I am [happy] to help!", model, "ftjob-1", "file-1", stub.url):
        assert needed in second.stdout

    assert json.loads(quickstart(stub, "--json", "--again").stdout)["trained"] is True
    assert len(stub.jobs) == 2


def test_the_printed_python_runs(stub: StubGateway) -> None:
    stub.answer = support_desk
    out = quickstart(stub).stdout
    lines = out.split("The same steps in Python:\n\n")[1].splitlines()
    code = "\n".join(line.removeprefix("    ") for line in lines)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert '"category"' in done.stdout
    assert len(stub.jobs) == 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_printed_curl_runs(stub: StubGateway) -> None:
    stub.answer = support_desk
    out = quickstart(stub).stdout
    commands = [line.strip() for line in out.splitlines() if line.strip().startswith("curl ")]
    assert len(commands) == 6
    answers = []
    for command in commands:
        done = subprocess.run(["bash", "-c", f"{command} -sS --fail"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        answers.append(json.loads(done.stdout))
    assert "category" in answers[-1]["choices"][0]["message"]["content"]


def test_a_failed_job_is_a_failed_quickstart(stub: StubGateway) -> None:
    stub.outcome = "failed"
    done = quickstart(stub)
    assert (done.returncode, done.stdout) == (Exit.JOB_FAILED, "")
    assert "Too few examples" in done.stderr


def test_a_model_that_was_deleted_is_trained_again(stub: StubGateway) -> None:
    stub.answer = support_desk
    quickstart(stub)
    stub.models.pop()
    assert json.loads(quickstart(stub, "--json").stdout)["trained"] is True


# -------------------------------------------------------------------------------------------------------- the scores


def test_score_counts_each_kind_of_right() -> None:
    row = Row([{"role": "user", "content": "hi"}], {"category": "billing", "urgency": "low"})
    answers = [
        '{"category":"billing","urgency":"low"}',
        '{"category":"billing","urgency":"high"}',
        '{"category":"billing","urgency":"low","more":1}',
        '{"category":"returns","urgency":"low"}',
        'Sure: {"category":"billing","urgency":"low"}',
        '["category"]',
    ]
    assert score([row] * len(answers), answers) == Score(rows=6, category=3, valid_json=4, all_keys=1)
    assert parse("null") is None


def test_samples_show_different_categories() -> None:
    rows = [Row([], {"category": name}) for name in ("a", "a", "b", "a", "c", "d")]
    assert shown(rows, 3) == [0, 2, 4]


def test_set_takes_known_names() -> None:
    assert named(["threads=2", "model_map={}"]) == {"threads": "2", "model_map": "{}"}


# ------------------------------------------------------------------------------------------------ the gateway process

READY = 'print(\'{"ready": true, "url": "http://127.0.0.1:1/v1"}\', flush=True)'
OBEDIENT = f"import sys; {READY}; sys.stdin.read()"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {READY}; signal.pause()"
BROKEN = "import sys; print('reason: no disk', file=sys.stderr); sys.exit(9)"


def command(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_gateway_runs_for_the_block_only(tmp_path: Path) -> None:
    note_pid = f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); "
    with GatewayProcess(command(note_pid + OBEDIENT), tmp_path / "data", Signals()) as child:
        pid = int((tmp_path / "pid").read_text())
        assert alive(pid)
        assert child.url == "http://127.0.0.1:1/v1"
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert not alive(pid)


def test_a_gateway_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(Failure, match=r"exit code 9(.|\n)*reason: no disk"),
        GatewayProcess(command(BROKEN), tmp_path, Signals()),
    ):
        pass


def test_a_stubborn_gateway_and_its_trainer_are_killed(tmp_path: Path) -> None:
    signals = Signals()
    signals.hurry = True
    run = RunDir(tmp_path / "runs" / "one")
    spec = RunSpec("ftjob-1", "", "supervised", 1, 1, 1.0, 0, 1, 1, 1, 1, "float32")
    run.create(spec, Control("run", 1))
    holding = (
        "import signal; from pathlib import Path; from tuneway.rundir import RunDir; "
        f"lock = RunDir(Path({str(run.path)!r})).acquire(); print(flush=True); signal.pause()"
    )
    with subprocess.Popen(command(holding), stdout=subprocess.PIPE, start_new_session=True) as trainer:
        try:
            assert trainer.stdout is not None
            trainer.stdout.readline()
            assert run.owner() == trainer.pid
            with GatewayProcess(command(STUBBORN), tmp_path, signals):
                pass
            assert trainer.wait(timeout=10) == -signal.SIGKILL
        finally:
            trainer.kill()
    assert run.owner() is None


@contextmanager
def driver(data: Path, gateway: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs a gateway until it is interrupted, as the quickstart does; prints the gateway's pid."""
    code = f"""
import signal, sys
from pathlib import Path
from tuneway.cli.child import GatewayProcess
from tuneway.cli.signals import Interrupted, Signals
signals = Signals()
try:
    with signals.handled(), GatewayProcess([sys.executable, "-c", {gateway!r}], Path({str(data)!r}), signals) as child:
        print(child._process.pid, flush=True)
        signal.pause()
except Interrupted as interrupted:
    sys.exit(128 + interrupted.number)
"""
    with subprocess.Popen(command(code), stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    with driver(tmp_path, OBEDIENT) as process:
        assert process.stdout is not None
        gateway = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number
    assert not alive(gateway)


def test_a_second_signal_hurries(tmp_path: Path) -> None:
    terminated = STUBBORN.replace("signal.SIG_IGN", f"lambda *_: open({str(tmp_path / 'asked')!r}, 'w').close()")
    with driver(tmp_path, terminated.replace("signal.pause()", "[signal.pause() for _ in iter(int, 1)]")) as process:
        assert process.stdout is not None
        gateway = int(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        while not (tmp_path / "asked").exists():
            os.sched_yield()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=15) == 128 + signal.SIGINT
    assert not alive(gateway)


def test_signals_wait_for_the_end_of_a_held_block() -> None:
    done: dict[str, bool] = {}
    signals = Signals()

    def interrupt_inside(done: dict[str, bool]) -> Mapping[str, bool]:
        with signals.handled(), signals.held():
            os.kill(os.getpid(), signal.SIGTERM)
            done["remembered"] = True
        return done

    with pytest.raises(Interrupted) as caught:
        interrupt_inside(done)
    assert (caught.value.number, done) == (signal.SIGTERM, {"remembered": True})
    assert signals.hurry is False
