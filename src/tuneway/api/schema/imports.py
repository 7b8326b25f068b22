"""Imports of accounts on the wire."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from tuneway import types
from tuneway.api.schema.base import Request, Text


class CreateImportRequest(Request):
    provider: Annotated[Text, Field(max_length=64)]
    """The name of an account that is configured here."""


class ImportCounts(BaseModel):
    """What was stored; `skipped` was here before, `still_running` jobs wait for another import."""

    jobs: int
    events: int
    checkpoints: int
    files: int
    bytes: int
    models: int
    skipped: int
    still_running: int


class Import(BaseModel):
    object: Literal["tuneway.import"] = "tuneway.import"
    id: str
    provider: str
    state: Literal["running", "done", "failed"]
    counts: ImportCounts
    problems: list[str]
    error: str | None
    created_at: int
    finished_at: int | None

    @classmethod
    def of(cls, found: types.Import) -> Import:
        return cls(
            id=found.id,
            provider=found.provider,
            state=found.state.value,
            counts=ImportCounts(**asdict(found.counts)),
            problems=list(found.problems),
            error=found.error,
            created_at=found.created_at,
            finished_at=found.finished_at,
        )


class ImportList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Import]
    has_more: bool
