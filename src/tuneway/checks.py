"""Runs the dataset check in a child process, so that a 512 MB file neither blocks the gateway nor grows it; and says
what it found."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tuneway import children
from tuneway.blobs import Blobs
from tuneway.dataset.features import Feature
from tuneway.dataset.report import Report
from tuneway.errors import JobFailure
from tuneway.providers.base import Preparation
from tuneway.rundir import TRAIN_TOKENS, VALID_TOKENS
from tuneway.types import EventLevel, Job, Method, NewEvent


@dataclass(frozen=True, slots=True)
class FileToCheck:
    """`tokens` is where the tokenised examples go, None when the provider tokenises by itself."""

    path: Path
    kind: Literal["training", "validation"]
    tokens: Path | None


async def check(
    files: Sequence[FileToCheck],
    preparation: Preparation,
    *,
    method: Method = Method.SUPERVISED,
    refused: Collection[Feature] = (),
) -> list[Report]:
    """A report per file, in their order. `refused` is what the provider does not train on.

    A cancelled call ends the child. Raises JobFailure when the files cannot be checked, and UpstreamError when the
    child was killed.
    """
    request = {
        "files": [
            {"path": str(file.path), "kind": file.kind, "tokens": None if file.tokens is None else str(file.tokens)}
            for file in files
        ],
        "renderer": None if preparation.renderer is None else str(preparation.renderer),
        "context_length": preparation.context_length,
        "method": method,
        "refused": sorted(refused),
    }
    try:
        out = await children.run("tuneway.dataset", line=json.dumps(request))
    except children.Failed as failed:
        raise JobFailure(f"The files could not be checked: {failed}") from failed
    return [Report.from_json(json.loads(line)) for line in out.splitlines()]


def files_of(job: Job, blobs: Blobs, workplace: Path | None) -> list[FileToCheck]:
    """What there is to check of a job; `workplace` is where its tokens go, if anywhere."""

    def tokens(name: str) -> Path | None:
        return None if workplace is None else workplace / name

    files = [FileToCheck(blobs.path(job.training_sha256), "training", tokens(TRAIN_TOKENS))]
    if job.validation_sha256 is not None:
        files.append(FileToCheck(blobs.path(job.validation_sha256), "validation", tokens(VALID_TOKENS)))
    return files


def counts(job: Job, reports: Sequence[Report]) -> str:
    """How much there is in each file, as a sentence."""
    counts = []
    for name, report in zip((job.spec.training_file, job.spec.validation_file), reports, strict=False):
        tokens = "" if report.tokens is None else f", {report.tokens} tokens ({report.supervised_tokens} to learn)"
        counts.append(f"{name} has {report.n_examples} examples{tokens}")
    return "; ".join(counts)


def cut_events(job: Job, reports: Sequence[Report], now: int) -> list[NewEvent]:
    """A warning for each example that was cut, as many as the report lists, and one that counts the others."""
    events = []
    for param, report in zip(("training_file", "validation_file"), reports, strict=False):
        for found in report.warnings:
            data = {"param": param, "example": found.example, "line": found.line}
            events.append(NewEvent(f"cut:{param}:{found.example}", found.message, now, EventLevel.WARN, data=data))
        more = report.n_warnings - len(report.warnings)
        if more:
            message = f"{more} more examples of the {param.replace('_', ' ')} were cut"
            events.append(NewEvent(f"cut:{param}", message, now, EventLevel.WARN, data={"param": param}))
    return events
