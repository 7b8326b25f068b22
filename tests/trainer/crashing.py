"""Runs the trainer on one run directory again and again, and kills it with SIGKILL at a chosen write, until it ends.

    python crashing.py RUN_DIR KILL_AT [KILL_AT …]

Attempt i dies at its KILL_AT[i]-th system call that changes the disk (write, fsync, rename); a write is then half done.
After the list is used up, the trainer runs undisturbed. torch is imported once; every attempt is a forked process.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import tuneway.trainer.job  # noqa: F401 - imports torch here, so that no attempt has to
from tuneway.trainer.__main__ import main


def kill_at(count: int) -> None:
    """Makes this process kill itself at the `count`-th durable operation."""
    left = count

    def wrapped(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if operation is write:
                    descriptor, data = arguments
                    write(descriptor, data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments)

        return call

    write = os.write
    for name in ("write", "fsync", "rename", "replace"):
        setattr(os, name, wrapped(getattr(os, name)))


def attempt(run_dir: str, count: int | None) -> int:
    """The wait status of one attempt."""
    pid = os.fork()
    if pid == 0:
        if count is not None:
            kill_at(count)
        os._exit(main([run_dir]))
    return os.waitpid(pid, 0)[1]


if __name__ == "__main__":
    run_dir, *counts = sys.argv[1:]
    for count in map(int, counts):
        status = attempt(run_dir, count)
        if not os.WIFSIGNALED(status):
            sys.exit(f"the attempt ended before operation {count}")
    sys.exit(os.waitstatus_to_exitcode(attempt(run_dir, None)))
