"""Graders of type `python`: really run, in bubblewrap where it works, and refused where they may not run."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest

from tuneway.errors import InvalidRequest
from tuneway.graders import Graders, sandbox
from tuneway.graders.values import Errors, Graded, Python


async def nobody(project: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    raise AssertionError("no judge is asked")


def run(grader: Python, output: str = "", on: bool = True) -> Graded:
    return asyncio.run(Graders(nobody, python_graders=on).run("default", grader, output, {"n": 3}))


def validate(grader: Python, on: bool = True) -> None:
    asyncio.run(Graders(nobody, python_graders=on).validate(grader))


def _why_no_sandbox() -> str | None:
    if not sandbox.available():
        return "bubblewrap is not installed"
    tried = subprocess.run(["bwrap", "--unshare-net", "--ro-bind", "/", "/", "true"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"bubblewrap can make no namespaces here: {tried.stderr.strip()}"


_WHY = _why_no_sandbox()
sandboxed = pytest.mark.skipif(_WHY is not None, reason=str(_WHY))


def test_python_is_refused_unless_the_operator_turned_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for on, path, advice in ((False, None, "python_graders=on"), (True, "/nowhere", "install the package")):
        if path is not None:
            monkeypatch.setenv("PATH", path)
        for refuse in (validate, run):
            with pytest.raises(InvalidRequest, match=advice) as refused:
                refuse(Python("p", "def grade(sample, item): return 1"), on=on)
            assert refused.value.param == "grader.type"


@sandboxed
@pytest.mark.parametrize(
    "source",
    [
        "def grade(sample, item):\n    return sample['output_json']['a'] * item['n']",
        "import math, re, random, json, decimal, difflib, datetime\nprint('x')\ndef grade(sample, item): return 1.5",
        "def grade(sample, item):\n    open('/tmp/x', 'w').write('a')\n    return 1.5",
    ],
)
def test_python_grades(source: str) -> None:
    validate(Python("p", source))
    graded = run(Python("p", source), '{"a": 0.5}')
    assert (graded.reward, graded.errors) == (1.5, Errors())


HOSTILE = {
    "raise ValueError('no')": "ValueError: no",
    "raise SystemExit": "SystemExit",
    "import os; os._exit(3)": "status 3",
    "import os; os.kill(os.getpid(), 9)": "status 137",
    "return 'a'": "finite number, not str",
    "return float('nan')": "finite number",
    "return 10 ** 400": "OverflowError",
    "return [0] * 10 ** 9": "MemoryError",
    "import os; os.fork()": "BlockingIOError",
    "import subprocess; subprocess.run(['/bin/sh'])": "Error",
    "import threading; threading.Thread(target=print).start()": "RuntimeError",
    "import socket; socket.create_connection(('127.0.0.1', {port}))": "ConnectionRefusedError",
    "open('{secret}')": "FileNotFoundError",
    "open('/etc/passwd')": "FileNotFoundError",
    "open('/x', 'w')": "Read-only file system",
    "open('/tmp/x', 'w').write('a' * 2 ** 21)": "File too large",
    "import os; os.closerange(0, 3); [os.write(fd, b'x' * 100_000) for fd in (3, 4)]": "65536 bytes",
    "import os; raise ValueError(dict(os.environ))": "ValueError: {{'PWD': '/tmp', 'LC_CTYPE': 'C.UTF-8'}}",
    "import os; raise ValueError(os.getuid())": "ValueError: 65534",
}


@sandboxed
@pytest.mark.parametrize("body", HOSTILE)
def test_hostile_python_gets_nowhere(body: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "vault.key"
    secret.write_text("secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with asyncio.Runner() as runner:
        listener = runner.run(asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0))
        port = listener.sockets[0].getsockname()[1]
        body, expected = body.replace("{secret}", str(secret)).replace("{port}", str(port)), HOSTILE[body]
        grader = Python("p", f"def grade(sample, item):\n    {body}")
        graded = runner.run(Graders(nobody, python_graders=True).run("default", grader, "", {}))
        listener.close()
    assert (graded.reward, graded.errors.python_grader_runtime_error) == (0, True)
    assert expected.replace("{{", "{").replace("}}", "}") in str(graded.errors.python_grader_runtime_error_details)


@sandboxed
def test_python_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS", 1)
    graded = run(Python("p", "import time\ndef grade(sample, item): time.sleep(600)"))
    assert graded.errors.python_grader_runtime_error_details == "The grader ran for more than 1 seconds."


@sandboxed
def test_python_that_does_not_compile_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="SyntaxError") as refused:
        validate(Python("p", "def grade(:"))
    assert refused.value.param == "grader.source"
    validate(Python("p", "raise SystemExit('only compiled')"))


@sandboxed
def test_a_source_that_is_too_long_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="262144 bytes"):
        run(Python("p", "#" * (sandbox.MAX_SOURCE + 1)))


def test_a_sandbox_that_cannot_be_made_is_no_grade(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    broken.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    graded = run(Python("p", "def grade(sample, item): return 1"))
    assert (graded.reward, graded.errors.python_grader_server_error) == (0, True)
    assert "No permissions" in str(graded.errors.python_grader_server_error_type)
    with pytest.raises(InvalidRequest, match="No permissions"):
        validate(Python("p", "def grade(sample, item): return 1"))
