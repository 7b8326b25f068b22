"""Clients' Python in a bubblewrap sandbox: no network, no files of this machine but Python's own, no other processes.

Python's standard library and the system's shared libraries are mounted read-only, `/tmp` is 16 MiB of memory. The user
is nobody; limits are those of OpenAI's guide to graders or tighter.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuneway.graders.values import Errors, Sample, Ungraded

MAX_SOURCE = 256 * 1024
"""Bytes of a source, in UTF-8."""

SECONDS = 10
"""Wall-clock time and CPU time, each."""

MEMORY_BYTES = 512 * 2**20
MAX_OUTPUT = 64 * 1024
AT_ONCE = 2

_SCRATCH = "/tmp"  # noqa: S108  # the sandbox's own
_SCRATCH_BYTES = 16 * 2**20
_RUNNER = Path(__file__).with_name("runner.py")
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")


class Rejected(Exception):
    """The source ended badly; the message is its traceback or says how it ended."""


class Unavailable(Exception):
    """The sandbox could not be made; the message is what bubblewrap or Python said."""


class Sandbox:
    """At most AT_ONCE sources run at a time; others wait."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def grade(self, source: str, sample: Sample) -> float:
        """Raises Ungraded."""
        try:
            return await self._run({"source": source, "sample": sample.sample, "item": sample.item})
        except Rejected as error:
            errors = Errors(python_grader_runtime_error=True, python_grader_runtime_error_details=str(error))
        except Unavailable as error:
            errors = Errors(python_grader_server_error=True, python_grader_server_error_type=str(error))
        raise Ungraded(errors)

    async def check(self, source: str) -> None:
        """Compiles the source without running it. Raises Rejected and Unavailable."""
        await self._run({"source": source})

    async def _run(self, asked: dict[str, Any]) -> float:
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise Unavailable("bubblewrap (`bwrap`) is not installed")
        line = json.dumps({**asked, "seconds": SECONDS, "memory_bytes": MEMORY_BYTES}).encode()
        async with self._slots:
            status, out, err = await _communicate([bwrap, *_options(), *_python(), _RUNNER.read_text()], line)
        if not out and err:
            # The runner gives standard error away before the source runs: this is not the source's.
            raise Unavailable(err.decode(errors="replace").strip()[-1000:])
        if len(out) > MAX_OUTPUT:
            raise Rejected(f"The grader wrote more than {MAX_OUTPUT} bytes.")
        return _reward(out, status)


def available() -> bool:
    return shutil.which("bwrap") is not None


async def _communicate(command: Sequence[str], line: bytes) -> tuple[int, bytes, bytes]:
    """The exit status and both outputs, cut after MAX_OUTPUT; the process and all it started are gone.

    Raises Rejected after SECONDS.
    """
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env={})
    try:
        async with asyncio.timeout(SECONDS):
            _, out, err = await asyncio.gather(_feed(process.stdin, line), _read(process.stdout), _read(process.stderr))
            return await process.wait() if len(out) <= MAX_OUTPUT else 0, out, err
    except TimeoutError:
        raise Rejected(f"The grader ran for more than {SECONDS} seconds.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        # To their ends: a pipe that still holds something stays open, without a loop to close it.
        await asyncio.gather(_empty(process.stdout), _empty(process.stderr))


async def _feed(stdin: asyncio.StreamWriter | None, line: bytes) -> None:
    assert stdin is not None
    try:
        stdin.write(line)
        await stdin.drain()
        stdin.close()
        await stdin.wait_closed()
    except (BrokenPipeError, ConnectionResetError):
        # It ended before it had read everything, and says why elsewhere.
        return


async def _read(stream: asyncio.StreamReader | None) -> bytes:
    assert stream is not None
    found = b""
    while len(found) <= MAX_OUTPUT and (chunk := await stream.read(MAX_OUTPUT)):
        found += chunk
    return found


async def _empty(stream: asyncio.StreamReader | None) -> None:
    assert stream is not None
    with suppress(TimeoutError):
        async with asyncio.timeout(SECONDS):
            while await stream.read(MAX_OUTPUT):
                pass


def _reward(out: bytes, status: int) -> float:
    try:
        answer = json.loads(out)
        if "error" in answer:
            raise Rejected(str(answer["error"]).encode(errors="replace").decode())
        reward = float(answer["reward"])
        if not math.isfinite(reward):
            raise ValueError
        return reward
    except (ValueError, LookupError, TypeError, RecursionError):
        ended = f"ended with status {status}" + (" (a signal; most often a limit)" if status > 128 else "")
        raise Rejected(f"The grader gave no answer: it {ended}.") from None


def _options() -> list[str]:
    """bubblewrap's arguments. Root needs no user namespace: the runner becomes nobody, of this machine, by itself."""
    options = [f"--unshare-{own}" for own in ("ipc", "pid", "net", "uts", "cgroup-try")]
    options += ["--die-with-parent", "--new-session", "--hostname", "grader", "--cap-drop", "ALL"]
    if os.geteuid() == 0:
        options += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        options += ["--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534"]
    python, library = _python()[0], Path(sys.base_prefix) / "lib"
    # Made beforehand: folders that bubblewrap makes on the way to a mount are open to its own user alone.
    for folder in (*map(str, reversed(library.parents[:-1])), "/dev", "/etc", "/usr"):
        options += ["--dir", folder]
    for folder in _LIBRARIES:
        if os.path.islink(folder):
            options += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            options += ["--ro-bind", folder, folder]
    for mount, path in (("ro", library), ("ro", python), ("ro", "/etc/ld.so.cache"), ("dev", os.devnull)):
        options += [f"--{mount}-bind-try", str(path), str(path)]
    options += ["--size", str(_SCRATCH_BYTES), "--perms", "0777", "--tmpfs", _SCRATCH, "--chdir", _SCRATCH]
    return [*options, "--remount-ro", "/"]


def _python() -> list[str]:
    """The interpreter that this one's environment was made from, alone: no site-packages, no user's settings."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return [str(Path(sys.base_prefix) / "bin" / name), "-I", "-S", "-B", "-c"]
