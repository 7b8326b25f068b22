"""Runs the dataset check in a child process, so that a 512 MB file neither blocks the gateway nor grows it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
    """A report per file, in their order. A cancelled call ends the child. Raises JobFailure when the child fails."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tuneway.dataset",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    request = {
        "files": [
            {"path": str(file.path), "kind": file.kind, "tokens": None if file.tokens is None else str(file.tokens)}
            for file in files
        ],
        "renderer": None if preparation.renderer is None else str(preparation.renderer),
        "context_length": preparation.context_length,
    }
    try:
        out, err = await child.communicate(json.dumps(request).encode() + b"\n")
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode:
        last = err.decode(errors="replace").strip().splitlines()[-1:]
        raise JobFailure(f"The files could not be checked: {' '.join(last) or f'exit status {child.returncode}'}")
    return [Report.from_json(json.loads(line)) for line in out.splitlines()]
