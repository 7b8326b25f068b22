"""A vendor's API, asked and answered in OpenAI's shapes: one file a vendor, for relays and managed accounts alike.

What goes in and comes out are JSON objects as OpenAI's API has them, with two differences. A job's `status` is one of
`JobStatus`, with the vendor's own word in `tuneway.provider_status`; and a request to create a job may hold the object
`tuneway` with `learning_rate` (absolute) and `options` (the vendor's own fields under their own names).

A method that a vendor does not have is left as it is here: it says so to whoever asks.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from tuneway.errors import InvalidRequest, ProviderError, UnsupportedOperation
from tuneway.providers.base import Capabilities
from tuneway.providers.base import Report as Report
from tuneway.providers.line import Line, Reply
from tuneway.types import BaseModel, Deployment, JobStatus, Method, Model, Upstream

Json = dict[str, Any]
Verb = Literal["cancel", "pause", "resume"]

RETRY_SECONDS = 15 * 60
"""How long after a create its retry is known as one; the SDKs give a request up after ten minutes."""


class Options:
    """An account's options and secrets as they were given, taken one by one.

    `called` says how an option is named where it came from: a header of a relay, a key of a managed account. Messages
    name options by it and never repeat a value.
    """

    def __init__(self, values: Mapping[str, str], called: Callable[[str], str]) -> None:
        self._values = values
        self.called = called

    def get(self, name: str, pattern: str = r"[^\x00-\x20\x7f]+") -> str | None:
        """None for one that is not given. Raises InvalidRequest for one that does not match.

        The pattern stands before any use in a URL: names, regions and versions become parts of hosts and paths.
        """
        value = self._values.get(name)
        if value is None or value == "":
            return None
        if not re.fullmatch(pattern, value):
            raise InvalidRequest(
                f"Invalid value of {self.called(name)}: it must match the pattern '{pattern}'.",
                param=self.called(name),
                code="invalid_value",
            )
        return value

    def need(self, name: str, pattern: str = r"[^\x00-\x20\x7f]+") -> str:
        """Raises InvalidRequest for one that is not given, too."""
        value = self.get(name, pattern)
        if value is None:
            raise InvalidRequest(
                f"Missing {self.called(name)}.", param=self.called(name), code="missing_required_parameter"
            )
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """Raises InvalidRequest for what is no number from `low` to `high`."""
        value = self.get(name, r"\d{1,9}(\.\d{1,6})?")
        if value is None:
            return default
        if not low <= float(value) <= high:
            raise InvalidRequest(
                f"Invalid value of {self.called(name)}: it must be from {low:g} to {high:g}.", param=self.called(name)
            )
        return float(value)


@dataclass(frozen=True, slots=True)
class Kind:
    """What an account of a vendor is made of; the registry has one for each.

    `options` and `secrets` map the names of what `build` takes to what they are for; a secret is never shown. `hosts`
    may be called without the operator's leave.
    """

    name: str
    build: Callable[[Options, Line], Vendor]
    hosts: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    """What relays may call it too: Portkey's names."""
    not_relayed: frozenset[str] = frozenset()
    """Options and secrets that only a managed account has."""
    capabilities: Capabilities | None = None
    """Of every account of the kind; None where they depend on its options."""
    path_of_keys: Literal["bearer", "azure"] = "bearer"
    """How a relay's `Authorization` is read: as the vendor's key, or as Azure does."""


class Form(Protocol):
    """A file's upload on its way in, field by field as the client sends it.

    `raw` is the whole form as it came, with its Content-Type; reading it or `content` uses it up. `filename` is known
    before the first byte of `content`, the `fields` besides the file only behind its last.
    """

    content_type: str
    length: int | None
    """Of the form, in bytes; None where its client did not say."""

    def raw(self) -> AsyncIterable[bytes]: ...

    async def filename(self) -> str: ...

    def content(self) -> AsyncIterator[bytes]: ...

    def fields(self) -> Mapping[str, str]: ...


