"""A gateway that kills itself, once, at a named point: `python crashing.py POINT MARK serve …`.

The points are before and behind transactions of the worker, which no request from outside could hit reliably. `MARK` is
a file that says that it has happened; a gateway that finds it lives on.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuneway.cli import main
from tuneway.store import Store

POINTS = {
    "file sent, not remembered": ("remember_sent", "before"),
    "file remembered": ("remember_sent", "after"),
    "before the intent": ("intend", "before"),
    "intent stored, nothing sent": ("intend", "after"),
    "answered, not confirmed": ("hold", "before"),
    "confirmed, not running": ("hold", "after"),
}


def crash_at(point: str, mark: Path) -> None:
    name, when = POINTS[point]
    write = Store.write

    async def dying(self: Store, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        here = getattr(function, "__name__", "") == name and not mark.exists()
        if here and when == "before":
            _die(mark)
        found = await write(self, function, *args, **kwargs)
        if here:
            _die(mark)
        return found

    Store.write = dying  # type: ignore[method-assign]


def _die(mark: Path) -> None:
    mark.touch()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    crash_at(sys.argv[1], Path(sys.argv[2]))
    sys.argv[1:3] = []
    main()
