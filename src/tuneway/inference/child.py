"""The life of an inference child: one line of JSON in, one socket served, gone when standard input ends."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from io import FileIO
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp


def read_spec() -> dict[str, Any] | None:
    """The line that the gateway sends; None when there is no gateway any more.

    From here on the process ends with standard input, and with it the folder of its socket.
    """
    stdin = FileIO(0, closefd=False)  # unbuffered: a thread waits on it until the process ends
    line = stdin.readline()
    if not line:
        return None
    spec: dict[str, Any] = json.loads(line)
    folder = Path(spec["socket"]).parent
    threading.Thread(target=_end_with_gateway, args=(stdin, folder), daemon=True).start()
    return spec


def serve(app: ASGIApp, socket: str, ready: dict[str, Any]) -> None:
    """Serves `app` on a unix socket until it is told to end; prints `ready` on standard output when it does."""
    config = uvicorn.Config(
        app, uds=socket, lifespan="off", access_log=False, log_config=None, server_header=False, ws="none"
    )
    _Server(config, Path(socket).parent, ready).run()


class _Server(uvicorn.Server):
    """Says when it serves, and leaves at once when told to: there is no state to save."""

    def __init__(self, config: uvicorn.Config, folder: Path, ready: dict[str, Any]) -> None:
        super().__init__(config)
        self._folder = folder
        self._ready = ready

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        sys.stdout.write(json.dumps(self._ready) + "\n")
        sys.stdout.flush()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn installs this after the engine was made, so it replaces the handlers that llama.cpp installed.
        _leave(self._folder)


def _end_with_gateway(stdin: FileIO, folder: Path) -> None:
    while stdin.read(4096):
        pass
    _leave(folder)


def _leave(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)
