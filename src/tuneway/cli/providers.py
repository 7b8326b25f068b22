"""`tuneway providers`: the accounts at vendors that jobs may go to.

A secret is never an argument, which everybody on the machine could read: it comes from an environment variable, a file,
stdin or a prompt.
"""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any
from urllib.parse import quote

import typer

from tuneway.cli.client import gateway
from tuneway.cli.options import Json, Url
from tuneway.cli.output import document, facts, lines, note, when

app = typer.Typer(help="Add, check and remove accounts at vendors.", no_args_is_help=True)

PATH = "/tuneway/providers"
API_KEY = "api_key"
Answer = dict[str, Any]

Name = Annotated[str, typer.Argument(metavar="NAME", help="The account's name.", show_default=False)]
NewName = Annotated[
    str,
    typer.Argument(metavar="NAME", help="What to call it: small letters, digits, - and _.", show_default=False),
]
KindName = Annotated[str | None, typer.Option("--kind", metavar="KIND", help="What it is [default: NAME].")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="An option of the kind; may be given several times."),
]
SecretEnv = Annotated[
    list[str] | None,
    typer.Option("--secret-env", metavar="KEY=VARIABLE", help="A secret, from an environment variable of this shell."),
]
SecretFile = Annotated[
    list[str] | None, typer.Option("--secret-file", metavar="KEY=PATH", help="A secret, from a file on this machine.")
]
KeyStdin = Annotated[bool, typer.Option("--api-key-stdin", help="Read the secret api_key from stdin.")]


@app.command()
def kinds(url: Url = None, as_json: Json = False) -> None:
    """List the kinds of accounts, with their options and secrets."""
    with gateway(url) as client:
        found = client.get(f"{PATH}/kinds", cast_to=Answer)
    if as_json:
        return document(found)
    rows = [("(every)", option, "option", text) for option, text in found["limits"].items()]
    for kind in found["data"]:
        for what in ("secret", "option"):
            rows += [(kind["name"], key, what, text) for key, text in kind[f"{what}s"].items()]
    lines(("KIND", "KEY", "IS A", "WHAT FOR"), rows)


@app.command()
def add(
    name: NewName,
    kind: KindName = None,
    option: Options = None,
    secret_env: SecretEnv = None,
    secret_file: SecretFile = None,
    api_key_stdin: KeyStdin = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Add an account to the running gateway, which keeps its secrets encrypted.

    Without any secret on a terminal, asks for the api_key.
    """
    secrets = {
        **_read("env", _pairs("--secret-env", secret_env, "[A-Za-z_][A-Za-z0-9_]*")),
        **_read("file", _pairs("--secret-file", secret_file)),
    }
    if api_key_stdin:
        secrets[API_KEY] = sys.stdin.read().strip()
    asked: Answer = {"name": name, "options": _pairs("--option", option)}
    if kind is not None:
        asked["kind"] = kind
    with gateway(url) as client:
        if not secrets and sys.stdin.isatty():
            known = client.get(f"{PATH}/kinds", cast_to=Answer)["data"]
            if any(each["name"] == (kind or name) and API_KEY in each["secrets"] for each in known):
                given = typer.prompt("api_key (not shown)", default="", show_default=False, hide_input=True, err=True)
                secrets = {API_KEY: given} if given else {}
        # Without retries: the second try of one that arrived would be told that the name is taken.
        added = client.with_options(max_retries=0).post(PATH, body={**asked, "secrets": secrets}, cast_to=Answer)
    if as_json:
        return document(added)
    note(f"`tuneway providers check {name}` asks whether it answers.")
    typer.echo(f"{added['name']} added")


@app.command("list")
def list_providers(url: Url = None, as_json: Json = False) -> None:
    """List the accounts."""
    with gateway(url) as client:
        found = client.get(PATH, cast_to=Answer)
    if as_json:
        return document(found)
    rows = [
        (
            one["name"],
            one["kind"],
            one["origin"],
            ",".join(one["capabilities"]["methods"]),
            one["line"]["circuit"],
            one["unended_jobs"],
        )
        for one in found["data"]
    ]
    lines(("NAME", "KIND", "FROM", "METHODS", "CIRCUIT", "JOBS"), rows)


@app.command()
def show(name: Name, url: Url = None, as_json: Json = False) -> None:
    """Show one account, without its secrets."""
    with gateway(url) as client:
        found = client.get(_path(name), cast_to=Answer)
    if as_json:
        return document(found)
    can, line = found["capabilities"], found["line"]
    yes = [what for what in ("seed", "suffix", "metadata", "validation_file", "pause", "learning_rate") if can[what]]
    counts = [f"{outcome} {number}" for outcome, number in line["answered"].items()]
    facts(
        [
            ("name", found["name"]),
            ("kind", found["kind"]),
            ("from", found["origin"]),
            ("added", when(found["created_at"])),
            *((f"option {key}", value) for key, value in found["options"].items()),
            ("secrets", ", ".join(found["secrets"]) or None),
            ("methods", ", ".join(can["methods"])),
            ("takes", ", ".join(yes) or None),
            ("own fields", ", ".join(can["options"]) or None),
            ("refused data", ", ".join(can["refused_features"]) or None),
            ("jobs", found["unended_jobs"]),
            ("circuit", line["circuit"]),
            ("resting until", when(line["resting_until"])),
            ("requests", f"{line['under_way']} under way, at most {line['concurrency']}"),
            ("time-out", f"{line['timeout_seconds']:g} s"),
            ("answered", ", ".join(counts) or None),
            ("last error", line["last_error"]),
        ]
    )


@app.command()
def check(name: Name, url: Url = None, as_json: Json = False) -> None:
    """Ask the vendor for one of its jobs; fails with what it says instead."""
    with gateway(url) as client:
        found = client.with_options(max_retries=0).post(f"{_path(name)}/check", cast_to=Answer)
    document(found) if as_json else typer.echo(f"{name} answers")


@app.command()
def remove(name: Name, url: Url = None, as_json: Json = False) -> None:
    """Remove an account and its secrets; refused while it has jobs that have not ended."""
    with gateway(url) as client:
        removed = client.delete(_path(name), cast_to=Answer)
    document(removed) if as_json else typer.echo(f"{name} removed")


def _path(name: str) -> str:
    return f"{PATH}/{quote(name, safe='')}"


def _pairs(flag: str, given: list[str] | None, value: str = ".*") -> dict[str, str]:
    """`KEY=VALUE`s as a table. What is no pair is not repeated: it may be a secret in the wrong place."""
    found = {}
    for pair in given or []:
        key, equals, text = pair.partition("=")
        if not equals or key in found or not re.fullmatch(value, text, re.DOTALL):
            what = "the name of an environment variable" if flag == "--secret-env" else "a value"
            raise typer.BadParameter(f"{flag} takes KEY=VALUE, each key once, where VALUE is {what}.")
        found[key] = text
    return found


def _read(where: str, places: dict[str, str]) -> dict[str, str]:
    from tuneway import settings

    try:
        return {key: settings.read_secret(key, where, place) for key, place in places.items()}
    except ValueError as error:
        raise typer.BadParameter(f"{error}.") from error
