"""Writes docs/reference from the code: settings, errors, the command line. `--check` only says whether it is true.

A page that is written by hand beside a table goes stale; these cannot.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import typer
from typer.core import TyperGroup

from tuneway import api, errors
from tuneway.cli import root
from tuneway.settings import SETTINGS

FOLDER = Path(__file__).parent.parent / "docs" / "reference"


def commands(group: TyperGroup, path: str = "") -> Iterator[str]:
    """Every command that does something, in the order of the help."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, f"{path}{name} ")
        else:
            yield path + name


def settings() -> str:
    rows = [
        "# Settings",
        "",
        "Default < `tuneway.toml` (in the working folder, or `--config FILE`) < environment < flag of `tuneway serve`.",
        "An unknown name is an error.",
        "",
        "| setting | environment | default | what it does |",
        "|---|---|---|---|",
    ]
    for row in SETTINGS:
        default = "–" if row.default in (None, (), {}) else f"`{row.default}`"
        rows.append(f"| `{row.name}` | `{row.environment}` | {default} | {row.help} |")
    return "\n".join(rows) + "\n"


def error_classes(base: type[errors.TunewayError], depth: int = 0) -> Iterator[tuple[int, type[errors.TunewayError]]]:
    for found in base.__subclasses__():
        yield depth, found
        yield from error_classes(found, depth + 1)


def error_page() -> str:
    rows = [
        "# Errors",
        "",
        'Every error is `{"error": {"message", "type", "param", "code"}}`, all four keys always present.',
        "",
        "| status | type | code | message (where none is more exact) |",
        "|---|---|---|---|",
    ]
    for _, found in error_classes(errors.TunewayError):
        if found in (errors.StartError, errors.JobFailure):
            continue  # never on the wire
        words = " ".join((found.__doc__ or "").split())
        rows.append(f"| {found.status} | `{found.type}` | {found.default_code or '–'} | {words} |")
    return "\n".join(rows) + "\n"


def command_line() -> str:
    rows = ["# Command line", ""]
    for command in ("", *commands(typer.main.get_command(root.app))):
        arguments = [sys.executable, "-m", "tuneway", *command.split(), "--help"]
        environment = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "PATH": "/usr/bin:/bin"}
        done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)  # noqa: S603
        text = "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())
        rows += [f"## `tuneway{' ' if command else ''}{command}`", "", "```", text, "```", ""]
    return "\n".join(rows)


def description() -> str:
    """The API description of a gateway without auth, which no service is asked for."""
    app = api.build(api.Services(**dict.fromkeys(field.name for field in fields(api.Services))), api.ApiSettings())
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    stale = []
    pages = {
        "settings.md": settings(),
        "errors.md": error_page(),
        "cli.md": command_line(),
        "openapi.json": description(),
    }
    for name, text in pages.items():
        path = FOLDER / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.stderr.write(f"docs/reference is stale: {', '.join(stale)}. Run `make fix`.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
