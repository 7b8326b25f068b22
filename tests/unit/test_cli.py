"""The command line as a process, against a stub gateway over real HTTP."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli_gateway import BASE, StubGateway
from tuneway import __version__
from tuneway.cli.doctor import package
from tuneway.cli.exits import MEANING, Exit
from tuneway.cli.output import duration

COMMANDS = (
    "serve",
    "quickstart",
    "tune",
    "jobs",
    "files",
    "models",
    "providers",
    "keys",
    "webhooks",
    "chat",
    "doctor",
    "version",
)
SECRET = "sk-a-secret-of-the-vendor"


@pytest.fixture
def stub() -> Iterator[StubGateway]:
    gateway = StubGateway()
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    path = tmp_path / "mail.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "é"}]}\n' * 10, encoding="utf-8")
    return path


def environment(url: str, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TUNEWAY_", "OPENAI_"))}
    return {**kept, "TUNEWAY_URL": url, **more}


def start(*arguments: str, url: str, stdin: Any = subprocess.DEVNULL, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tuneway", *arguments]
    return subprocess.Popen(
        command, env=environment(url, **env), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(*arguments: str, url: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tuneway", *arguments]
    return subprocess.run(command, env=environment(url, **env), input=stdin, capture_output=True, text=True, timeout=60)


def nowhere() -> str:
    """A URL where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}/v1"


# ------------------------------------------------------------------------------------------------------- the surface


def test_help_names_every_command_and_exit_code() -> None:
    done = run("--help", url=nowhere())
    assert done.returncode == 0
    for command in COMMANDS:
        assert f"\n  {command} " in done.stdout
    for code, meaning in MEANING.items():
        assert f"{code:>5}  {meaning}" in done.stdout
    assert set(MEANING) == set(Exit)


def test_the_command_tree_loads_nothing_heavy() -> None:
    heavy = ("openai", "torch", "fastapi", "sqlalchemy", "numpy", "rich", "pydantic", "tuneway.app")
    code = f"import sys, tuneway.cli.root; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_version() -> None:
    assert run("version", url=nowhere()).stdout == f"tuneway {__version__}\n"
    assert run("--version", url=nowhere()).stdout == f"tuneway {__version__}\n"
    assert json.loads(run("version", "--json", url=nowhere()).stdout)["version"] == __version__


def test_no_gateway() -> None:
    done = run("jobs", "list", "--json", url=nowhere())
    assert done.returncode == Exit.UNREACHABLE
    assert "tuneway serve" in done.stderr
    assert "No gateway" in json.loads(done.stdout)["error"]["message"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobs", "show"),
        ("jobs", "show", "ftjob-1", "--colour"),
        ("nothing",),
        ("tune", "no-such-file.jsonl"),
        ("files", "upload", "no-such-file.jsonl"),
        ("files", "download", "file-1", "--json"),
        ("serve", "--set", "colour=red"),
        ("providers", "add", "openai", "--option", "base_url"),
        ("providers", "add", "openai", "--option", "a=1", "--option", "a=2"),
        ("providers", "add", "openai", "--secret-env", "api_key=NOT_SET"),
        ("providers", "add", "openai", "--secret-env", f"api_key={SECRET}"),
        ("providers", "add", "openai", "--secret-file", f"api_key=/none/{SECRET[:4]}"),
        ("providers", "add", "openai", "--api-key", SECRET),
    ],
)
def test_usage_errors(stub: StubGateway, arguments: tuple[str, ...]) -> None:
    done = run(*arguments, url=stub.url)
    assert (done.returncode, done.stdout) == (Exit.USAGE, "")
    assert done.stderr
    assert SECRET not in done.stderr
    assert not stub.accounts


def test_a_refusal_keeps_the_gateways_words(stub: StubGateway) -> None:
    done = run("chat", "gpt-9", "hello", "--json", url=stub.url)
    assert done.returncode == Exit.FAILED
    assert json.loads(done.stdout)["error"]["code"] == "model_not_found"
    assert "The model `gpt-9` does not exist" in done.stderr


