"""`tuneway serve`: the gateway, in this process."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Annotated

import typer

from tuneway.cli.options import Config, Data

Host = Annotated[str | None, typer.Option("--host", help="Address to listen on [default: 127.0.0.1].")]
Port = Annotated[int | None, typer.Option("--port", help="Port to listen on; 0 takes a free one [default: 8400].")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other setting; may be given several times.")
]
StopOnEof = Annotated[
    bool, typer.Option("--stop-on-eof", help="Stop when stdin ends: for a parent that must leave nothing running.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON on stdout when ready.")]


def serve(
    host: Host = None,
    port: Port = None,
    data: Data = None,
    config: Config = None,
    set_: Set = None,
    stop_on_eof: StopOnEof = False,
    as_json: Json = False,
) -> None:
    """Start the gateway.

    Ctrl-C stops it; jobs that were running go on at the next start.
    """
    from tuneway import settings

    chosen = settings.load(config, {**named(set_ or []), "host": host, "port": port, "data": data})

    from tuneway import app

    def ready(url: str) -> None:
        line = json.dumps({"ready": True, "url": url})
        typer.echo(line if as_json else f"Tuneway is ready at {url} (data: {chosen.data})")
        sys.stdout.flush()

    if stop_on_eof:
        threading.Thread(target=_stop_at_eof, daemon=True).start()
    raise typer.Exit(app.serve(chosen, on_ready=ready))


def named(pairs: list[str]) -> dict[str, str]:
    """`NAME=VALUE` pairs as a table."""
    from tuneway.settings import SETTINGS

    table = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in {row.name for row in SETTINGS}:
            names = ", ".join(row.name for row in SETTINGS)
            raise typer.BadParameter(f"--set takes NAME=VALUE, not {pair!r}. Names: {names}.")
        table[name] = value
    return table


def _stop_at_eof() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
