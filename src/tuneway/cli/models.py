"""`tuneway models`: base models, and models tuned from them."""

from typing import Any

import typer

from tuneway.cli.client import gateway
from tuneway.cli.options import Json, ModelName, Url
from tuneway.cli.output import document, facts, lines, when, wire

app = typer.Typer(help="List and delete models.", no_args_is_help=True)


@app.command("list")
def list_models(url: Url = None, as_json: Json = False) -> None:
    """List base models and tuned models."""
    with gateway(url) as client:
        page = client.models.list()
    if as_json:
        return document(wire(page))
    lines(("NAME", "OWNER", "CREATED"), [(model.id, model.owned_by, when(model.created)) for model in page.data])


@app.command()
def show(model: ModelName, url: Url = None, as_json: Json = False) -> None:
    """Show one model."""
    with gateway(url) as client:
        found = client.models.retrieve(model)
    if as_json:
        return document(wire(found))
    more: dict[str, Any] = (found.model_extra or {}).get("tuneway") or {}
    hosting = more.get("deployment") or {}
    facts(
        [
            ("name", found.id),
            ("owner", found.owned_by),
            ("created", when(found.created)),
            ("provider", more.get("provider")),
            ("base", more.get("base")),
            ("job", more.get("job")),
            ("provider's model", more.get("upstream_model")),
            ("deployment", hosting.get("name")),
            ("ends", when(hosting.get("expires_at"))),
            ("USD per hour", hosting.get("usd_per_hour")),
            ("USD so far", hosting.get("running_cost_usd")),
        ]
    )


@app.command()
def delete(model: ModelName, url: Url = None, as_json: Json = False) -> None:
    """Delete a tuned model and its adapter."""
    with gateway(url) as client:
        deleted = client.models.delete(model)
    document(wire(deleted)) if as_json else typer.echo(f"{deleted.id} deleted")
