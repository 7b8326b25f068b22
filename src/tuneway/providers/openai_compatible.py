"""Vendors that speak OpenAI's shape: a row of configuration each, with what they do differently as data.

The rows here are Nebius, Bedrock Mantle and any other URL. OpenAI itself is `openai.py`, Azure `azure_openai.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

from tuneway.errors import InvalidRequest, JobFailure, ProviderError
from tuneway.providers.base import Capabilities, NotServed
from tuneway.providers.line import Line, Reply, read
from tuneway.providers.shapes import (
    as_object,
    form_around,
    framed,
    listed,
    plain_csv,
    segment,
    shown_checkpoint,
    shown_event,
    shown_file,
    shown_job,
    shown_model,
    unsupported,
)
from tuneway.providers.vendor import (
    Form,
    Json,
    Kind,
    Options,
    Report,
    Vendor,
    Verb,
    hyperparameters_of,
    is_unknown,
    method_of,
)
from tuneway.types import AUTO, BaseModel, Deployment, JobStatus, Method, Model, Upstream

BASE_URL = r"https?://[A-Za-z0-9._:\[\]-]+(/[A-Za-z0-9._~/-]*)?"
"""The pattern of a base URL; which hosts may be called is decided where the connection is made."""

STATUSES: Mapping[str, JobStatus] = {
    **{status.value: status for status in JobStatus},
    "created": JobStatus.QUEUED,
    "pending": JobStatus.QUEUED,
    "completed": JobStatus.SUCCEEDED,
    "canceled": JobStatus.CANCELLED,
    "cancelling": JobStatus.RUNNING,
    "error": JobStatus.FAILED,
}
"""OpenAI's own words, its older ones, and those that its imitators are known to use."""

ACTIVATION_SECONDS = 30 * 60
PROBE_SECONDS = 10 * 60
"""How long a tuned model may take until it answers."""
LONGEST_PROBE_WAIT = 15.0

EVERYTHING = Capabilities(
    methods=frozenset(Method),
    seed=True,
    suffix=True,
    validation_file=True,
    metadata=True,
    pause=True,
    remote=True,
    integrations=True,
    any_base=True,
    poll_seconds=10.0,
    settle_seconds=20,
)


@dataclass(frozen=True, slots=True)
class Row:
    """One vendor that speaks OpenAI's shape. `base_url` None is asked for.

    `absolute_rate`: its `learning_rate_multiplier` is really an absolute rate. `auto`: it knows the value "auto".
    `flat`: hyperparameters stand in `hyperparameters`, and there is no `method`. `activation`: the path, behind the
    host, where a tuned model must be registered before it answers.
    """

    name: str
    base_url: str | None = None
    hosts: tuple[str, ...] = ()
    capabilities: Capabilities = EVERYTHING
    absolute_rate: bool = False
    auto: bool = True
    flat: bool = False
    activation: str | None = None
    processes_files: bool = False
    bases: tuple[str, ...] = ()
    chat_limit: str = "max_tokens"
    """The chat parameter that bounds an answer's tokens."""
    importable: bool = False
    """See `Vendor.importable`."""
    options: Mapping[str, str] = field(default_factory=dict)


