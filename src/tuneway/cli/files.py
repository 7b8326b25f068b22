"""`tuneway files`: what was uploaded, and what jobs left behind."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneway.cli.client import gateway
from tuneway.cli.exits import Exit, Failure
from tuneway.cli.options import FileId, Json, Limit, Url
from tuneway.cli.output import document, facts, lines, when, wire

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import FileObject

app = typer.Typer(help="Upload, list and fetch files.", no_args_is_help=True)

Local = Annotated[Path, typer.Argument(metavar="FILE", help="A JSONL file of examples.", show_default=False)]
Purpose = Annotated[str | None, typer.Option("--purpose", help="Only files of this purpose.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write [default: stdout].")
]


@app.command("list")
def list_files(purpose: Purpose = None, limit: Limit = 20, url: Url = None, as_json: Json = False) -> None:
    """List files, newest first."""
    with gateway(url) as client:
        from openai import omit

        page = client.files.list(limit=limit, purpose=purpose or omit)
    if as_json:
        return document(wire(page))
    rows = [(file.id, file.filename, file.bytes, file.purpose, when(file.created_at)) for file in page.data]
    lines(("ID", "NAME", "BYTES", "PURPOSE", "CREATED"), rows)


@app.command()
def upload(file: Local, url: Url = None, as_json: Json = False) -> None:
    """Upload a file for fine-tuning; prints its id."""
    with gateway(url) as client:
        uploaded = send(client, file)
    document(wire(uploaded)) if as_json else typer.echo(uploaded.id)


@app.command()
def show(file: FileId, url: Url = None, as_json: Json = False) -> None:
    """Show one file."""
    with gateway(url) as client:
        found = client.files.retrieve(file)
    if as_json:
        return document(wire(found))
    pairs = [("id", found.id), ("name", found.filename), ("bytes", found.bytes), ("purpose", found.purpose)]
    facts([*pairs, ("created", when(found.created_at)), ("expires", when(found.expires_at))])


@app.command()
def download(file: FileId, output: Output = None, url: Url = None, as_json: Json = False) -> None:
    """Fetch a file's content to stdout, or to --output."""
    if as_json and output is None:
        raise typer.BadParameter("--json needs --output: the content itself would go to stdout.")
    with gateway(url) as client, client.files.with_streaming_response.content(file) as response:
        if output is None:
            for chunk in response.iter_bytes():
                typer.echo(chunk, nl=False)
            return
        size = keep(response.iter_bytes(), output)
    document({"id": file, "path": str(output), "bytes": size}) if as_json else typer.echo(output)


@app.command()
def delete(file: FileId, url: Url = None, as_json: Json = False) -> None:
    """Delete a file."""
    with gateway(url) as client:
        deleted = client.files.delete(file)
    document(wire(deleted)) if as_json else typer.echo(f"{deleted.id} deleted")


def send(client: OpenAI, path: Path) -> FileObject:
    """Uploads a local file for fine-tuning."""
    try:
        stream = path.open("rb")
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}.", code=Exit.USAGE) from error
    with stream:
        return client.files.create(file=stream, purpose="fine-tune")


def keep(chunks: Iterable[bytes], path: Path) -> int:
    """Writes the chunks to `path`, whole or not at all; the number of bytes."""
    beside = path.with_name(f".{path.name}.part")
    try:
        with beside.open("wb") as stream:
            size = sum(stream.write(chunk) for chunk in chunks)
        beside.replace(path)
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        beside.unlink(missing_ok=True)
    return size