def test_another_server_on_the_port() -> None:
    stub = StubGateway()
    stub.start()
    try:
        done = run("files", "show", "file-1", url=stub.url.removesuffix("/v1"))
    finally:
        stub.stop()
    assert done.returncode == Exit.FAILED


def test_loopback_needs_no_proxy(stub: StubGateway) -> None:
    proxy = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), "http://127.0.0.1:9")
    assert run("models", "list", url=stub.url, **proxy).returncode == 0


def test_the_key_of_the_environment_is_sent(stub: StubGateway) -> None:
    run("models", "list", url=stub.url)
    run("models", "list", url=stub.url, TUNEWAY_API_KEY="tnw_secret")
    assert stub.keys == {"Bearer none", "Bearer tnw_secret"}


def test_url_flag_beats_environment(stub: StubGateway) -> None:
    assert run("models", "list", "--url", stub.url, url=nowhere()).returncode == 0


def test_a_closed_pipe_is_no_traceback(stub: StubGateway) -> None:
    stub.models += [f"model-{number}" for number in range(20_000)]
    process = start("models", "list", url=stub.url)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    with process, process.stderr as errors:
        assert "Traceback" not in errors.read()


# --------------------------------------------------------------------------------------------------- files and models


def test_files_from_upload_to_delete(stub: StubGateway, examples: Path, tmp_path: Path) -> None:
    file = run("files", "upload", str(examples), url=stub.url).stdout.strip()
    assert stub.contents[file] == examples.read_bytes()
    assert examples.name in run("files", "list", url=stub.url).stdout
    assert json.loads(run("files", "list", "--json", url=stub.url).stdout)["data"][0]["id"] == file
    assert json.loads(run("files", "show", file, "--json", url=stub.url).stdout) == stub.files[file]
    assert run("files", "download", file, url=stub.url).stdout == examples.read_text(encoding="utf-8")
    copy = tmp_path / "copy.jsonl"
    done = run("files", "download", file, "-o", str(copy), "--json", url=stub.url)
    assert json.loads(done.stdout) == {"id": file, "path": str(copy), "bytes": len(copy.read_bytes())}
    assert copy.read_bytes() == examples.read_bytes()
    assert run("files", "delete", file, url=stub.url).stdout == f"{file} deleted\n"
    assert not stub.files


def test_a_failed_download_leaves_no_file(stub: StubGateway, tmp_path: Path) -> None:
    done = run("files", "download", "file-404", "-o", str(tmp_path / "copy"), url=stub.url)
    assert done.returncode == Exit.FAILED
    assert not list(tmp_path.iterdir())


def test_models(stub: StubGateway) -> None:
    stub.models.append("ft:x")
    assert "ft:x" in run("models", "list", url=stub.url).stdout
    assert json.loads(run("models", "show", "ft:x", "--json", url=stub.url).stdout)["id"] == "ft:x"
    assert run("models", "delete", "ft:x", url=stub.url).stdout == "ft:x deleted\n"
    assert stub.models == [BASE]


# ----------------------------------------------------------------------------------------------------- the providers


def sent(stub: StubGateway) -> Any:
    """The body of the last create of an account."""
    bodies = [body for method, path, body in stub.requests if (method, path) == ("POST", "/v1/tuneway/providers")]
    return bodies[-1]