class OpenAICompatible(Vendor):
    """`headers` hold the credential."""

    statuses = STATUSES

    def __init__(self, row: Row, base_url: str, headers: Mapping[str, str], line: Line) -> None:
        super().__init__(line)
        self.kind = row.name
        self.capabilities = row.capabilities
        self.serves_at_once = row.activation is None
        self.chooses_numbers = row.auto
        self.processes_files = row.processes_files
        self.importable = row.importable and row.activation is None
        self._row = row
        self._base_url = base_url.rstrip("/")
        self._headers = headers

    # ------------------------------------------------------------------------------------------------------- files

    async def upload(
        self, filename: str, purpose: str, content: AsyncIterable[bytes], size: int, rows: int | None = None
    ) -> Json:
        boundary, head, tail = form_around(filename, {"purpose": purpose})
        headers = {
            "content-type": f"multipart/form-data; boundary={boundary}",
            "content-length": str(len(head) + size + len(tail)),
        }
        return self.shown_file(await self._ask("POST", "/files", headers=headers, content=framed(head, content, tail)))

    async def relay_upload(self, form: Form) -> Json:
        return self.shown_file(await self._send_form("/files", form))

    async def list_files(self, query: Mapping[str, str]) -> Json:
        return listed(await self._ask("GET", "/files", query=query), self.shown_file)

    async def file(self, file_id: str) -> Json:
        return self.shown_file(await self._ask("GET", f"/files/{segment(file_id)}"))

    async def delete_file(self, file_id: str) -> Json:
        return as_object(await self._ask("DELETE", f"/files/{segment(file_id)}"))

    @asynccontextmanager
    async def content(self, file_id: str) -> AsyncIterator[Reply]:
        url = self.url(f"/files/{segment(file_id)}/content")
        async with self.line.open("GET", url, headers=await self.credential(), whole=False) as reply:
            yield reply

    # -------------------------------------------------------------------------------------------------------- jobs

    def translate(self, body: Json) -> Json:
        extension = body.get("tuneway") or {}
        sent = {name: value for name, value in body.items() if name != "tuneway"}
        can, method = self.capabilities, method_of(body)
        if method not in can.methods:
            raise unsupported(self.kind, "method.type", method.value)
        for name in ("seed", "suffix", "validation_file", "metadata", "integrations"):
            if sent.get(name) not in (None, []) and not getattr(can, name):
                raise unsupported(self.kind, name)
        options = dict(extension.get("options") or {})
        for name in options:
            if name not in can.options:
                raise unsupported(self.kind, f"tuneway.options.{name}")
        asked = hyperparameters_of(body)
        rate = extension.get("learning_rate")
        if self._row.absolute_rate:
            options |= self._absolute_rate(asked.get("learning_rate_multiplier", AUTO), rate)
        elif rate is not None:
            raise InvalidRequest(
                f"The provider '{self.kind}' takes no absolute learning rate. Give 'learning_rate_multiplier'.",
                param="tuneway.learning_rate",
                code="unsupported_parameter",
            )
        if not (self._row.flat or self._row.absolute_rate or not self._row.auto):
            return sent
        numbers = dict(asked)
        if self._row.absolute_rate:
            numbers.pop("learning_rate_multiplier", None)
        if not self._row.auto:
            # Its jobs have no "auto"; three epochs are what OpenAI's takes for most files.
            numbers = {"n_epochs": 3, **{name: value for name, value in numbers.items() if value != AUTO}}
        numbers |= options
        given = sent.pop("method", None) or {}
        if self._row.flat:
            return {**sent, "hyperparameters": numbers}
        sent.pop("hyperparameters", None)
        own = {**(given.get(method.value) or {}), "hyperparameters": numbers}
        return {**sent, "method": {**given, "type": method.value, method.value: own}}

    async def create_job(self, body: Json) -> Json:
        return self.shown_job(await self._ask("POST", "/fine_tuning/jobs", body=self.translate(body)))

    async def list_jobs(self, query: Mapping[str, str]) -> Json:
        return listed(await self._ask("GET", "/fine_tuning/jobs", query=query), self.shown_job)

    async def job(self, job_id: str) -> Json:
        return self.shown_job(await self._ask("GET", f"/fine_tuning/jobs/{segment(job_id)}"))

    async def change_job(self, job_id: str, verb: Verb) -> Json:
        if verb != "cancel" and not self.capabilities.pause:
            raise self.lacks(f"'{verb}' of a job")
        return self.shown_job(await self._ask("POST", f"/fine_tuning/jobs/{segment(job_id)}/{verb}"))

    async def events(self, job_id: str, query: Mapping[str, str]) -> Json:
        found = await self._ask("GET", f"/fine_tuning/jobs/{segment(job_id)}/events", query=query)
        return listed(found, shown_event)

    async def checkpoints(self, job_id: str, query: Mapping[str, str]) -> Json:
        found = await self._ask("GET", f"/fine_tuning/jobs/{segment(job_id)}/checkpoints", query=query)
        return listed(found, lambda raw: shown_checkpoint(raw, job_id))

    async def tuned_model(self, job: Json) -> str | None:
        """Where it must be activated first, what it is made of: the newest checkpoint, as `JOB:CHECKPOINT`."""
        if self._row.activation is None or job.get("fine_tuned_model"):
            return await super().tuned_model(job)
        newest = (await self.checkpoints(str(job["id"]), {"limit": "1"}))["data"]
        return f"{job['id']}:{newest[0]['id']}" if newest else None

    async def result_csv(self, job: Json) -> bytes | None:
        files = job.get("result_files") or []
        if not files:
            return None
        async with self.content(str(files[0])) as reply:
            return plain_csv(await read(reply, self.line.name))

    # ------------------------------------------------------------------------------------------------------ models

    def base_models(self) -> tuple[BaseModel, ...]:
        return tuple(BaseModel(name, self.kind, f"A base model of {self.kind}.", 0) for name in self._row.bases)

    async def list_models(self) -> Json:
        return listed(await self._ask("GET", "/models"), shown_model)

    async def model(self, name: str) -> Json:
        return shown_model(await self._ask("GET", f"/models/{segment(name)}"))

    async def delete_model(self, name: str) -> Json:
        return as_object(await self._ask("DELETE", f"/models/{segment(name)}"))

    async def serve(self, model: Model, report: Report) -> Deployment | None:
        if self._row.activation is None:
            await self.probe(model.upstream_model)
            return None
        deployment = Deployment(await self._activate(_activated_as(model), model, report), int(time.time()))
        try:
            await self.probe(deployment.name)
        except JobFailure as failure:
            raise NotServed(failure.message, deployment) from failure
        return deployment

    async def withdraw(self, model: Model) -> None:
        if self._row.activation is not None and not model.intermediate:
            name = _activated_as(model) if model.deployment is None else model.deployment.name
            await self._gone_is_fine("DELETE", f"{self._root()}{self._row.activation}/{segment(name)}")
        elif not model.imported and not model.intermediate:
            await self._gone_is_fine("DELETE", self.url(f"/models/{segment(model.upstream_model)}"))

    async def chat(self, model: str) -> Upstream:
        return Upstream(self.url("/chat/completions"), await self.credential())

    async def probe(self, name: str) -> None:
        """Waits until the model answers one token. Raises JobFailure when it does not for `PROBE_SECONDS`."""
        upstream = await self.chat(name)
        body = {"model": name, "messages": [{"role": "user", "content": "Hi"}], self._row.chat_limit: 1}
        end, wait = time.monotonic() + PROBE_SECONDS, 1.0
        while True:
            try:
                await self.line.json("POST", upstream.url, headers=upstream.headers, body=body)
                return
            except ProviderError as error:
                if error.status in (400, 422):
                    return  # it knows the model, and dislikes the question
                if not is_unknown(error):
                    raise
                if time.monotonic() > end:
                    raise JobFailure(
                        f"Training has succeeded at {self.line.name}, but its model {name} does not answer: "
                        f"{error.message}"
                    ) from error
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_PROBE_WAIT)

    # ------------------------------------------------------------------------------------------------------ others

    async def pass_on(self, method: str, path: str, query: str, body: bytes | None) -> tuple[int, Json]:
        headers = dict(await self.credential())
        if body is not None:
            headers["content-type"] = "application/json"
        status, _, value = await self.line.answer(method, self.url(path, query), headers=headers, content=body)
        return status, value

    async def pass_part_on(self, upload_id: str, form: Form) -> Json:
        return as_object(await self._send_form(f"/uploads/{segment(upload_id)}/parts", form))

    # ----------------------------------------------------------------------------------------------------- details

    def url(self, path: str, query: str = "") -> str:
        return self._base_url + path + (f"?{query}" if query else "")

    async def credential(self) -> Mapping[str, str]:
        """The headers of every request, for vendors whose tokens must be fetched."""
        return self._headers

    def shown_job(self, raw: Any) -> Json:
        """A job in the seam's form, whatever the vendor left out or put in."""
        return shown_job(raw, self.statuses)

    def shown_file(self, raw: Any) -> Json:
        return shown_file(raw)

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        content: AsyncIterable[bytes] | None = None,
    ) -> Any:
        url = self.url(path, urlencode(query or {}))
        sent = dict(await self.credential()) | dict(headers or {})
        return await self.line.json(method, url, headers=sent, body=body, content=content)

    async def _send_form(self, path: str, form: Form) -> Any:
        """The form as it came, to the last byte."""
        headers = {"content-type": form.content_type}
        if form.length is not None:
            headers["content-length"] = str(form.length)
        return await self._ask("POST", path, headers=headers, content=form.raw())

    def _absolute_rate(self, multiplier: Any, rate: float | None) -> Json:
        if multiplier != AUTO:
            raise InvalidRequest(
                f"The provider '{self.kind}' reads 'learning_rate_multiplier' as an absolute rate, and no rule turns "
                "one into the other. Send the rate as 'tuneway': {'learning_rate': …}.",
                param="hyperparameters.learning_rate_multiplier",
                code="unsupported_parameter",
            )
        return {} if rate is None else {"learning_rate_multiplier": rate}

    def _root(self) -> str:
        """Scheme and host."""
        scheme, _, rest = self._base_url.partition("://")
        return f"{scheme}://{rest.partition('/')[0]}"

    async def _activate(self, name: str, model: Model, report: Report) -> str:
        """Registers the tuned model under `name`, once, and waits until it is active; what chats call it then.

        That may be another name: Nebius answers `{base}-LoRa:{name}-xxxx` (its API reference).
        """
        assert self._row.activation is not None
        collection = self._root() + self._row.activation
        one = f"{collection}/{segment(name)}"
        try:
            await self.line.json("GET", one, headers=self._headers)
        except ProviderError as error:
            if not is_unknown(error):
                raise
            body = {"name": name, "base_model": model.base, "source": model.upstream_model}
            await self.line.json("POST", collection, headers=self._headers, body=body)
        await report(f"The model is being activated at {self.line.name} as {name}")
        end = time.monotonic() + ACTIVATION_SECONDS
        while True:
            found = as_object(await self.line.json("GET", one, headers=self._headers))
            if found.get("status") == "active":
                return str(found.get("name") or name)
            if found.get("status") in ("error", "failed") or time.monotonic() > end:
                said = found.get("status_reason") or found.get("error") or found.get("status")
                raise JobFailure(f"{self.line.name} did not activate the model {name}: {said}")
            await asyncio.sleep(min(self.capabilities.poll_seconds, LONGEST_PROBE_WAIT))

    async def _gone_is_fine(self, method: str, url: str) -> None:
        try:
            await self.line.json(method, url, headers=self._headers)
        except ProviderError as error:
            if not is_unknown(error):
                raise