class Vendor:
    """One account at one vendor; see the module.

    Every method raises ProviderError for what the vendor refuses, ProviderSilent and ProviderResting.
    """

    kind: str = ""
    capabilities = Capabilities()
    serves_at_once = True
    """Whether a tuned model answers as soon as its job has succeeded."""
    importable = False
    """Whether what is there can be read into the gateway under the vendor's own ids, and its tuned models answer there
    by their own names.
    """
    chooses_numbers = True
    """Whether it knows the value "auto" of a hyperparameter; else the gateway chooses the number of epochs."""
    processes_files = True
    """Whether a file that was sent always leaves the state `uploaded`; who does nothing with it leaves it there."""
    wants_bom = False
    """Whether files that the gateway sends begin with a byte order mark; those of relays stay as they are."""
    chooses_ids = False
    """Whether the vendor takes ids that its client chose, and refuses one that is taken. Then a create holds the
    gateway's own key of the job as `tuneway.key`, a repeated one makes nothing, and `upload` finds what it sent before.
    """
    counts_rows = False
    """Whether `upload` must be told how many rows there are."""

    def __init__(self, line: Line) -> None:
        self.line = line

    # ------------------------------------------------------------------------------------------------------- files

    async def upload(
        self, filename: str, purpose: str, content: AsyncIterable[bytes], size: int, rows: int | None = None
    ) -> Json:
        """Sends a file of `size` bytes, with `rows` where `counts_rows` says so; the vendor's file object."""
        raise self.lacks("files")

    async def relay_upload(self, form: Form) -> Json:
        """Passes a client's form on, without holding its file."""
        raise self.lacks("files")

    async def list_files(self, query: Mapping[str, str]) -> Json:
        """A page by `after`, `limit`, `order` and `purpose`."""
        raise self.lacks("a list of files")

    async def file(self, file_id: str) -> Json:
        raise self.lacks("files")

    async def delete_file(self, file_id: str) -> Json:
        raise self.lacks("deleting files")

    def content(self, file_id: str) -> AbstractAsyncContextManager[Reply]:
        """The file's bytes, as they come."""
        raise self.lacks("downloading files")

    # -------------------------------------------------------------------------------------------------------- jobs

    def translate(self, body: Json) -> Json:
        """What would be sent to create this job, without sending it. Raises InvalidRequest that names the field which
        the vendor cannot take; nothing is ever left out in silence.
        """
        raise self.lacks("fine-tuning jobs")

    async def create_job(self, body: Json) -> Json:
        """Sends the create, once. Raises what `translate` does."""
        raise self.lacks("fine-tuning jobs")

    async def list_jobs(self, query: Mapping[str, str]) -> Json:
        """A page by `after` and `limit`, newest first; by `metadata[k]` where `capabilities.metadata` says so."""
        raise self.lacks("a list of jobs")

    async def job(self, job_id: str) -> Json:
        raise self.lacks("fine-tuning jobs")

    async def job_by_key(self, key: str) -> Json | None:
        """The job that was created with this `tuneway.key`, asked for where `chooses_ids` says so; None for none."""
        return None

    def as_shown(self, body: Json) -> Json:
        """A request to create a job, with its files and model named as this vendor's answers name them."""
        return body

    async def change_job(self, job_id: str, verb: Verb) -> Json:
        """Cancels, pauses or resumes; never another of them than was asked for."""
        raise self.lacks(f"'{verb}' of a job")

    async def delete_job(self, job_id: str) -> None:
        raise self.lacks("deleting jobs")

    async def events(self, job_id: str, query: Mapping[str, str]) -> Json:
        """A page by `after` and `limit`, newest first."""
        raise self.lacks("a job's events")

    async def checkpoints(self, job_id: str, query: Mapping[str, str]) -> Json:
        """A page by `after` and `limit`, highest step first."""
        raise self.lacks("a job's checkpoints")

    async def tuned_model(self, job: Json) -> str | None:
        """The vendor's name of the model that a job which has succeeded made."""
        name = job.get("fine_tuned_model")
        return None if name is None else str(name)

    async def result_csv(self, job: Json) -> bytes | None:
        """The result file of a job that has succeeded, in plain text; None where the vendor has none."""
        return None

    # ------------------------------------------------------------------------------------------------------ models

    def base_models(self) -> tuple[BaseModel, ...]:
        """What is known to be tunable there; a vendor may well tune others."""
        return ()

    async def list_models(self) -> Json:
        raise self.lacks("a list of models")

    async def model(self, name: str) -> Json:
        raise self.lacks("models")

    async def delete_model(self, name: str) -> Json:
        raise self.lacks("deleting models")

    async def serve(self, model: Model, report: Report) -> Deployment | None:
        """Has the tuned model answer, and waits until it does; what serves it where that is a thing of its own.

        Doing it again finds what is there. `report` tells the job's owner. Raises JobFailure where it never will.
        """
        return None

    async def withdraw(self, model: Model) -> None:
        """Ends what serves the model, and deletes the model where it was made by this gateway."""

    async def chat(self, model: str) -> Upstream:
        """Where chat requests to a model, by the vendor's name of it or of its deployment, go."""
        raise self.lacks("chat completions")

    # ------------------------------------------------------------------------------------------------------ others

    async def pass_on(self, method: str, path: str, query: str, body: bytes | None) -> tuple[int, Json]:
        """An operation behind the base URL that the vendor has exactly as OpenAI has it: permissions, graders, uploads
        and stored completions.
        """
        raise self.lacks(f"{method} {path}")

    def pass_part_on(self, upload_id: str, form: Form) -> Awaitable[Json]:
        """A part of an upload."""
        raise self.lacks("uploads in parts")

    def lacks(self, what: str) -> UnsupportedOperation:
        return UnsupportedOperation(f"The provider '{self.kind}' does not offer {what}.")


