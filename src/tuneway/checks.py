"""Runs the dataset check in a child process, so that a 512 MB file neither blocks the gateway nor grows it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tuneway import children
from tuneway.dataset.report import Report
from tuneway.errors import JobFailure
from tuneway.providers.base import Preparation


@dataclass(frozen=True, slots=True)
class FileToCheck:
    """`tokens` is where the tokenised examples go, None when the provider tokenises by itself."""

    path: Path
    kind: Literal["training", "validation"]
    tokens: Path | None


async def check(files: Sequence[FileToCheck], preparation: Preparation) -> list[Report]:
    """A report per file, in their order. A cancelled call ends the child.

    Raises JobFailure when the files cannot be checked, and UpstreamError when the child was killed.
    """
    request = {
        "files": [
            {"path": str(file.path), "kind": file.kind, "tokens": None if file.tokens is None else str(file.tokens)}
            for file in files
        ],
        "renderer": None if preparation.renderer is None else str(preparation.renderer),
        "context_length": preparation.context_length,
    }
    try:
        out = await children.run("tuneway.dataset", line=json.dumps(request))
    except children.Failed as failed:
        raise JobFailure(f"The files could not be checked: {failed}") from failed
    return [Report.from_json(json.loads(line)) for line in out.splitlines()]