def _activated_as(model: Model) -> str:
    """By the model's own name, so that doing it again finds it."""
    return "tuneway-" + "".join(char for char in model.id.lower() if char.isalnum())[-40:]


# ------------------------------------------------------------------------------------------------------------- rows

_NEBIUS_OPTIONS = frozenset(
    {
        "lora",
        "lora_r",
        "lora_alpha",
        "lora_dropout",
        "packing",
        "warmup_ratio",
        "weight_decay",
        "max_grad_norm",
        "context_length",
    }
)

NEBIUS = Row(
    name="nebius",
    base_url="https://api.tokenfactory.nebius.com/v1",
    hosts=("api.tokenfactory.nebius.com",),
    capabilities=replace(
        EVERYTHING,
        methods=frozenset({Method.SUPERVISED}),
        metadata=False,
        pause=False,
        learning_rate=True,
        options=_NEBIUS_OPTIONS,
    ),
    absolute_rate=True,
    auto=False,
    flat=True,
    activation="/v0/models",
)

MANTLE = Row(
    name="bedrock-mantle",
    hosts=("*.api.aws",),
    # Its documents show neither suffix, seed nor metadata.
    capabilities=replace(
        EVERYTHING,
        methods=frozenset({Method.REINFORCEMENT}),
        seed=False,
        suffix=False,
        metadata=False,
        pause=False,
        integrations=False,
    ),
    options={"aws_region": "The AWS region, such as us-west-2."},
)

