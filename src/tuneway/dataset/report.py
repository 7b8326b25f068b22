"""What a dataset check found, as a value and as JSON (the check runs in a child process of the gateway)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tuneway.dataset.features import Feature
from tuneway.types import JobError

SHOWN = 20
"""Errors and warnings that a report lists; it counts them all."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An error or a warning. `example` and `line` count from 1; blank lines are lines but not examples."""

    example: int
    line: int
    message: str


@dataclass(frozen=True, slots=True)
class Report:
    """The result for one file. It can be trained on if, and only if, `error` is None.

    `tokens`, `supervised_tokens` and `longest` (the tokens of the longest example) are counted after cutting to the
    context length; None where the provider tokenises by itself. Of errors and warnings the first 20 are listed.
    `features` are those of all examples that could be read. `bom`: the file begins with a byte order mark.
    `old_outputs` is the number of bytes by which `convert.renamed_outputs` makes the file shorter.
    """

    n_examples: int
    tokens: int | None = None
    supervised_tokens: int | None = None
    longest: int | None = None
    error: JobError | None = None
    errors: tuple[Finding, ...] = ()
    n_errors: int = 0
    warnings: tuple[Finding, ...] = ()
    n_warnings: int = 0
    features: tuple[Feature, ...] = ()
    bom: bool = False
    old_outputs: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Report:
        return cls(
            n_examples=value["n_examples"],
            tokens=value["tokens"],
            supervised_tokens=value["supervised_tokens"],
            longest=value["longest"],
            error=None if value["error"] is None else JobError(**value["error"]),
            errors=tuple(Finding(**finding) for finding in value["errors"]),
            n_errors=value["n_errors"],
            warnings=tuple(Finding(**finding) for finding in value["warnings"]),
            n_warnings=value["n_warnings"],
            features=tuple(Feature(name) for name in value["features"]),
            bom=value["bom"],
            old_outputs=value["old_outputs"],
        )
