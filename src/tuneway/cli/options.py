"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_MODEL = "smollm2-135m-instruct"

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="The gateway's API [default: $TUNEWAY_URL or http://127.0.0.1:8400/v1]."),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, ftjob-…", show_default=False)]
FileId = Annotated[str, typer.Argument(metavar="FILE", help="The file's id, file-…", show_default=False)]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.", show_default=False)]
Limit = Annotated[int, typer.Option("--limit", min=1, max=100, help="How many, newest first.")]
Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file [default: ./tuneway.toml if it exists].")
]
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="The gateway's data folder [default: $TUNEWAY_DATA or ./data]."),
]
