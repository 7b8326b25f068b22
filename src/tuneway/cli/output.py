"""What commands print: one JSON document or plain lines on stdout, notes and errors on stderr."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer

from tuneway.cli.exits import Exit, Failure
from tuneway.errors import TunewayError

if TYPE_CHECKING:
    from openai import BaseModel


def document(value: Any) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def wire(value: BaseModel) -> dict[str, Any]:
    """What the gateway answered, field for field."""
    return value.to_dict(mode="json")


def note(text: str) -> None:
    """A line for the person at the terminal: stderr."""
    typer.echo(text, err=True)


def lines(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Aligned columns on stdout. Never cut to the terminal's width, so that what is printed can be piped."""
    cells = [list(headers), *([("-" if cell is None else str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    for row in cells:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def facts(pairs: Sequence[tuple[str, object]]) -> None:
    """`name: value` lines on stdout; a value of None is left out."""
    shown = [(name, value) for name, value in pairs if value is not None]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        typer.echo(f"{name + ':':<{width + 1}} {value}")


def when(seconds: int | None) -> str | None:
    """Unix seconds as local time."""
    return None if seconds is None else datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def report(error: Failure | TunewayError, *, as_json: bool) -> int:
    """Says on stderr what went wrong and what to do, with `as_json` also as a document on stdout; the exit code."""
    hint, code, body = None, Exit.FAILED, None
    if isinstance(error, Failure):
        hint, code, body = error.hint, error.code, error.error
    else:
        body = error.envelope()["error"]
    if as_json:
        document({"error": body or {"message": error.message, "type": "cli_error", "param": None, "code": None}})
    note(f"error: {error.message}")
    if hint:
        note(f"\nhint: {hint}")
    return int(code)
