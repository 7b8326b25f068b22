"""`tuneway webhooks`: who is told when a job ends, and what became of the telling."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tuneway.cli.client import gateway
from tuneway.cli.exits import Failure
from tuneway.cli.options import Json, Limit, Url
from tuneway.cli.output import document, lines, note, when

app = typer.Typer(help="Announce the ends of jobs to URLs of yours.", no_args_is_help=True)

PATH = "/tuneway/webhooks"
Answer = dict[str, Any]

WebhookId = Annotated[str, typer.Argument(metavar="WEBHOOK", help="The webhook's id, we_…", show_default=False)]
Receiver = Annotated[
    str,
    typer.Argument(
        metavar="URL", help="Where to POST; the setting outbound_hosts must allow its host.", show_default=False
    ),
]
Events = Annotated[
    list[str] | None,
    typer.Option(
        "--event",
        metavar="TYPE",
        help="fine_tuning.job.succeeded, .failed or .cancelled; several times [default: all].",
    ),
]
Name = Annotated[str, typer.Option("--name", help="What the webhook is for.")]


@app.command()
def create(receiver: Receiver, event: Events = None, name: Name = "", url: Url = None, as_json: Json = False) -> None:
    """Register a URL and print the secret that its deliveries are signed with; it cannot be shown again."""
    asked = {"url": receiver, "name": name, **({"events": event} if event else {})}
    with gateway(url) as client:
        made = client.post(PATH, body=asked, cast_to=Answer)
    if as_json:
        return document(made)
    note(f"{made['id']}: {', '.join(made['events'])}. Keep the secret; it is not shown again.")
    typer.echo(made["secret"])


@app.command("list")
def list_webhooks(url: Url = None, as_json: Json = False) -> None:
    """List webhooks, newest first, without their secrets."""
    with gateway(url) as client:
        found = client.get(PATH, cast_to=Answer)
    if as_json:
        return document(found)
    rows = [
        (one["id"], ",".join(_short(kind) for kind in one["events"]), one["url"], one["name"]) for one in found["data"]
    ]
    lines(("ID", "EVENTS", "URL", "NAME"), rows)


@app.command()
def delete(webhook: WebhookId, url: Url = None, as_json: Json = False) -> None:
    """Delete a webhook and what was not delivered to it yet."""
    with gateway(url) as client:
        deleted = client.delete(f"{PATH}/{webhook}", cast_to=Answer)
    document(deleted) if as_json else typer.echo(f"{webhook} deleted")


@app.command()
def deliveries(webhook: WebhookId, limit: Limit = 20, url: Url = None, as_json: Json = False) -> None:
    """List what was sent to a webhook or waits for its next attempt, newest first."""
    with gateway(url) as client:
        found = client.get(f"{PATH}/{webhook}/deliveries?limit={limit}", cast_to=Answer)
    if as_json:
        return document(found)
    rows = [
        (
            one["id"],
            _short(one["type"]),
            one["data"]["data"]["id"],
            one["state"],
            one["attempts"],
            when(one["next_attempt_at"] or one["delivered_at"]),
            one["last_error"],
        )
        for one in found["data"]
    ]
    lines(("ID", "EVENT", "ABOUT", "STATE", "ATTEMPTS", "NEXT OR DELIVERED", "LAST ERROR"), rows)


@app.command("test")
def send_test(webhook: WebhookId, url: Url = None, as_json: Json = False) -> None:
    """Send a test event now; fails when the receiver does not accept it."""
    with gateway(url) as client:
        sent = client.post(f"{PATH}/{webhook}/test", cast_to=Answer)
    if as_json:
        document(sent)
    if sent["state"] != "delivered":
        if as_json:
            raise typer.Exit(1)
        raise Failure(sent["last_error"], hint="The receiver must answer with a status of 200 to 299.")
    if not as_json:
        typer.echo(f"{sent['id']} delivered, status {sent['last_status']}")


def _short(kind: str) -> str:
    return kind.removeprefix("fine_tuning.job.")