def test_an_account_from_add_to_remove(stub: StubGateway, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token\n")
    options = ("--kind", "openai", "--option", "base_url=http://127.0.0.1/v1?a=b", "--option", "openai_project=p")
    secrets = ("--secret-env", "api_key=VENDOR_KEY", "--secret-file", f"other={tmp_path / 'token'}")
    done = run("providers", "add", "mine", *options, *secrets, url=stub.url, VENDOR_KEY=SECRET)
    assert (done.returncode, done.stdout) == (0, "mine added\n"), done.stderr
    assert sent(stub) == {
        "name": "mine",
        "kind": "openai",
        "options": {"base_url": "http://127.0.0.1/v1?a=b", "openai_project": "p"},
        "secrets": {"api_key": SECRET, "other": "a-token"},
    }
    shown = run("providers", "show", "mine", url=stub.url).stdout
    assert all(word in shown for word in ("openai_project", "circuit:", "time-out:", "under way, at most"))
    listed = run("providers", "list", url=stub.url).stdout.splitlines()
    assert listed[1].split() == ["mine", "openai", "store", "dpo,supervised", "closed", "0"]
    for verb in ("list", "show", "check"):
        name = () if verb == "list" else ("mine",)
        assert json.loads(run("providers", verb, *name, "--json", url=stub.url).stdout)
    assert run("providers", "check", "mine", url=stub.url).stdout == "mine answers\n"
    stub.silent = {"mine"}
    refused = run("providers", "check", "mine", url=stub.url)
    assert (refused.returncode, "Incorrect API key" in refused.stderr) == (Exit.FAILED, True)
    assert run("providers", "remove", "mine", url=stub.url).stdout == "mine removed\n"
    assert run("providers", "show", "mine", url=stub.url).returncode == Exit.FAILED


def test_kinds_of_accounts(stub: StubGateway) -> None:
    lines = [line.split()[:3] for line in run("providers", "kinds", url=stub.url).stdout.splitlines()[1:]]
    assert lines == [
        ["(every)", "concurrency", "option"],
        ["openai", "api_key", "secret"],
        ["openai", "base_url", "option"],
    ]
    assert json.loads(run("providers", "kinds", "--json", url=stub.url).stdout)["limits"]


def test_a_key_from_stdin(stub: StubGateway) -> None:
    done = run("providers", "add", "openai", "--api-key-stdin", "--json", url=stub.url, stdin=f"{SECRET}\n")
    assert json.loads(done.stdout)["secrets"] == ["api_key"]
    assert sent(stub) == {"name": "openai", "options": {}, "secrets": {"api_key": SECRET}}
    # Without it, stdin is not read: the gateway says what is missing.
    run("providers", "add", "openai", url=stub.url, stdin=f"{SECRET}\n")
    assert sent(stub)["secrets"] == {}


def test_a_key_that_is_asked_for_is_not_shown(stub: StubGateway) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        command = [sys.executable, "-m", "tuneway", "providers", "add", "openai"]
        os.execve(sys.executable, command, environment(stub.url))
    shown, end = b"", time.monotonic() + 60
    try:
        # What is typed before the terminal stops to echo is thrown away.
        while b"not shown" not in shown or termios.tcgetattr(terminal)[3] & termios.ECHO:
            assert time.monotonic() < end, shown
            shown += _read(terminal)
        os.write(terminal, f"{SECRET}\n".encode())
        while b"added" not in shown:
            assert time.monotonic() < end, shown
            shown += _read(terminal)
    finally:
        os.kill(pid, signal.SIGHUP)
        os.close(terminal)
        os.waitpid(pid, 0)
    assert b"openai added" in shown
    assert SECRET.encode() not in shown
    assert sent(stub)["secrets"] == {"api_key": SECRET}


def _read(terminal: int) -> bytes:
    """What came in a moment."""
    ready, _, _ = select.select([terminal], [], [], 0.05)
    return os.read(terminal, 1024) if ready else b""


# ---------------------------------------------------------------------------------------------------------- the jobs


def test_tune_prints_the_models_name_and_nothing_else(stub: StubGateway, examples: Path) -> None:
    asked = ("--epochs", "2", "--learning-rate-multiplier", "0.5", "--suffix", "mail", "--seed", "0")
    done = run("tune", str(examples), "--validation", str(examples), *asked, url=stub.url)
    assert done.returncode == 0
    assert done.stdout == f"{stub.models[-1]}\n"
    assert "step 2/2  loss 0.250  1234 tok/s  1:15 left" in done.stderr
    assert [sent for method, path, sent in stub.requests if (method, path) == ("POST", "/v1/fine_tuning/jobs")] == [
        {
            "model": BASE,
            "training_file": "file-1",
            "validation_file": "file-2",
            "suffix": "mail",
            "seed": 0,
            "method": {
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 2, "learning_rate_multiplier": 0.5}},
            },
        }
    ]


