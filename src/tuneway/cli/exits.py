"""How a command ends: the one table of exit codes, and the exception that carries one."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    JOB_FAILED = 4
    JOB_CANCELLED = 5
    INTERRUPTED = 130


MEANING: Mapping[Exit, str] = {
    Exit.OK: "done",
    Exit.FAILED: "the request was refused, or something here failed",
    Exit.USAGE: "the command line is not valid",
    Exit.UNREACHABLE: "no gateway answers at the URL",
    Exit.JOB_FAILED: "the job failed",
    Exit.JOB_CANCELLED: "the job was cancelled",
    Exit.INTERRUPTED: "interrupted by Ctrl-C; 128 + N for another signal N",
}


def table() -> str:
    """The exit codes as lines of text, for `--help` and the documentation."""
    return "Exit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in MEANING.items())


class Failure(Exception):
    """The command cannot go on: what happened, what to do next (`hint`), and the code to exit with.

    `error` is the gateway's own error object, where the gateway refused the request.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        code: Exit = Exit.FAILED,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
        self.error = error
