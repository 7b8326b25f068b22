"""The command tree. Commands import what they need when they run."""

import platform
from typing import Annotated

import typer

from tuneway import __version__
from tuneway.cli import exits, files, imports, jobs, keys, models, providers, webhooks
from tuneway.cli.chat import chat
from tuneway.cli.doctor import doctor
from tuneway.cli.options import Json
from tuneway.cli.output import document
from tuneway.cli.quickstart import quickstart
from tuneway.cli.retrain import retrain
from tuneway.cli.serve import serve
from tuneway.cli.tune import tune

# The mark keeps the help from re-wrapping the table below it.
EPILOG = "\b\nResults go to stdout, progress to stderr.\n\n\b\n" + exits.table()

app = typer.Typer(
    help="Tuneway: OpenAI's fine-tuning API on your own machine.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command()(quickstart)
app.command()(tune)
app.command()(retrain)
app.add_typer(jobs.app, name="jobs")
app.add_typer(files.app, name="files")
app.add_typer(models.app, name="models")
app.add_typer(providers.app, name="providers")
app.add_typer(imports.app, name="import")
app.add_typer(keys.app, name="keys")
app.add_typer(webhooks.app, name="webhooks")
app.command()(chat)
app.command()(doctor)


@app.command()
def version(as_json: Json = False) -> None:
    """Print the version."""
    if as_json:
        return document({"version": __version__, "python": platform.python_version()})
    typer.echo(f"tuneway {__version__}")


Version = Annotated[bool, typer.Option("--version", help="Print the version and exit.")]


@app.callback(invoke_without_command=True)
def root(show_version: Version = False) -> None:
    if show_version:
        version()
        raise typer.Exit