def test_tune_detached_then_listed_shown_and_cancelled(stub: StubGateway, examples: Path) -> None:
    job = run("tune", str(examples), "--detach", url=stub.url).stdout.strip()
    assert stub.jobs[job]["status"] == "validating_files"
    assert job in run("jobs", "list", url=stub.url).stdout
    assert json.loads(run("jobs", "list", "--json", url=stub.url).stdout)["data"][0]["id"] == job
    shown = run("jobs", "show", job, url=stub.url).stdout
    assert "step 1/2" in shown
    assert json.loads(run("jobs", "show", job, "--json", url=stub.url).stdout)["id"] == job
    again = run("tune", "file-1", "--detach", "--json", url=stub.url)
    assert json.loads(again.stdout)["training_file"] == "file-1"
    job = json.loads(again.stdout)["id"]
    for verb, state in (("pause", "paused"), ("resume", "queued")):
        assert run("jobs", verb, job, url=stub.url).stdout == f"{job} {state}\n"
        assert json.loads(run("jobs", verb, job, "--json", url=stub.url).stdout)["tuneway"]["state"] == state
    assert run("jobs", "cancel", job, url=stub.url).returncode == 0
    assert run("jobs", "cancel", job, url=stub.url).returncode == Exit.FAILED


def test_a_job_that_waits_for_a_person(stub: StubGateway, examples: Path) -> None:
    job = run("tune", str(examples), "--detach", url=stub.url).stdout.strip()
    candidates = [{"provider_job_id": "vendor-1", "created_at": 1_790_000_000, "status": "running"}]
    waits = {"state": "needs_attention", "attention": {"reason": "Which is it?", "candidates": candidates}}
    stub.jobs[job]["tuneway"] |= waits
    shown = run("jobs", "show", job, url=stub.url).stdout
    assert "Which is it?" in shown
    assert "vendor-1" in shown
    assert run("jobs", "adopt", job, "vendor-1", url=stub.url).stdout == f"{job} queued\n"
    assert stub.jobs[job]["tuneway"]["provider_job_id"] == "vendor-1"
    assert json.loads(run("jobs", "relaunch", job, "--json", url=stub.url).stdout)["id"] == job
    assert stub.jobs[job]["tuneway"]["provider_job_id"] is None


@pytest.mark.parametrize(("outcome", "code"), [("failed", Exit.JOB_FAILED), ("cancelled", Exit.JOB_CANCELLED)])
def test_the_jobs_end_is_the_exit_code(stub: StubGateway, examples: Path, outcome: str, code: Exit) -> None:
    stub.outcome = outcome
    done = run("tune", str(examples), url=stub.url)
    assert (done.returncode, done.stdout) == (code, "")
    watched = run("jobs", "watch", "ftjob-1", url=stub.url)
    assert (watched.returncode, watched.stdout) == (code, f"ftjob-1 {outcome}\n")
    as_json = run("jobs", "watch", "ftjob-1", "--json", url=stub.url)
    assert (as_json.returncode, json.loads(as_json.stdout)["status"]) == (code, outcome)
    assert ("Too few examples" in as_json.stderr) == (outcome == "failed")


def test_watching_survives_a_restart_of_the_gateway(stub: StubGateway, examples: Path) -> None:
    stub.looks = 1_000_000
    job = run("tune", str(examples), "--detach", url=stub.url).stdout.strip()
    watching = start("jobs", "watch", job, url=stub.url)
    assert watching.stderr is not None
    said = [watching.stderr.readline()]
    assert stub.looked.wait(30)
    stub.stop()
    while "does not answer" not in said[-1]:
        said.append(watching.stderr.readline())
        assert said[-1], "the watcher ended"
    stub.looks = 1
    stub.start()
    out, rest = watching.communicate(timeout=60)
    assert watching.returncode == 0
    assert out == f"{job} succeeded {stub.models[-1]}\n"
    whole = "".join(said) + rest
    for message in ("Created fine-tuning job", "answers again", "successfully completed"):
        assert whole.count(message) == 1


