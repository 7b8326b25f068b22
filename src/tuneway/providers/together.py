"""Together: fine-tuning in shapes of its own, and tuned models that answer only from a dedicated endpoint.

Its jobs have no metadata, no pages and no key that makes a create safe to repeat. They are known again by file, model,
suffix and seed: creates and lists show the last two, a single job does not, and then says nothing of them here.

Endpoints are those of its v1, which its documentation supports until the end of 2026. v2 (projects, configurations and
deployments) is to come and not built. Facts: the SDK together 3.1.1, the vendor's API description and documentation;
tested against a simulator.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tuneway.dataset.features import Feature
from tuneway.errors import JobFailure, JobNotEnded, ProviderError
from tuneway.providers.asked import check_form, taken_apart
from tuneway.providers.base import Capabilities
from tuneway.providers.line import Line, Reply
from tuneway.providers.openai_compatible import BASE_URL
from tuneway.providers.shapes import (
    as_object,
    form_around,
    framed,
    listed,
    moment,
    segment,
    unix_seconds,
)
from tuneway.providers.together_shapes import (
    METHODS,
    NAME,
    OPTIONS,
    STATUSES,
    create_of,
    fields_of,
    is_final,
    metrics_csv,
    shown_checkpoint,
    shown_event,
    shown_file,
    shown_job,
    shown_model,
)
from tuneway.providers.vendor import Form, Json, Kind, Options, Report, Vendor, Verb, is_unknown, listing, page
from tuneway.types import TERMINAL_STATUSES, Deployment, JobStatus, Model, Upstream

URL = "https://api.together.ai/v1"

CAPABILITIES = Capabilities(
    methods=frozenset(METHODS.values()),
    seed=True,
    suffix=True,
    validation_file=True,
    remote=True,
    learning_rate=True,
    options=frozenset(OPTIONS),
    # Images as base64 only (docs.together.ai/docs/fine-tuning/vision). The roles are system, user, assistant and tool,
    # and a key besides "messages" and "tools" is an error (together-python 1.5, utils/files.py). Weights, tools and
    # parallel calls are what its own check reports of a file (together 3.1.1, types/file_response.py).
    refused_features=frozenset({Feature.IMAGE_URLS, Feature.DEVELOPER, Feature.FUNCTIONS}),
    any_base=True,
    poll_seconds=10.0,
    settle_seconds=20,
)

SERVE_SECONDS = 40 * 60
FIRST_WAIT, LONGEST_WAIT = 2.0, 15.0


@dataclass(frozen=True, slots=True)
class Hosting:
    """What serves each tuned model. It bills by the minute until it is deleted, or stops itself when idle."""

    hardware: str
    min_replicas: int
    max_replicas: int
    idle_minutes: int | None


class Together(Vendor):
    """`lora` are rank and alpha of jobs that say nothing of it; `hosting` None serves no tuned model."""

    kind = NAME
    capabilities = CAPABILITIES
    serves_at_once = False
    chooses_numbers = False

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        line: Line,
        *,
        lora: Mapping[str, int],
        hosting: Hosting | None,
    ) -> None:
        super().__init__(line)
        self._base_url = base_url.rstrip("/")
        self._headers = headers
        self._lora = lora
        self._hosting = hosting

    # ------------------------------------------------------------------------------------------------------- files

    async def upload(
        self, filename: str, purpose: str, content: AsyncIterable[bytes], size: int, rows: int | None = None
    ) -> Json:
        boundary, head, tail = form_around(filename, fields_of(filename))
        length = {"content-length": str(len(head) + size + len(tail))}
        return await self._send(boundary, framed(head, content, tail), length)

    async def relay_upload(self, form: Form) -> Json:
        """In Together's own form, as the client's comes; one that must not be is broken off before its end, so that
        nothing of it is kept there."""
        filename = await form.filename()
        boundary, head, tail = form_around(filename, fields_of(filename))
        check_form(form.fields(), NAME, whole=False)

        async def checked() -> AsyncIterator[bytes]:
            async for piece in form.content():
                yield piece
            check_form(form.fields(), NAME, whole=True)

        return await self._send(boundary, framed(head, checked(), tail), {})

    async def list_files(self, query: Mapping[str, str]) -> Json:
        files: list[Json] = listed(await self._ask("GET", "/files"), shown_file)["data"]
        if query.get("purpose"):
            files = [file for file in files if file["purpose"] == query["purpose"]]
        files.sort(key=lambda file: file["created_at"] or 0, reverse=query.get("order") != "asc")
        return page(files, query, default=10_000)

    async def file(self, file_id: str) -> Json:
        return shown_file(await self._ask("GET", f"/files/{segment(file_id)}"))

    async def delete_file(self, file_id: str) -> Json:
        return {"object": "file", **as_object(await self._ask("DELETE", f"/files/{segment(file_id)}"))}

    @asynccontextmanager
    async def content(self, file_id: str) -> AsyncIterator[Reply]:
        url = f"{self._base_url}/files/{segment(file_id)}/content"
        async with self.line.open("GET", url, headers=self._headers, whole=False) as reply:
            yield reply

    # -------------------------------------------------------------------------------------------------------- jobs

    def translate(self, body: Json) -> Json:
        return create_of(taken_apart(body, self), self._lora)

    async def create_job(self, body: Json) -> Json:
        return self._listed_job(await self._ask("POST", "/fine-tunes", body=self.translate(body)))

    async def list_jobs(self, query: Mapping[str, str]) -> Json:
        """Together answers all jobs at once, in no order that is promised."""
        jobs = as_object(await self._ask("GET", "/fine-tunes")).get("data") or []
        newest_first = sorted(jobs, key=lambda job: moment(job.get("created_at")))[::-1]
        return page([self._listed_job(job) for job in newest_first], query)

    async def job(self, job_id: str) -> Json:
        raw = as_object(await self._ask("GET", f"/fine-tunes/{segment(job_id)}"))
        if STATUSES.get(str(raw.get("status"))) is JobStatus.FAILED and not raw.get("events"):
            raw["events"] = await self._events(job_id)
        return shown_job(raw)

    async def change_job(self, job_id: str, verb: Verb) -> Json:
        if verb != "cancel":
            raise self.lacks(f"'{verb}' of a job")
        return self._listed_job(await self._ask("POST", f"/fine-tunes/{segment(job_id)}/cancel"))

    async def delete_job(self, job_id: str) -> None:
        """The record itself; of a job that still runs nobody could say any more what became of it."""
        if JobStatus((await self.job(job_id))["status"]) not in TERMINAL_STATUSES:
            raise JobNotEnded
        await self._ask("DELETE", f"/fine-tunes/{segment(job_id)}")

    async def events(self, job_id: str, query: Mapping[str, str]) -> Json:
        return page([shown_event(event) for event in await self._events(job_id)][::-1], query)

    async def checkpoints(self, job_id: str, query: Mapping[str, str]) -> Json:
        """The final one is the tuned model. Others are named as `from_checkpoint` takes them; none is served."""
        raw = as_object(await self._ask("GET", f"/fine-tunes/{segment(job_id)}/checkpoints")).get("data") or []
        final = any(is_final(each) for each in raw)
        tuned = (await self.job(job_id))["fine_tuned_model"] if final else None
        shown = [shown_checkpoint(each, job_id, tuned) for each in raw]
        return page(sorted(shown, key=lambda each: -int(each["step_number"])), query, default=10)

    async def result_csv(self, job: Json) -> bytes | None:
        try:
            found = as_object(await self._ask("GET", f"/fine-tunes/{segment(str(job['id']))}/metrics"))
        except ProviderError as error:
            if error.without_effect and error.status != 429:
                return None
            raise
        return metrics_csv(found.get("metrics") or [])

    # ------------------------------------------------------------------------------------------------------ models

    async def list_models(self) -> Json:
        return listing([shown_model(model) for model in await self._models()], has_more=False)

    async def model(self, name: str) -> Json:
        for model in await self._models():
            if model.get("id") == name:
                return shown_model(model)
        raise ProviderError(404, f"The model '{name[:200]}' does not exist at Together.", code="model_not_found")

    async def serve(self, model: Model, report: Report) -> Deployment | None:
        tuned, hosting = model.upstream_model, self._hosting
        if hosting is None:
            await report(
                f"The tuned model is {tuned} at {self.line.name}. Together answers it only from a dedicated endpoint. "
                "Set `hardware` in the options of this account, and what is tuned from then on gets one; or make one "
                "at Together and ask it by the endpoint's name."
            )
            return None
        endpoint = next(iter(await self._endpoints(model)), None)
        if endpoint is None:
            asked: Json = {"model": tuned, "hardware": hosting.hardware, "display_name": endpoint_name(model.id)}
            asked["autoscaling"] = {"min_replicas": hosting.min_replicas, "max_replicas": hosting.max_replicas}
            asked |= {} if hosting.idle_minutes is None else {"inactive_timeout": hosting.idle_minutes}
            try:
                endpoint = as_object(await self._ask("POST", "/endpoints", body=asked))
            except ProviderError as error:
                if not is_unknown(error):
                    raise
                await report(f"The tuned model is {tuned} at {self.line.name}, which cannot serve it: {error.message}")
                return None
        await report(f"{tuned} is being served at {self.line.name} as {endpoint.get('name')}; it bills by the minute")
        deployment = await self._started(str(endpoint["id"]), tuned)
        # A create that was on its way when the gateway was killed has had time to arrive by now.
        for other in await self._endpoints(model):
            if other["id"] != endpoint["id"]:
                await self._delete_endpoint(str(other["id"]))
        return deployment

    async def withdraw(self, model: Model) -> None:
        """Ends the endpoint, and with it the bill. The model stays at Together, whose v1 deletes none."""
        if model.intermediate or (model.deployment is None and (model.imported or self._hosting is None)):
            return
        for endpoint in await self._endpoints(model):
            await self._delete_endpoint(str(endpoint["id"]))

    async def chat(self, model: str) -> Upstream:
        return Upstream(f"{self._base_url}/chat/completions", self._headers)

    # ----------------------------------------------------------------------------------------------------- details

    async def _ask(self, method: str, path: str, *, body: Any = None) -> Any:
        return await self.line.json(method, self._base_url + path, headers=self._headers, body=body)

    async def _send(self, boundary: str, content: AsyncIterable[bytes], headers: Mapping[str, str]) -> Json:
        kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
        url, sent = f"{self._base_url}/files/upload", {**self._headers, **kind, **headers}
        return shown_file(await self.line.json("POST", url, headers=sent, content=content))

    def _listed_job(self, raw: Any) -> Json:
        """A job as creates, lists and cancels show it: there a suffix that is missing is none."""
        return shown_job({"suffix": None, **as_object(raw)})

    async def _events(self, job_id: str) -> list[Json]:
        """Oldest first."""
        found = as_object(await self._ask("GET", f"/fine-tunes/{segment(job_id)}/events")).get("data") or []
        return sorted(found, key=lambda event: moment(event.get("created_at")))

    async def _models(self) -> list[Json]:
        found: list[Json] = listed(await self._ask("GET", "/models"), as_object)["data"]
        return found

    async def _endpoints(self, model: Model) -> list[Json]:
        """What serves the model: the endpoint that is recorded, and what has our name of it, which no create makes
        unique. Lists do not show that name (its API description), so each endpoint of the model is looked at.
        """
        recorded = None if model.deployment is None else model.deployment.name
        found = []
        for each in as_object(await self._ask("GET", "/endpoints")).get("data") or []:
            if each.get("name") == recorded:
                found.append(each)
            elif each.get("model") == model.upstream_model:
                whole = as_object(await self._ask("GET", f"/endpoints/{segment(str(each['id']))}"))
                if whole.get("display_name") == endpoint_name(model.id):
                    found.append(whole)
        return found

    async def _started(self, endpoint_id: str, tuned: str) -> Deployment:
        """Waits for the endpoint; one that will not start is deleted, as it may bill all the same."""
        end, wait = time.monotonic() + SERVE_SECONDS, FIRST_WAIT
        while True:
            found = as_object(await self._ask("GET", f"/endpoints/{segment(endpoint_id)}"))
            state, name = found.get("state"), str(found.get("name"))
            if state == "STARTED":
                return Deployment(name, unix_seconds(found.get("created_at")) or int(time.time()))
            if state in ("ERROR", "STOPPING", "STOPPED") or time.monotonic() > end:
                await self._delete_endpoint(endpoint_id)
                raise JobFailure(
                    f"Training has succeeded, and the tuned model stays at Together as {tuned}; but its endpoint "
                    f"{name} did not start (it was {state}) and was deleted. Other `hardware` may serve it."
                )
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    async def _delete_endpoint(self, endpoint_id: str) -> None:
        try:
            await self._ask("DELETE", f"/endpoints/{segment(endpoint_id)}")
        except ProviderError as error:
            if not is_unknown(error):
                raise


def endpoint_name(model_id: str) -> str:
    """Of the endpoint of a tuned model of the gateway: always the same, so that what a crash left behind is found."""
    return f"tuneway-{hashlib.sha256(model_id.encode()).hexdigest()[:24]}"


# ------------------------------------------------------------------------------------------------------ the account


def build(options: Options, line: Line) -> Vendor:
    key = options.need("api_key", r"[\x21-\x7e]{1,4096}")
    hardware = options.get("hardware", r"[A-Za-z0-9_.-]{1,100}")
    least = _whole(options, "min_replicas", 0, 1000)
    most, idle = _whole(options, "max_replicas", 1, 1000), _whole(options, "inactive_timeout", 0, 100_000)
    hosting = None
    if hardware is not None:
        least = 1 if least is None else least
        hosting = Hosting(hardware, least, max(least, 1) if most is None else most, idle)
    lora = {name: value for name in ("lora_r", "lora_alpha") if (value := _whole(options, name, 1, 4096)) is not None}
    if "lora_alpha" in lora:
        options.need("lora_r")
    url = options.get("base_url", BASE_URL) or URL
    return Together(url, {"authorization": f"Bearer {key}"}, line, lora=lora, hosting=hosting)


def _whole(options: Options, name: str, low: int, high: int) -> int | None:
    return None if options.get(name, r"\d{1,6}") is None else int(options.number(name, low, low, high))


_HOSTING = {
    "hardware": "What serves each tuned model, such as 1x_nvidia_h100_80gb_sxm; without it none is served.",
    "min_replicas": "Of an endpoint. Default: 1.",
    "max_replicas": "Of an endpoint. Default: min_replicas.",
    "inactive_timeout": "Minutes without a request after which an endpoint stops. Default: it never does.",
}

KIND = Kind(
    name=NAME,
    build=build,
    hosts=("api.together.ai", "api.together.xyz"),
    options={
        "base_url": f"Another URL than {URL}.",
        "lora_r": "The rank of jobs that set none; else Together's own.",
        "lora_alpha": "Of such jobs. Default: twice the rank.",
        **_HOSTING,
    },
    secrets={"api_key": "A key of Together."},
    not_relayed=frozenset(_HOSTING),
    capabilities=CAPABILITIES,
)