ANY = Row(
    name="openai-compatible",
    importable=True,
    capabilities=replace(EVERYTHING, metadata=False, pause=False, learning_rate=True),
    options={
        "base_url": "The vendor's URL up to and including its version, such as https://api.example.com/v1.",
        "learning_rate": "`multiplier` (default), or `absolute` where the vendor reads the multiplier's field so.",
        "hyperparameters": "`method` (default), or `flat` for vendors that know the old field only.",
        "auto": '`yes` (default) where the vendor knows the value "auto", else `no`.',
        "activation": "The path where a tuned model must be registered before it answers, such as /v0/models.",
        "metadata": "`yes` where jobs have metadata that their list can be filtered by; default `no`.",
    },
)


def _build(row: Row, options: Options, line: Line) -> Vendor:
    row, base_url = _configured(row, options)
    key = options.need("api_key", r"[\x21-\x7e]{1,4096}")
    return OpenAICompatible(row, base_url, {"authorization": f"Bearer {key}"}, line)


def _configured(row: Row, options: Options) -> tuple[Row, str]:
    """The row as an account has it, and its base URL."""
    own = options.get("base_url", BASE_URL)
    if row is MANTLE:
        region = options.get("aws_region", r"[a-z]{2}(-[a-z]+)+-\d")
        if own is None and region is None:
            options.need("aws_region")
        return row, own or f"https://bedrock-mantle.{region}.api.aws/v1"
    if row is not ANY:
        return row, own or row.base_url or options.need("base_url", BASE_URL)
    metadata = options.get("metadata", "yes|no") == "yes"
    chosen = replace(
        row,
        capabilities=replace(row.capabilities, metadata=metadata),
        absolute_rate=options.get("learning_rate", "multiplier|absolute") == "absolute",
        flat=options.get("hyperparameters", "method|flat") == "flat",
        auto=options.get("auto", "yes|no") != "no",
        activation=options.get("activation", r"/[A-Za-z0-9._~/-]+"),
    )
    return chosen, options.need("base_url", BASE_URL)


def _kind(row: Row) -> Kind:
    own_url = {"base_url": "Another URL than the vendor's own."}
    return Kind(
        name=row.name,
        build=lambda options, line: _build(row, options, line),
        hosts=row.hosts,
        options={**own_url, **row.options},
        secrets={"api_key": "The vendor's key."},
        capabilities=None if row is ANY else row.capabilities,
    )


KINDS = tuple(_kind(row) for row in (NEBIUS, MANTLE, ANY))
