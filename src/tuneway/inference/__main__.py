"""`python -m tuneway.inference`: one engine on one unix socket, for as long as standard input stays open.

Reads one line of JSON (`Spec`), serves, prints `{"ready": true, "refused": {}}` on standard output. `refused` maps the
names of adapters that cannot be served to the reasons; the others are served all the same.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette

from tuneway.dataset.template import Renderer
from tuneway.inference.adapter_gguf import adapter_gguf
from tuneway.inference.child import read_spec, serve
from tuneway.inference.llama import LlamaCpp
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
    given = read_spec()
    if given is None:
        return
    spec = Spec(**given)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    app, refused = _load(spec, Path(spec.socket).parent)
    serve(app, spec.socket, {"ready": True, "refused": refused})


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


if __name__ == "__main__":
    main()