def with_status(job: Json, status: JobStatus | None, word: str) -> Json:
    """The job in the seam's form. A word that is not known shows as running, and never as an end."""
    extension = {"provider_status": word}
    if status is None:
        status, extension["unknown_status"] = JobStatus.RUNNING, word
    return {**job, "status": status.value, "tuneway": {**job.get("tuneway", {}), **extension}}


def same_job(asked: Mapping[str, Any], shown: Mapping[str, Any], since: float) -> bool:
    """Whether a job that a provider shows may be what this request made at the unix time `since` or later.

    By what both name: model, files, suffix, seed, method and numbers. What the provider does not show tells nothing.
    """
    if asked.get("training_file") != shown.get("training_file"):
        return False
    if "validation_file" in shown and (asked.get("validation_file") or None) != (shown["validation_file"] or None):
        return False
    if "user_provided_suffix" in shown and _folded(asked.get("suffix")) != _folded(shown["user_provided_suffix"]):
        return False
    seeds = asked.get("seed"), shown.get("seed")
    if None not in seeds and seeds[0] != seeds[1]:
        return False
    # A vendor may spell a model its own way; the seed, which is random unless the client chose it, tells as much.
    if None in seeds and not same_model(asked.get("model"), shown.get("model")):
        return False
    numbers = _numbers_of(shown)
    for name, value in _numbers_of(asked).items():
        other: Any = numbers.get(name)
        # Some vendors keep a rate with seven digits.
        if _is_number(value) and _is_number(other) and not math.isclose(value, other, rel_tol=1e-6):
            return False
    method = shown.get("method")
    if isinstance(method, dict) and method.get("type") and method["type"] != method_of(asked).value:
        return False
    created = shown.get("created_at")
    return not isinstance(created, int) or created >= since


def _numbers_of(body: Mapping[str, Any]) -> Json:
    """Hyperparameters and the absolute learning rate, of a request and of a job alike."""
    return {**hyperparameters_of(body), "learning_rate": (body.get("tuneway") or {}).get("learning_rate")}


def _folded(value: Any) -> str:
    """A name without its path and without differences of case."""
    return str(value or "").rpartition("/")[2].casefold()


def same_model(asked: Any, shown: Any) -> bool:
    """A dated snapshot is the model that was asked for without its date."""
    asked, shown = _folded(asked), _folded(shown)
    return asked == shown or re.fullmatch(re.escape(asked) + r"[-@.][0-9].*", shown) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def method_of(body: Mapping[str, Any]) -> Method:
    """Of a request to create a job; supervised where it names none."""
    method = body.get("method")
    kind = method.get("type") if isinstance(method, dict) else None
    return Method(kind) if kind in set(Method) else Method.SUPERVISED


def hyperparameters_of(body: Mapping[str, Any]) -> Json:
    """What stands in `method.TYPE.hyperparameters` and in the deprecated `hyperparameters`, together."""
    found = dict(body.get("hyperparameters") or {})
    method = body.get("method") or {}
    chosen = method.get(method.get("type")) or {}
    return {**found, **(chosen.get("hyperparameters") or {})}


def page(items: list[Json], query: Mapping[str, str], default: int = 20) -> Json:
    """One page of a whole list that its vendor does not page: `items` in the list's order."""
    after = query.get("after")
    if after is not None:
        places = [place for place, item in enumerate(items) if item.get("id") == after]
        items = items[places[0] + 1 :] if places else []
    limit = int(query.get("limit") or default)
    return listing(items[:limit], len(items) > limit)


def listing(data: list[Json], has_more: bool) -> Json:
    first, last = (data[0].get("id"), data[-1].get("id")) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}


def is_lacking(error: ProviderError) -> bool:
    """Whether the provider has no such operation, or nothing there."""
    return error.status in (404, 405, 410, 501)


def is_unknown(error: ProviderError) -> bool:
    """Whether the provider says that it has no such thing."""
    return error.status in (404, 410)