def test_interrupting_the_watcher_leaves_the_job(stub: StubGateway, examples: Path) -> None:
    stub.looks = 1_000_000
    job = run("tune", str(examples), "--detach", url=stub.url).stdout.strip()
    watching = start("jobs", "watch", job, url=stub.url)
    assert watching.stderr is not None
    assert "Created" in watching.stderr.readline()
    watching.send_signal(signal.SIGINT)
    out, errors = watching.communicate(timeout=60)
    assert (watching.returncode, out) == (Exit.INTERRUPTED, "")
    assert f"tuneway jobs cancel {job}" in errors
    assert stub.jobs[job]["status"] == "running"


# --------------------------------------------------------------------------------------------------------------- chat


def test_chat_streams_one_answer(stub: StubGateway) -> None:
    options = ("--system", "Be short.", "--temperature", "0", "--max-tokens", "9")
    done = run("chat", BASE, "Hello", *options, url=stub.url)
    assert done.stdout == f"{BASE}heardyou\n"
    _, _, sent = stub.requests[-1]
    assert sent == {
        "model": BASE,
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"}],
        "temperature": 0,
        "max_tokens": 9,
        "stream": True,
    }


def test_chat_reads_a_message_from_a_pipe(stub: StubGateway) -> None:
    done = run("chat", BASE, "--json", url=stub.url, stdin="From a pipe")
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == f"{BASE} heard you"
    assert stub.requests[-1][2]["messages"] == [{"role": "user", "content": "From a pipe"}]


def test_a_conversation_remembers(stub: StubGateway) -> None:
    stub.answer = lambda model, messages: f"{len(messages)}"
    ours, theirs = pty.openpty()
    try:
        process = start("chat", BASE, url=stub.url, stdin=theirs)
        os.write(ours, b"one\n\ntwo\n\x04")
        out, _ = process.communicate(timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode == 0
    assert [line for line in out.replace("> ", "").splitlines() if line] == ["1", "3"]


def test_a_stream_that_breaks_is_a_failure(stub: StubGateway) -> None:
    stub.break_stream = True
    done = run("chat", BASE, "Hello", url=stub.url)
    assert done.returncode == Exit.FAILED
    assert done.stdout.startswith(BASE)
    assert "The engine ended" in done.stderr


# ------------------------------------------------------------------------------------------------------------- doctor


def doctor(url: str, data: Path) -> dict[str, Any]:
    done = run("doctor", "--json", "--data", str(data), url=url)
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["healthy"] else 1)
    return {check["name"]: check for check in report["checks"]}


def test_doctor_sees_the_gateway_and_the_folder(stub: StubGateway, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    checks = doctor(stub.url, folder)
    assert "made at the first start" in checks["data folder"]["detail"]
    assert not folder.exists()
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    checks = doctor(stub.url, folder)
    assert (checks["data folder"]["status"], checks["data folder"]["fix"]) == ("warning", f"chmod 700 {folder}")


def test_doctor_asks_the_accounts(stub: StubGateway, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run("providers", "add", name, url=stub.url)
    stub.silent = {"two"}
    checks = doctor(stub.url, tmp_path / "data")
    assert (checks["provider one"]["status"], checks["provider two"]["status"]) == ("ok", "warning")
    assert "Incorrect API key" in checks["provider two"]["detail"]


def test_doctor_fails_on_what_is_essential(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    done = run("doctor", "--data", str(file / "data"), url=nowhere())
    assert done.returncode == Exit.FAILED
    assert "\ndata folder: " in done.stdout
    assert package("no_such_package").status == "missing"


def test_a_wrong_setting_is_named() -> None:
    done = run("doctor", url=nowhere(), TUNEWAY_COLOUR="red")
    assert done.returncode == Exit.FAILED
    assert "TUNEWAY_COLOUR" in done.stderr


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (125, "2:05"), (3725, "1:02:05")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
