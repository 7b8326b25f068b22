"""Runs inside the sandbox: `grade(sample, item)` of a client's source. Standard library only, read as text.

Standard input is `{"source", "sample", "item", "seconds", "memory_bytes"}`, all of it read before the source runs;
without "sample" the source is only compiled. Standard output is `{"reward"}` or `{"error"}`.
"""

import json
import linecache
import math
import os
import resource
import sys
import traceback
from types import CodeType
from typing import Any

_NOBODY = 65534
_LARGEST_FILE = 2**20
_DETAILS = 4000
_NAME = "<grader>"


def _confine(seconds: int, memory_bytes: int) -> None:
    """What it takes away cannot be had back: it lowers hard limits and, started as root, becomes nobody."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: _LARGEST_FILE,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for name, limit in limits.items():
        resource.setrlimit(name, (limit, limit))


def _grade(code: CodeType, sample: Any, item: Any) -> float:
    names: dict[str, Any] = {"__name__": "grader"}
    exec(code, names)  # noqa: S102  # this is what the sandbox is for
    grade = names.get("grade")
    if not callable(grade):
        raise TypeError("the source must define grade(sample, item)")
    reward = grade(sample, item)
    if not isinstance(reward, int | float) or not math.isfinite(reward):
        raise TypeError(f"grade(sample, item) must return a finite number, not {type(reward).__name__}")
    return float(reward)


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    try:
        source = asked["source"]
        linecache.cache[_NAME] = (len(source), None, source.splitlines(keepends=True), _NAME)
        code = compile(source, _NAME, "exec", dont_inherit=True)
        return {"reward": _grade(code, asked["sample"], asked["item"]) if "sample" in asked else 0}
    except BaseException as error:  # SystemExit too: whatever ends the source is its result
        kept = error.__traceback__
        while kept is not None and kept.tb_frame.f_code.co_filename != _NAME:
            kept = kept.tb_next
        return {"error": "".join(traceback.format_exception(type(error), error, kept))[-_DETAILS:]}


def main() -> None:
    asked = json.load(sys.stdin.buffer)
    _confine(asked["seconds"], asked["memory_bytes"])
    out = os.dup(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nothing, descriptor)
    os.write(out, json.dumps(_answer(asked)).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
