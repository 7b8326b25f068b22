"""`python -m tuneway.inference`: one engine on one unix socket, for as long as standard input stays open.

Reads one line of JSON (`Spec`), serves, prints `{"ready": true, "refused": {}}` on standard output. `refused` maps the
names of adapters that cannot be served to the reasons; the others are served all the same.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import threading
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from tuneway.dataset.template import Renderer
from tuneway.inference.adapter_gguf import adapter_gguf
from tuneway.inference.engine import LlamaCpp
from tuneway.inference.server import build_app

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Spec:
    """What the gateway asks for. `base` is a prepared base folder; an adapter's `path` a PEFT folder.

    The socket's folder must be private (0700) and this engine's alone: it is deleted when the engine ends.
    """

    base: str
    adapters: list[dict[str, str]]
    socket: str
    token: str
    threads: int
    context_length: int
    parallel: int


def main() -> None:
    stdin = FileIO(0, closefd=False)  # unbuffered: a thread waits on it until the process ends
    line = stdin.readline()
    if not line:
        return
    spec = Spec(**json.loads(line))
    folder = Path(spec.socket).parent
    threading.Thread(target=_end_with_gateway, args=(stdin, folder), daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    app, refused = _load(spec, folder)
    config = uvicorn.Config(
        app, uds=spec.socket, lifespan="off", access_log=False, log_config=None, server_header=False, ws="none"
    )
    _Server(config, folder, {"ready": True, "refused": refused}).run()


def _load(spec: Spec, folder: Path) -> tuple[Starlette, dict[str, str]]:
    base = Path(spec.base)
    renderer = Renderer(base)
    adapters: dict[str, Path] = {}
    refused: dict[str, str] = {}
    for adapter in spec.adapters:
        try:
            adapters[adapter["name"]] = adapter_gguf(Path(adapter["path"]), base)
        except (OSError, ValueError, KeyError) as error:
            log.warning("adapter %s is left out", adapter["name"], exc_info=error)
            refused[adapter["name"]] = f"{type(error).__name__}: {error}"
    engine = LlamaCpp(
        base / "model.gguf",
        adapters,
        renderer,
        folder,
        threads=spec.threads,
        context_length=spec.context_length,
        parallel=spec.parallel,
    )
    return build_app(engine, renderer, adapters, context_length=spec.context_length, token=spec.token), refused


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


if __name__ == "__main__":
    main()
