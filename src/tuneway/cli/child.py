"""A gateway of our own for the length of a command: a child process that leaves nothing running."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self, cast

from tuneway.cli.exits import Failure
from tuneway.cli.signals import Signals
from tuneway.rundir import SPEC, RunDir

READY_SECONDS = 120.0
STOP_SECONDS = 35.0
"""More than the gateway itself gives open responses and its trainers, which leave a resume point."""


class GatewayProcess:
    """`command` in a session of its own; it prints a line `{"ready": true, "url": …}` and stops on SIGTERM.

    Its stdin is a pipe that nothing is written to: when this process dies without a word, `--stop-on-eof` ends it.
    """

    def __init__(self, command: Sequence[str], data: Path, signals: Signals) -> None:
        self.log = data / "gateway.log"
        self.url = ""
        self._command = command
        self._data = data
        self._signals = signals
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._data.mkdir(mode=0o700, parents=True, exist_ok=True)
            log = self.log.open("ab")
        except OSError as error:
            raise Failure(f"The data folder {self._data} cannot be used: {error.strerror}.") from error
        try:
            with log, self._signals.held():
                self._process = subprocess.Popen(  # noqa: S603
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                )
            self.url = self._wait_ready(self._process)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> str:
        output = cast("IO[bytes]", process.stdout)  # it is a pipe
        deadline = time.monotonic() + READY_SECONDS
        line = b""
        while not line.endswith(b"\n"):
            if time.monotonic() > deadline:
                raise self._failure(f"The gateway was not ready after {READY_SECONDS:.0f} s")
            if select.select([output], [], [], 0.5)[0]:
                piece = os.read(output.fileno(), 4096)
                if not piece:
                    raise self._failure(f"The gateway did not start (exit code {process.wait()})")
                line += piece
        return str(json.loads(line)["url"])

    def _failure(self, message: str) -> Failure:
        last = self.log.read_text(errors="replace").strip().splitlines()[-5:]
        return Failure("\n  ".join([f"{message}. Its log ends:", *last]), hint=f"The whole log: {self.log}")

    def _stop(self) -> None:
        """SIGTERM, patience, then SIGKILL; a second signal from the user ends the patience."""
        process = self._process
        if process is None:
            return
        with self._signals.held():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS
            while process.poll() is None:
                if self._signals.hurry or time.monotonic() > deadline:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.1)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            # Only a gateway that was ready owned the data folder; another's trainers are not ours to end.
            if self.url:
                self._end_trainers()

    def _end_trainers(self) -> None:
        """Ends trainers that outlived a gateway that was killed: they have sessions of their own."""
        for spec in self._data.rglob(SPEC):
            if pid := RunDir(spec.parent).owner():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
