"""Trainers as local processes: start, see, stop. Knows run directories and nothing of LoRA.

A trainer outlives the gateway that started it; the next one finds it by the lock of its run directory.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from tuneway.rundir import LOG, RunDir

_LOOK_SECONDS = 0.05


class Executor:
    """Runs `python -m tuneway.trainer RUN_DIR`, each in a session of its own."""

    def __init__(self) -> None:
        self._children: dict[Path, subprocess.Popen[bytes]] = {}

    def start(self, run: RunDir) -> None:
        """Starts a trainer, unless one is at work in this run directory."""
        if self.pid(run) is not None:
            return
        with open(run.path / LOG, "ab") as log:
            self._children[run.path] = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", "tuneway.trainer", str(run.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def pid(self, run: RunDir) -> int | None:
        """The living trainer's process id, also of one that an earlier gateway started."""
        child = self._children.get(run.path)
        if child is not None:
            if child.poll() is None:
                return child.pid
            del self._children[run.path]
        return run.owner()

    async def stop(self, run: RunDir, how: signal.Signals, grace: float) -> None:
        """Sends the signal, and SIGKILL after `grace` seconds; returns when the trainer is gone."""
        pid = self.pid(run)
        if pid is None:
            return
        _signal(pid, how)
        try:
            async with asyncio.timeout(grace):
                await self._gone(run)
        except TimeoutError:
            while (pid := self.pid(run)) is not None:
                _signal(pid, signal.SIGKILL)
                await asyncio.sleep(_LOOK_SECONDS)

    async def _gone(self, run: RunDir) -> None:
        while self.pid(run) is not None:
            await asyncio.sleep(_LOOK_SECONDS)


def _signal(pid: int, how: signal.Signals) -> None:
    try:
        os.killpg(pid, how)  # the trainer leads its session, so its process id is its group's
    except (ProcessLookupError, PermissionError):  # gone, or on macOS a group of nothing but zombies
        return
