"""Signals of a command that starts processes: the first one unwinds it, the next ones hurry the clean-up."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """`hurry` is set by the second signal. The first raises Interrupted, after the `held` block if it is in one."""

    def __init__(self) -> None:
        self.hurry = False
        self._first: int | None = None
        self._held = 0
        self._raised = False

    @contextmanager
    def handled(self) -> Iterator[Signals]:
        """Handles the signals inside the block; those that the parent told us to ignore (nohup) stay ignored."""
        before = {number: signal.getsignal(number) for number in STOPPING}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._on)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """No Interrupted inside the block: for a step and the line that remembers its effect."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self._raise()

    def _on(self, number: int, frame: FrameType | None) -> None:
        if self._first is None:
            self._first = number
            self._raise()
        else:
            self.hurry = True

    def _raise(self) -> None:
        if self._first is not None and not self._held and not self._raised:
            self._raised = True
            raise Interrupted(self._first)
