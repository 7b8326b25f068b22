"""`python -m tuneway.trainer RUN_DIR`: trains what a run directory asks for. See `tuneway.rundir` for the directory.

Ends with status 0 when `result.json` is written, 75 (`EXIT_STOPPED`) when it was told to stop, 1 when it cannot start.
SIGTERM, SIGINT and `pause` leave a resume point; `cancel`, and a newer attempt, end at once. After any end, `kill -9`
included, the same command goes on.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import IO

from tuneway.rundir import EXIT_STOPPED, Control, RunDir, RunSpec
from tuneway.trainer.journal import Journal

LOCK_PATIENCE = 5.0
"""Seconds to wait for the lock: whoever asks who holds it, holds it for a moment."""


class Stop:
    """Why to stop, if at all: a signal, or a word in `control.json`."""

    def __init__(self, run: RunDir, attempt: int) -> None:
        self._run = run
        self._attempt = attempt
        self._signalled = False
        self._training = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._training:  # imports and loading take seconds and leave nothing to save
            os._exit(EXIT_STOPPED)
        self._signalled = True

    def training_begins(self) -> None:
        """From now on a signal is answered by the loop, between two micro-batches."""
        self._training = True

    def at_once(self) -> bool:
        """Nobody wants what is being computed: cancelled, or another attempt has taken over."""
        control = self._control()
        return control.desired == "cancel" or control.attempt > self._attempt

    def __call__(self) -> bool:
        return self._signalled or self.at_once() or self._control().desired == "pause"

    def _control(self) -> Control:
        return self._run.control() or Control("run", self._attempt)


def main(argv: list[str]) -> int:
    """The command; returns the exit status."""
    if len(argv) != 1:
        return _refuse("usage: python -m tuneway.trainer RUN_DIR")
    run = RunDir(Path(argv[0]))
    spec, control = run.spec(), run.control()
    if spec is None or control is None:
        return _refuse(f"{run.path} is not a run directory: spec.json or control.json is missing")
    stop = Stop(run, control.attempt)
    lock = _acquire(run)
    if lock is None:
        return _refuse(f"another trainer works on {run.path}; wait for it, or stop it")
    with lock:
        if run.result() is not None:
            return 0
        if stop():
            return EXIT_STOPPED
        journal = Journal(run.path)
        journal.write(
            f"attempt:{control.attempt}",
            f"Trainer started (attempt {control.attempt}, {spec.threads} CPU threads, {spec.dtype})",
        )
        _warn_of_other_versions(spec, journal)
        # torch's thread pools and the hub client read these once, at import.
        os.environ["OMP_NUM_THREADS"] = str(spec.threads)
        # libgomp's threads spin 300,000 times before they sleep. On a machine that also chats, or tests, a step took up
        # to ten times as long by that; with this many spins a free machine is as fast as before.
        os.environ["GOMP_SPINCOUNT"] = "20000"
        # Threads that wait for each other sleep, they do not spin. Spinning gains nothing measurable on a free machine;
        # on one that also chats, or tests, steps took up to ten times as long with it.
        os.environ["HF_HUB_OFFLINE"] = "1"
        from tuneway.trainer.job import run_job  # takes seconds: after the first event

        return run_job(run, spec, control.attempt, journal, stop)


def _acquire(run: RunDir) -> IO[bytes] | None:
    deadline = time.monotonic() + LOCK_PATIENCE
    while (lock := run.acquire()) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return lock


def _warn_of_other_versions(spec: RunSpec, journal: Journal) -> None:
    """Bit-equal resume holds for the versions that the job started with."""
    for package, wanted in spec.versions.items():
        try:
            found = _version(package)
        except metadata.PackageNotFoundError:
            found = "not installed"
        if found != wanted:
            journal.write(
                f"version:{package}:{found}",
                f"{package} is {found}, the job began with {wanted}: its result may differ in the last digits",
                level="warn",
            )


def _version(package: str) -> str:
    return sys.version.split()[0] if package == "python" else metadata.version(package)


def _refuse(sentence: str) -> int:
    sys.stderr.write(f"{sentence}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
