"""Fireworks: datasets, jobs and deployments, each under an id that its client may choose.

A create whose id is taken is refused, so one that was sent twice made one thing: ids here come from the gateway's key
of the job, from a file's content, from a model's name. A tuned model answers from a deployment of its own, which is
merged from it and stands at no machine while nobody asks.

Jobs have no seed, no metadata and no events; a suffix is their display name. Facts: the SDK fireworks-ai 1.2.30 and the
vendor's documentation; tested against a simulator.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import urlencode

from tuneway.dataset.features import Feature
from tuneway.errors import InvalidRequest, JobFailure, JobNotEnded, ProviderError, ProviderSilent
from tuneway.providers.asked import PURPOSE, check_form, taken_apart
from tuneway.providers.base import Capabilities
from tuneway.providers.fireworks_shapes import (
    CODES,
    DPO,
    KINDS,
    MOST_NAME,
    NAME,
    OPTIONS,
    PRECONDITION,
    Create,
    chosen_id,
    create_of,
    digest_of,
    id_of,
    last,
    model_name,
    shown_file,
    shown_job,
    shown_model,
)
from tuneway.providers.line import Line, Reply
from tuneway.providers.openai_compatible import BASE_URL
from tuneway.providers.shapes import as_object, form_around, framed, moment, segment, unix_seconds
from tuneway.providers.spool import spooled
from tuneway.providers.vendor import Form, Json, Kind, Options, Report, Vendor, Verb, is_unknown, listing, page
from tuneway.types import TERMINAL_STATUSES, Deployment, JobStatus, Model, Upstream

ORIGIN = "https://api.fireworks.ai"

CAPABILITIES = Capabilities(
    methods=frozenset(KINDS.values()),
    suffix=True,
    validation_file=True,
    remote=True,
    learning_rate=True,
    options=frozenset(OPTIONS),
    # "Images must be base64 encoded" (docs.fireworks.ai/fine-tuning/fine-tuning-vlm); "role: one of system, user, or
    # assistant", a weight of 0 or 1, and a list of `tools` (docs.fireworks.ai/fine-tuning/fine-tuning-models).
    refused_features=frozenset({Feature.IMAGE_URLS, Feature.DEVELOPER, Feature.FUNCTIONS}),
    any_base=True,
    poll_seconds=10.0,
    settle_seconds=20,
)

UPLOAD_BYTES = 150 * 10**6
"""The most that goes in one request ("150Mb", docs.fireworks.ai/api-reference/upload-dataset-files)."""
PAGE, MAX_PAGES = 200, 50
READY_SECONDS = 30
"""How long a relayed upload waits for its dataset, as a job cannot begin with one that is not ready."""
DEPLOY_SECONDS = 60 * 60
FIRST_WAIT, LONGEST_WAIT = 1.0, 15.0
TAKEN = 409

_ACCOUNT = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"


class Fireworks(Vendor):
    """`account` raises InvalidRequest where none was given, which chat alone does without. `announced` is the header
    that gives the size of a relay's file, and that size.
    """

    kind = NAME
    capabilities = CAPABILITIES
    serves_at_once = False
    chooses_numbers = False
    chooses_ids = True
    counts_rows = True

    def __init__(
        self,
        origin: str,
        inference_url: str,
        account: Callable[[], str],
        headers: Mapping[str, str],
        line: Line,
        *,
        deploys: bool,
        announced: tuple[str, int] | None,
    ) -> None:
        super().__init__(line)
        self._root = f"{origin}/v1"
        self._inference_url = inference_url.rstrip("/")
        self._account = account
        self._headers = headers
        self._deploys = deploys
        self._announced = announced

    # ------------------------------------------------------------------------------------------------------- files

    async def upload(
        self, filename: str, purpose: str, content: AsyncIterable[bytes], size: int, rows: int | None = None
    ) -> Json:
        """Under an id of the name and size, which stand for the content: what an earlier try began is gone on with."""
        file_id = f"tuneway-{digest_of(filename)}-{size}"
        is_new = await self._create_dataset(file_id, filename, rows or 0)
        if not is_new and (found := await self.file(file_id))["status"] == "processed":
            return found
        try:
            await self._fill(file_id, content, size)
        except ProviderError as error:
            if is_new or error.code != PRECONDITION:
                raise  # otherwise its content had come
        return await self.file(file_id)

    async def relay_upload(self, form: Form) -> Json:
        """Through a temporary file: a dataset is created with the number of its rows, before its content may come."""
        filename = await form.filename()
        if not filename.endswith(".jsonl"):
            raise InvalidRequest("Fireworks takes files whose names end in .jsonl.", param="file", code="invalid_value")
        check_form(form.fields(), NAME, whole=False)
        async with spooled(form) as spool:
            check_form(form.fields(), NAME, whole=True)
            if self._announced is not None and self._announced[1] != spool.size:
                raise InvalidRequest(
                    f"The file has {spool.size} bytes, and its announced size is {self._announced[1]}.",
                    param=self._announced[0],
                    code="invalid_value",
                )
            file_id = f"file-{secrets.token_hex(12)}-{spool.size}"
            await self._create_dataset(file_id, filename, spool.rows)
            try:
                await self._fill(file_id, spool.pieces(), spool.size)
            except (ProviderError, ProviderSilent):
                with suppress(ProviderError, ProviderSilent):
                    await self._ask("DELETE", f"/datasets/{file_id}")
                raise
        return await self._ready(file_id)

    async def list_files(self, query: Mapping[str, str]) -> Json:
        if query.get("purpose") not in (None, "", PURPOSE):
            return listing([], has_more=False)
        newest_first = _by_age(await self._all("datasets"))
        files = [shown_file(dataset) for dataset in newest_first]
        return page(files[::-1] if query.get("order") == "asc" else files, query, default=10_000)

    async def file(self, file_id: str) -> Json:
        return shown_file(await self._ask("GET", f"/datasets/{self._id(file_id, 'datasets')}"))

    async def delete_file(self, file_id: str) -> Json:
        own = self._id(file_id, "datasets")
        await self._ask("DELETE", f"/datasets/{own}")
        return {"id": own, "object": "file", "deleted": True}

    @asynccontextmanager
    async def content(self, file_id: str) -> AsyncIterator[Reply]:
        path = f"/datasets/{self._id(file_id, 'datasets')}:getDownloadEndpoint"
        urls = list((as_object(await self._ask("GET", path)).get("filenameToSignedUrls") or {}).values())
        if len(urls) != 1:
            raise self.lacks(f"downloading a dataset of {len(urls)} files at once")
        # A signed URL is the credential itself: ours goes nowhere but to the API.
        async with self.line.open("GET", str(urls[0]), headers={}, whole=False) as reply:
            yield reply

    # -------------------------------------------------------------------------------------------------------- jobs

    def translate(self, body: Json) -> Json:
        return self._create(body).body

    async def create_job(self, body: Json) -> Json:
        """A create that was sent before, by the same key, gives the job that it made."""
        create = self._create(body)
        param = f"{create.kind.removesuffix('s')}Id"
        try:
            made = await self._ask("POST", f"/{create.kind}?{urlencode({param: create.id})}", body=create.body)
        except ProviderError as refused:
            if refused.status != TAKEN:
                raise
            made = await self._get(f"/{create.kind}/{create.id}")
            if made is None:  # then it was another name, and nothing was made: an SDK sends a 409 again, a 400 never
                raise ProviderError(
                    400, refused.message, param="tuneway.options.outputModel", code="conflict"
                ) from None
        return self._shown(made)

    async def list_jobs(self, query: Mapping[str, str]) -> Json:
        """Fireworks lists each kind by name, so newest first takes all of both."""
        jobs = [job for kind in KINDS for job in await self._all(kind)]
        return page([self._shown(job) for job in _by_age(jobs)], query)

    async def job(self, job_id: str) -> Json:
        return self._shown((await self._find(job_id))[1])

    async def job_by_key(self, key: str) -> Json | None:
        for kind in KINDS:
            found = await self._get(f"/{kind}/{chosen_id(kind, digest_of(key))}")
            if found is not None:
                return self._shown(found)
        return None

    def as_shown(self, body: Json) -> Json:
        shown = {**body, "model": model_name(str(body.get("model")))}
        for name in ("training_file", "validation_file"):
            if body.get(name):
                shown[name] = self._id(str(body[name]), "datasets")
        return shown

    async def change_job(self, job_id: str, verb: Verb) -> Json:
        if verb == "pause":
            raise self.lacks("'pause' of a job")
        path, _ = await self._find(job_id)
        await self._ask("POST", f"{path}:{verb}", body={})
        return self._shown(await self._ask("GET", path))

    async def delete_job(self, job_id: str) -> None:
        """The record itself; one that still runs would be stopped, and nobody could say what became of it."""
        path, job = await self._find(job_id)
        if JobStatus(self._shown(job)["status"]) not in TERMINAL_STATUSES:
            raise JobNotEnded
        await self._ask("DELETE", path)

    # ------------------------------------------------------------------------------------------------------ models

    async def list_models(self) -> Json:
        """The account's own; Fireworks' library has hundreds more."""
        return listing([shown_model(model) for model in _by_age(await self._all("models"))], has_more=False)

    async def model(self, name: str) -> Json:
        return shown_model(await self._send("GET", self._model_url(name)))

    async def delete_model(self, name: str) -> Json:
        await self._send("DELETE", self._model_url(name))
        return {"id": model_name(name), "object": "model", "deleted": True}

    async def serve(self, model: Model, report: Report) -> Deployment | None:
        tuned = model.upstream_model
        if not self._deploys:
            await report(
                f"The tuned model is {tuned} at {self.line.name}. Fireworks answers it only from a deployment, and "
                "`deploy` is off in the options of this account. Deploy it at Fireworks, and the gateway finds it."
            )
            return None
        own = deployment_id(model.id)
        asked = {"baseModel": tuned, "minReplicaCount": 0, "maxReplicaCount": 1, "deploymentShape": "default"}
        try:
            await self._ask("POST", f"/deployments?{urlencode({'deploymentId': own})}", body=asked)
            await report(
                f"{tuned} is being deployed at {self.line.name} as {own}. It bills by the second while it answers, and "
                "goes to sleep when nobody asks: the first requests after that are 503 until it is up again."
            )
        except ProviderError as refused:
            if refused.status != TAKEN:
                raise
        return await self._deployed(own, tuned)

    async def withdraw(self, model: Model) -> None:
        """Ends the deployment, and deletes a model that was tuned here."""
        if model.intermediate:
            return
        if model.deployment is not None:
            await self._end(str(last(model.deployment.name)))
        elif self._deploys and not model.imported:
            await self._end(deployment_id(model.id))
        if not model.imported:
            try:
                await self.delete_model(model.upstream_model)
            except ProviderError as error:
                # It may be deployed elsewhere, or until its deployment has ended; it costs nothing.
                if not is_unknown(error) and error.code != PRECONDITION:
                    raise

    async def chat(self, model: str) -> Upstream:
        return Upstream(f"{self._inference_url}/chat/completions", self._headers)

    # ----------------------------------------------------------------------------------------------------- details

    async def _ask(self, method: str, path: str, **more: Any) -> Any:
        """Of the account."""
        return await self._send(method, f"{self._root}/accounts/{self._account()}{path}", **more)

    async def _send(
        self,
        method: str,
        url: str,
        *,
        body: Any = None,
        content: AsyncIterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        sent = {**self._headers, **(headers or {})}
        try:
            return await self.line.json(method, url, headers=sent, body=body, content=content)
        except ProviderError as error:
            error.code = CODES.get(str(error.code), error.code)
            raise

    async def _get(self, path: str) -> Json | None:
        """None for what is not there."""
        try:
            return as_object(await self._ask("GET", path))
        except ProviderError as error:
            if not is_unknown(error):
                raise
            return None

    async def _all(self, kind: str) -> list[Json]:
        found: list[Json] = []
        query = {"pageSize": str(PAGE)}
        for _ in range(MAX_PAGES):
            answer = as_object(await self._ask("GET", f"/{kind}?{urlencode(query)}"))
            found += answer.get(kind) or []
            if not answer.get("nextPageToken"):
                break
            query["pageToken"] = str(answer["nextPageToken"])
        return found

    def _id(self, value: str, kind: str) -> str:
        return id_of(value, kind, self._account())

    async def _find(self, job_id: str) -> tuple[str, Json]:
        """The path of a job, and the job; of which kind it is, an id alone need not tell."""
        kinds = [kind for kind in KINDS if f"/{kind}/" in job_id] or list(KINDS)
        if job_id.startswith(chosen_id(DPO, "")):
            kinds.reverse()
        for kind in kinds:
            path = f"/{kind}/{self._id(job_id, kind)}"
            job = await self._get(path)
            if job is not None:
                return path, job
        raise ProviderError(404, f"{job_id[:200]} was not found", code="not_found")

    def _create(self, body: Json) -> Create:
        return create_of(taken_apart(body, self), self._account())

    def _shown(self, job: Any) -> Json:
        return shown_job(job, self._account())

    def _model_url(self, name: str) -> str:
        return f"{self._root}/" + "/".join(segment(part) for part in model_name(name).split("/"))

    async def _create_dataset(self, file_id: str, filename: str, rows: int) -> bool:
        """False for one that was there."""
        dataset = {"displayName": filename[:MOST_NAME], "exampleCount": str(rows), "userUploaded": {}}
        try:
            await self._ask("POST", "/datasets", body={"datasetId": file_id, "dataset": dataset})
        except ProviderError as refused:
            if refused.status != TAKEN:
                raise
            return False
        return True

    async def _fill(self, file_id: str, content: AsyncIterable[bytes], size: int) -> None:
        name = f"{file_id}.jsonl"
        if size <= UPLOAD_BYTES:
            boundary, head, tail = form_around(name, {})
            headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
            headers["content-length"] = str(len(head) + size + len(tail))
            await self._ask("POST", f"/datasets/{file_id}:upload", headers=headers, content=framed(head, content, tail))
            return
        asked = {"filenameToSize": {name: str(size)}}
        found = as_object(await self._ask("POST", f"/datasets/{file_id}:getUploadEndpoint", body=asked))
        url = (found.get("filenameToSignedUrls") or {}).get(name)
        if not isinstance(url, str):
            raise ProviderError(502, "Fireworks gave no URL to send the file to.")
        # Signed with these very headers, and refused with an Authorization besides.
        headers = {"content-type": "application/octet-stream", "x-goog-content-length-range": f"{size},{size}"}
        headers["content-length"] = str(size)
        await self.line.json("PUT", url, headers=headers, content=content)
        await self._ask("POST", f"/datasets/{file_id}:validateUpload", body={})

    async def _ready(self, file_id: str) -> Json:
        """The dataset when it can be used, or as it is after a while."""
        end, wait = time.monotonic() + READY_SECONDS, FIRST_WAIT / 4
        while True:
            found = await self.file(file_id)
            if found["status"] != "uploaded" or time.monotonic() + wait > end:
                return found
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    async def _deployed(self, own: str, tuned: str) -> Deployment:
        """Waits for the deployment; one that fails is deleted, as it may bill all the same."""
        end, wait = time.monotonic() + DEPLOY_SECONDS, FIRST_WAIT
        while True:
            found = as_object(await self._ask("GET", f"/deployments/{own}"))
            state, told = str(found.get("state")), as_object(found.get("status") or {})
            if state == "READY":
                return Deployment(str(found.get("name")), unix_seconds(found.get("createTime")) or int(time.time()))
            if state in ("FAILED", "DELETING", "DELETED") or time.monotonic() > end:
                await self._end(own)
                raise JobFailure(
                    f"Training has succeeded, and the tuned model stays at Fireworks as {tuned}; but its deployment "
                    f"{own} did not come up ({state}) and was deleted: {told.get('message') or 'it gave no reason'}"
                )
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    async def _end(self, deployment: str) -> None:
        """Deletes a deployment, though it may have been asked a moment ago; one that is not there is no error."""
        try:
            await self._ask("DELETE", f"/deployments/{segment(deployment)}?ignoreChecks=true")
        except ProviderError as error:
            if not is_unknown(error):
                raise


def deployment_id(model_id: str) -> str:
    """Of a tuned model of the gateway: always the same, so that what a crash left behind is found."""
    return f"tuneway-{digest_of(model_id)}"


def _by_age(resources: list[Json]) -> list[Json]:
    """Newest first."""
    return sorted(resources, key=lambda resource: moment(resource.get("createTime")))[::-1]


# ------------------------------------------------------------------------------------------------------ the account


def build(options: Options, line: Line) -> Vendor:
    key = options.need("api_key", r"[\x21-\x7e]{1,4096}")
    options.get("fireworks_account_id", _ACCOUNT)
    # However far down into its API a URL was given: clients know it as their base for chat.
    origin = re.sub(r"(/inference)?(/v1)?(/accounts/[^/]*)?/*$", "", options.get("base_url", BASE_URL) or ORIGIN)
    announced = options.get("file_upload_size", r"[1-9]\d{0,12}")
    return Fireworks(
        origin,
        options.get("inference_url", BASE_URL) or f"{origin}/inference/v1",
        partial(options.need, "fireworks_account_id", _ACCOUNT),
        {"authorization": f"Bearer {key}"},
        line,
        deploys=options.get("deploy", "yes|no") != "no",
        announced=None if announced is None else (options.called("file_upload_size"), int(announced)),
    )


KIND = Kind(
    name=NAME,
    build=build,
    hosts=("api.fireworks.ai", "storage.googleapis.com"),
    options={
        "fireworks_account_id": "The account: ACCOUNT in the names of what is its own, accounts/ACCOUNT/….",
        "base_url": f"Another URL than {ORIGIN}.",
        "inference_url": "Where chat goes, where that is another URL than /inference/v1 there.",
        "deploy": "`yes` (default): each tuned model gets a deployment, which sleeps when nobody asks; or `no`.",
        "file_upload_size": "The bytes of the file that is uploaded, to be checked against what comes. For relays.",
    },
    secrets={"api_key": "A key of Fireworks."},
    not_relayed=frozenset({"deploy"}),
    capabilities=CAPABILITIES,
)
