"""The provider seam: what every provider can be asked, in values; providers never see the database.

A provider is one file. `launch` starts a job and returns a small handle, `poll` says what changed since a cursor,
`find` looks a job up by the key that was recorded before `launch`, and `upstream` says where chat requests go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tuneway.dataset.features import Feature
from tuneway.errors import JobFailure, TunewayError
from tuneway.types import (
    BaseModel,
    Candidate,
    DataFile,
    Deployment,
    JobHandle,
    JobRequest,
    JobSpec,
    JobUpdate,
    LaunchSpec,
    Method,
    Model,
    Resolved,
    Upstream,
)


class LaunchUnclear(TunewayError):
    """It cannot be told which job at the provider is the one that was launched."""

    def __init__(self, message: str, candidates: tuple[Candidate, ...]) -> None:
        super().__init__(message)
        self.candidates = candidates


class NotServed(JobFailure):
    """The tuned model is there and does not answer; `deployment` is what was made for it all the same."""

    def __init__(self, message: str, deployment: Deployment | None = None) -> None:
        super().__init__(message)
        self.deployment = deployment


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
    remote: bool = False
    """Whether jobs run somewhere else: they bill until their provider says that they ended, and go on without us."""
    integrations: bool = False
    learning_rate: bool = False
    """Whether it takes an absolute learning rate."""
    options: frozenset[str] = frozenset()
    """The provider's own fields that a job may set."""
    refused_features: frozenset[Feature] = frozenset()
    """What rows of training data must not use, see `dataset.features`."""
    any_base: bool = False
    """Whether it tunes other bases than those it lists, when asked for by name."""
    poll_seconds: float = 0.25
    settle_seconds: int = 0
    """How long after a launch was intended its provider may still be about to show it."""


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
    may raise `JobFailure`, which ends the job. What a `ProviderError` refuses without effect ends a launch as well.
    """

    name: str
    capabilities: Capabilities

    def base_models(self) -> Sequence[BaseModel]:
        """What can be tuned here, best first."""
        ...

    def check(self, request: JobRequest, base: str) -> None:
        """Raises InvalidRequest, naming the field, for what `capabilities` do not tell and the provider cannot take."""
        ...

    async def send(self, file: DataFile, known: str | None) -> str | None:
        """Puts a file where the job will read it and returns the provider's id of it; None where files are read here.

        `known` is what an earlier call for the same bytes returned: it is given back where it still stands. Called
        again after a crash, it finds what it sent.
        """
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

        A job that was paused goes on, as a new attempt, from where `pause` left it. A remote provider sends what starts
        it once: whoever calls again after a failure or a crash asks `find` first.
        """
        ...

    async def find(self, spec: LaunchSpec) -> JobHandle | None:
        """The job that was launched by `spec.key`, whether it runs or has ended; None when there was none.

        Raises LaunchUnclear where there is more than one that it may be.
        """
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

    async def settle(self, model: Model, report: Report) -> Deployment | None:
        """Makes the model callable and proves it; only then does its job succeed. Returns what serves it, where that is
        something of its own which costs.
        """
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


def auto_epochs(n_examples: int) -> int:
    """About 100 to 25,000 examples seen in all (OpenAI's cookbook, confirmed by its jobs)."""
    if n_examples * 3 < 100:
        return min(25, 100 // n_examples)
    if n_examples * 3 > 25_000:
        return max(1, 25_000 // n_examples)
    return 3
