"""`tuneway keys`: who may use the gateway.

While no gateway runs on the data folder, the commands work on the folder itself: that is how the first key is made.
Otherwise they ask the gateway, which wants a key with the scope `admin` where it wants keys at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneway.cli.client import gateway
from tuneway.cli.options import Config, Data, Json, Url
from tuneway.cli.output import document, lines, note, when

if TYPE_CHECKING:
    from tuneway.app import OfflineKeys

app = typer.Typer(help="Create, list and revoke keys of the gateway.", no_args_is_help=True)

PATH = "/tuneway/keys"
DAY = 86400

Name = Annotated[str, typer.Option("--name", help="What the key is for.")]
Project = Annotated[str | None, typer.Option("--project", help="Whose jobs, files and models it sees.")]
Scopes = Annotated[
    list[str] | None,
    typer.Option("--scope", help="read, tune, chat, admin or relay; may be repeated [default: the first three]."),
]
Days = Annotated[int | None, typer.Option("--days", min=1, max=3660, help="Days until it expires [default: never].")]
KeyId = Annotated[str, typer.Argument(metavar="KEY", help="The key's id, key_…", show_default=False)]


@app.command()
def create(
    name: Name = "",
    project: Project = None,
    scope: Scopes = None,
    days: Days = None,
    data: Data = None,
    config: Config = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Create a key and print it; it cannot be shown again."""
    asked = {"name": name, "project": project, "scopes": scope, "expires_after": None if days is None else days * DAY}
    wanted = {key: value for key, value in asked.items() if value is not None}
    with _offline(data, config, url) as keys:
        made = _post(url, wanted) if keys is None else keys.create(wanted)
    if as_json:
        return document(made)
    scopes = ", ".join(made["scopes"])
    note(f"{made['id']}: project {made['project']}, scopes {scopes}. Keep the key; it is not shown again.")
    typer.echo(made["key"])


@app.command("list")
def list_keys(data: Data = None, config: Config = None, url: Url = None, as_json: Json = False) -> None:
    """List keys, newest first, without the keys themselves."""
    with _offline(data, config, url) as keys:
        found = _get(url) if keys is None else keys.every()
    if as_json:
        return document(found)
    rows = [
        (key["id"], key["project"], f"…{key['hint']}", ",".join(key["scopes"]), _state(key), key["name"])
        for key in found["data"]
    ]
    lines(("ID", "PROJECT", "KEY", "SCOPES", "STATE", "NAME"), rows)


@app.command()
def revoke(key: KeyId, data: Data = None, config: Config = None, url: Url = None, as_json: Json = False) -> None:
    """Revoke a key, from the next request on and for good."""
    with _offline(data, config, url) as keys:
        revoked = _delete(url, key) if keys is None else keys.revoke(key)
    document(revoked) if as_json else typer.echo(f"{revoked['id']} revoked")


def _state(key: dict[str, Any]) -> str:
    if key["revoked_at"] is not None:
        return f"revoked {when(key['revoked_at'])}"
    if key["expires_at"] is None:
        return "valid"
    over = key["expires_at"] <= datetime.now().timestamp()
    return f"{'expired' if over else 'until'} {when(key['expires_at'])}"


@contextmanager
def _offline(data: Data, config: Config, url: Url) -> Iterator[OfflineKeys | None]:
    """The data folder's keys; None where a gateway runs on it, or where one was named."""
    from tuneway import app, settings

    if url is not None:
        yield None
        return
    with app.offline_keys(settings.load(config, {"data": data}).data) as keys:
        yield keys


def _post(url: Url, asked: dict[str, Any]) -> dict[str, Any]:
    with gateway(url) as client:
        return client.post(PATH, body=asked, cast_to=dict[str, Any])


def _get(url: Url) -> dict[str, Any]:
    with gateway(url) as client:
        return client.get(PATH, cast_to=dict[str, Any])


def _delete(url: Url, key: str) -> dict[str, Any]:
    with gateway(url) as client:
        return client.delete(f"{PATH}/{key}", cast_to=dict[str, Any])
