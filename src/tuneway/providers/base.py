"""The provider seam: what every provider can be asked, in values; providers never see the database.

A provider is one file. `launch` starts a job and returns a small handle, `poll` says what changed since a cursor,
`find` looks a job up by the key that was recorded before `launch`, and `upstream` says where chat requests go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tuneway.types import (
    BaseModel,
    JobHandle,
    JobSpec,
    JobUpdate,
    LaunchSpec,
    Method,
    Model,
    Resolved,
    Upstream,
)

Report = Callable[[str], Awaitable[None]]
"""Tells the job's owner a sentence (an event), e.g. that a base model is being fetched."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a provider can do; everything defaults to no."""

    methods: frozenset[Method] = frozenset()
    seed: bool = False
    suffix: bool = False
    validation_file: bool = False
    metadata: bool = False
    pause: bool = False


@dataclass(frozen=True, slots=True)
class Preparation:
    """What the dataset check needs to know of a base model.

    `renderer` is the folder with the base's tokenizer and chat template; None where the provider tokenises by itself
    (then the check counts no tokens and cuts nothing).
    """

    context_length: int
    renderer: Path | None = None


class Provider(Protocol):
    """See the module.

    Every method may raise `UpstreamError`, which the worker retries with back-off, and those that carry a job forward
    may raise `JobFailure`, which ends the job.
    """

    name: str
    capabilities: Capabilities

    def base_models(self) -> Sequence[BaseModel]:
        """What can be tuned here, best first."""
        ...

    async def prepare(self, base: str, report: Report) -> Preparation:
        """Makes the base ready for the dataset check and the launch; fetches it where it is not here yet."""
        ...

    def resolve(self, spec: JobSpec, n_examples: int) -> Resolved:
        """Numbers for `"auto"`, each with its reason."""
        ...

    def workplace(self, key: str) -> Path | None:
        """The folder where the dataset check leaves the tokenised examples of the job launched by `key`, or None."""
        ...

    async def launch(self, spec: LaunchSpec) -> JobHandle:
        """Starts the job, once per key and attempt: launching what already runs returns its handle.

        A job that was paused goes on, as a new attempt, from where `pause` left it.
        """
        ...

    async def find(self, key: str) -> JobHandle | None:
        """The job that was launched by `key`, whether it runs or has ended; None when there was none."""
        ...

    async def poll(self, handle: JobHandle, cursor: str | None) -> JobUpdate:
        """What changed since `cursor` (None: everything)."""
        ...

    async def cancel(self, handle: JobHandle) -> None:
        """Stops the job for good; returns when it is gone. Cancelling what has ended is no error."""
        ...

    async def pause(self, handle: JobHandle) -> None:
        """Stops the job so that it can go on; returns when it uses nothing any more. Asked where capabilities say so.

        Pausing what has ended, or is paused, is no error: a result that is there stays, and `poll` gives it.
        """
        ...

    async def release(self, key: str) -> None:
        """The job has ended and its result is stored: frees what only a running job needs, such as resume points.

        Called once for every job, also for one that was never launched.
        """
        ...

    async def settle(self, model: Model) -> None:
        """Makes the model callable and proves it by one token; only then does its job succeed."""
        ...

    async def upstream(self, base: str, model: Model | None) -> Upstream:
        """Where chat requests to the base, or to a model tuned from it, go. May start what serves it."""
        ...

    async def forget(self, model: Model) -> None:
        """The model was deleted: frees what it holds."""
        ...

    async def close(self) -> None:
        """The gateway stops: running local jobs leave a resume point, engines end."""
        ...
