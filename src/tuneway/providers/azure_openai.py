"""Azure OpenAI: OpenAI's shape behind another URL, with numbers, words and rules of its own, and models to deploy.

Which methods and fields there are depends on `azure_api_version`: see `MODERN`. A tuned model answers only through a
deployment, which is made, and ended, by the Resource Manager with a credential of its own (`azure_arm`). Facts: Azure's
API descriptions (2024-10-21 and v1) and how-to pages; tested against a simulator.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from tuneway.errors import InvalidRequest, ProviderError
from tuneway.providers import azure_arm
from tuneway.providers.azure_arm import SECRET, Bearer, Hosting, deployment_name
from tuneway.providers.line import Line
from tuneway.providers.openai_compatible import BASE_URL, EVERYTHING, OpenAICompatible, Row
from tuneway.providers.shapes import segment, unsupported
from tuneway.providers.vendor import Json, Kind, Options, Report, Vendor, Verb, hyperparameters_of, listing, page
from tuneway.types import AUTO, Deployment, JobStatus, Method, Model, Upstream

DEFAULT_VERSION = "2024-10-21"
"""The stable version, whose description every fact here was checked against. It tunes by `supervised` only; a request
for more is refused and says which version takes it, so nobody gets less than was asked for.
"""
MODERN = "2025-04-01-preview"
"""The first dated version that takes `ADDED`; `v1` and `preview` do so too."""
ADDED = frozenset({"method", "metadata", "integrations", "trainingType"})
STABLE = frozenset({"model", "training_file", "validation_file", "hyperparameters", "suffix", "seed"})
"""The fields of a create that the versions before MODERN take."""
UNDATED = ("v1", "preview")
"""Versions whose path is /openai/v1."""

STATUSES: Mapping[str, JobStatus] = {
    "created": JobStatus.QUEUED,
    "pending": JobStatus.QUEUED,
    "notRunning": JobStatus.QUEUED,
    "queued": JobStatus.QUEUED,
    "validating": JobStatus.VALIDATING_FILES,
    "validating_files": JobStatus.VALIDATING_FILES,
    "running": JobStatus.RUNNING,
    "canceling": JobStatus.RUNNING,
    "cancelling": JobStatus.RUNNING,
    "pausing": JobStatus.PAUSED,
    "paused": JobStatus.PAUSED,
    "resuming": JobStatus.PAUSED,
    "succeeded": JobStatus.SUCCEEDED,
    "failed": JobStatus.FAILED,
    "canceled": JobStatus.CANCELLED,
    "cancelled": JobStatus.CANCELLED,
}
"""The dated versions' words and OpenAI's, which v1 uses. No live service was asked for the rarer ones."""

FILE_STATUSES: Mapping[str, str] = {
    "notRunning": "uploaded",
    "uploaded": "uploaded",
    "pending": "uploaded",
    "running": "uploaded",
    "processed": "processed",
    "succeeded": "processed",
    "error": "error",
    "failed": "error",
    "canceled": "error",
    "deleting": "error",
    "deleted": "error",
}
"""OpenAI's closed list has three words. What is deleted can be used no more, as what is broken."""

_DEPLOYMENT = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_VERSION = r"v1|preview|\d{4}-\d{2}-\d{2}(-preview)?"
_NUMBERS = ("n_epochs", "batch_size", "learning_rate_multiplier")
_SUFFIX = re.compile(r"[A-Za-z0-9_-]{1,40}")
_MAX_PAGES = 50

_BASES = (
    "gpt-4.1-2025-04-14",
    "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-nano-2025-04-14",
    "gpt-4o-2024-08-06",
    "gpt-4o-mini-2024-07-18",
)
ROW = Row(
    name="azure-openai",
    processes_files=True,
    hosts=(
        "*.openai.azure.com",
        "*.cognitiveservices.azure.com",
        "*.services.ai.azure.com",
        "management.azure.com",
        "login.microsoftonline.com",
    ),
    capabilities=replace(EVERYTHING, options=frozenset({"training_type"})),
    bases=(*_BASES, "o4-mini-2025-04-16"),
)
STABLE_ROW = replace(
    ROW,
    capabilities=replace(
        EVERYTHING, methods=frozenset({Method.SUPERVISED}), metadata=False, integrations=False, pause=False
    ),
    bases=_BASES,
)

Credential = Callable[[], Awaitable[Mapping[str, str]]]


class AzureOpenAI(OpenAICompatible):
    """`root` is the resource's URL without `/openai`; `version_option` is how messages name what sets its version."""

    statuses = STATUSES
    wants_bom = True

    def __init__(
        self,
        root: str,
        version: str,
        credential: Credential,
        line: Line,
        *,
        version_option: str,
        deployment: str | None = None,
        hosting: Hosting | None = None,
    ) -> None:
        self._modern = version in UNDATED or version[:10] >= MODERN[:10]
        super().__init__(ROW if self._modern else STABLE_ROW, root, {}, line)
        self.serves_at_once = False
        self._version = version
        self._version_option = version_option
        self._own_credential = credential
        self._deployment = deployment
        self._hosting = hosting

    async def credential(self) -> Mapping[str, str]:
        return await self._own_credential()

    def url(self, path: str, query: str = "") -> str:
        """With the version of this account, whichever one a client of the gateway asks the gateway for."""
        parts = [part for part in query.split("&") if part and not part.startswith("api-version=")]
        if self._version != "v1":
            parts.insert(0, f"api-version={self._version}")
        base = "/openai/v1" if self._version in UNDATED else "/openai"
        return super().url(base + path, "&".join(parts))

    # ------------------------------------------------------------------------------------------------------- files

    async def list_files(self, query: Mapping[str, str]) -> Json:
        """Azure's dated versions answer all files at once, in no order that is promised."""
        files = await _whole(super().list_files)
        if query.get("purpose"):
            files = [file for file in files if file.get("purpose") == query["purpose"]]
        files.sort(key=lambda file: file.get("created_at") or 0, reverse=query.get("order") != "asc")
        return page(files, query, default=10_000)

    def shown_file(self, raw: Any) -> Json:
        file = super().shown_file(raw)
        word = file.get("status")
        status = FILE_STATUSES.get(str(word), "uploaded")
        if word is None or status == word:
            return file
        if status == "error":
            file.setdefault("status_details", f"Azure says: {word}")
        return {**file, "status": status, "tuneway": {"provider_status": word}}

    # -------------------------------------------------------------------------------------------------------- jobs

    def translate(self, body: Json) -> Json:
        extension = body.get("tuneway") or {}
        sent = {name: value for name, value in body.items() if name != "tuneway" and value not in (None, [], {})}
        if "suffix" in sent and not (isinstance(sent["suffix"], str) and _SUFFIX.fullmatch(sent["suffix"])):
            raise InvalidRequest(
                "Azure takes a 'suffix' of at most 40 characters out of A-Z, a-z, 0-9, '-' and '_'.",
                param="suffix",
                code="invalid_value",
            )
        if extension.get("learning_rate") is not None:
            raise unsupported(self.kind, "tuneway.learning_rate")
        options = dict(extension.get("options") or {})
        training_type = _training_type(sent.pop("trainingType", None), options.pop("training_type", None))
        for name in options:
            raise unsupported(self.kind, f"tuneway.options.{name}")
        if not self._modern:
            if training_type is not None:
                raise self._too_old("trainingType")
            return self._stable(sent)
        if training_type is not None:
            sent["trainingType"] = training_type
        if isinstance(sent.get("method"), dict):
            sent["method"] = _in_method(sent["method"], _numbers)
        numbers = _numbers(sent.pop("hyperparameters", None))
        return {**sent, "hyperparameters": numbers} if numbers else sent

    async def list_jobs(self, query: Mapping[str, str]) -> Json:
        for name in query:
            if name.startswith("metadata") and not self.capabilities.metadata:
                raise self._too_old(name)
        return await super().list_jobs(query)

    async def change_job(self, job_id: str, verb: Verb) -> Json:
        if verb != "cancel" and not self._modern:
            raise self._too_old(verb)
        if verb == "resume":
            job = await self.job(job_id)
            word = job["tuneway"]["provider_status"]
            if word == "resuming":
                return job
            if word == "pausing":  # a 409 is tried again, by the SDKs and by the worker; what Azure says would end it
                raise ProviderError(409, "Azure is still pausing this job. Resume it when it has paused.")
        return await super().change_job(job_id, verb)

    async def delete_job(self, job_id: str) -> None:
        await self._ask("DELETE", f"/fine_tuning/jobs/{segment(job_id)}")

    async def events(self, job_id: str, query: Mapping[str, str]) -> Json:
        """Newest first, whatever comes: the example in Azure's own description has the oldest first."""
        found = await super().events(job_id, query)
        times = [event["created_at"] or 0 for event in found["data"]]
        if not times or times[0] >= times[-1]:
            return found
        return page((await _whole(partial(super().events, job_id)))[::-1], query)

    async def checkpoints(self, job_id: str, query: Mapping[str, str]) -> Json:
        found = await super().checkpoints(job_id, query)
        data = sorted(found["data"], key=lambda checkpoint: -int(checkpoint.get("step_number") or 0))
        return listing(data, found["has_more"])

    def shown_job(self, raw: Any) -> Json:
        job = super().shown_job(raw)
        job["hyperparameters"] = _shown_numbers(job["hyperparameters"])
        if isinstance(job.get("method"), dict):
            job["method"] = _in_method(job["method"], _shown_numbers)
        if "suffix" in job:
            job.setdefault("user_provided_suffix", job["suffix"])
        return job

    # ------------------------------------------------------------------------------------------------------ models

    async def delete_model(self, name: str) -> Json:
        if self._version not in UNDATED:
            raise self.lacks(f"deleting models by the api-version {self._version}")
        return await super().delete_model(name)

    async def serve(self, model: Model, report: Report) -> Deployment | None:
        hosting = self._hosting
        if hosting is None or not hosting.wanted:
            await report(
                f"The tuned model is {model.upstream_model} at {self.line.name}. Azure answers it only through a "
                "deployment. Make one of that very name in Azure, and the gateway finds it; or set `subscription`, "
                "`resource_group`, `account` and an ARM credential in the options of this account, and the gateway "
                "deploys what is tuned from then on."
            )
            return None
        deployment = await hosting.deploy(model, report)
        await self.probe(deployment.name)
        return deployment

    async def withdraw(self, model: Model) -> None:
        """Ends the deployment, and with it the bill by the hour. The model stays at Azure.

        One that a crash kept from being recorded is known by its name. Raises InvalidRequest where one is recorded and
        there is no credential to end it by.
        """
        if self._hosting is None:
            if model.deployment is not None:
                raise InvalidRequest(
                    f"The deployment {model.deployment.name} may still stand at Azure, and be billed: the account "
                    f"{self.line.name} has no ARM credential any more to delete it by. Delete it in Azure's portal."
                )
        elif model.deployment is not None:
            await self._hosting.end(model.deployment.name)
        elif self._hosting.wanted and not model.imported and not model.intermediate:
            await self._hosting.end(deployment_name(model.id))

    async def chat(self, model: str) -> Upstream:
        """At Azure a request names a deployment: in its path or, by the undated versions, as its `model`."""
        headers = await self.credential()
        if self._version in UNDATED:
            return Upstream(self.url("/chat/completions"), headers, model=self._deployment)
        name = self._deployment or model
        return Upstream(self.url(f"/deployments/{segment(name)}/chat/completions"), headers)

    # ----------------------------------------------------------------------------------------------------- details

    def _stable(self, sent: Json) -> Json:
        """The create of a dated version before MODERN: supervised only, its numbers at the top."""
        method = sent.get("method", {"type": "supervised"})
        kind = method.get("type") if isinstance(method, dict) else method
        if kind != "supervised":
            raise self._too_old("method", f"'{kind}' as 'method.type'")
        numbers = _numbers(hyperparameters_of(sent))
        unknown = [
            *(name for name in sent if name not in STABLE and name != "method"),
            *(f"method.{name}" for name in method if name not in ("type", "supervised")),
            *(f"method.supervised.{name}" for name in method.get("supervised") or {} if name != "hyperparameters"),
            *(f"hyperparameters.{name}" for name in numbers if name not in _NUMBERS),
        ]
        for name in unknown:
            raise self._too_old(name) if name in ADDED else unsupported(self.kind, name)
        flat = {name: value for name, value in sent.items() if name not in ("method", "hyperparameters")}
        return {**flat, "hyperparameters": numbers} if numbers else flat

    def _too_old(self, param: str, what: str | None = None) -> InvalidRequest:
        return InvalidRequest(
            f"Azure's api-version {self._version} does not take {what or repr(param)}, but '{MODERN}' does, and 'v1'. "
            f"Set it as {self._version_option}.",
            param=param,
            code="unsupported_parameter",
        )


def root_of(url: str) -> str:
    """A resource's URL, however far down into its API it was given."""
    return re.sub(r"(/openai)?(/v1)?/*$", "", url)


async def _whole(ask: Callable[[Mapping[str, str]], Awaitable[Json]]) -> list[Json]:
    """All of a list. One that does not know `after` shows the same again, which is its end as well."""
    found: dict[str, Json] = {}
    query: dict[str, str] = {}
    for _ in range(_MAX_PAGES):
        answer = await ask(query)
        fresh = {str(item.get("id")): item for item in answer["data"] if str(item.get("id")) not in found}
        found |= fresh
        if not answer["has_more"] or not fresh:
            break
        query = {"after": next(reversed(fresh))}
    return list(found.values())


def _training_type(top: Any, option: Any) -> str | None:
    """Where Azure trains, as its own API and as an option of the gateway's name it."""
    given = [value for value in (top, option) if value is not None]
    if not given:
        return None
    value = given[0]
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z]{1,40}", value) or value != given[-1]:
        raise InvalidRequest(
            "Invalid 'trainingType': Azure knows 'standard', 'globalstandard' and 'developerTier'. Send it once.",
            param="trainingType",
            code="invalid_value",
        )
    return value


def _numbers(given: Any) -> Any:
    """Azure has no word for "auto"; what it is not sent it chooses."""
    if not isinstance(given, dict):
        return given
    return {name: value for name, value in given.items() if value is not None and value != AUTO}


def _shown_numbers(shown: Any) -> Any:
    """Azure writes −1 where OpenAI writes "auto"."""
    if not isinstance(shown, dict):
        return shown
    return {name: AUTO if value == -1 else value for name, value in shown.items()}


def _in_method(method: Json, change: Callable[[Any], Any]) -> Json:
    """The method with its hyperparameters changed; without them where nothing is left."""
    kind = str(method.get("type"))
    own = method.get(kind)
    if not isinstance(own, dict) or "hyperparameters" not in own:
        return method
    numbers = change(own["hyperparameters"])
    own = {name: value for name, value in own.items() if name != "hyperparameters"}
    own |= {"hyperparameters": numbers} if numbers else {}
    rest = {name: value for name, value in method.items() if name != kind}
    return {**rest, kind: own} if own else rest


# ------------------------------------------------------------------------------------------------------ the account


def build(options: Options, line: Line) -> Vendor:
    version = options.get("azure_api_version", _VERSION) or DEFAULT_VERSION
    options.get("azure_model_name")
    deployment = options.get("azure_deployment_id", _DEPLOYMENT)
    hosting = azure_arm.hosting(options, line)
    if hosting is not None and deployment is not None:
        raise InvalidRequest(
            f"{options.called('azure_deployment_id')} would have every model answered by that one deployment. Leave it "
            "out where the gateway makes a deployment for each.",
            param=options.called("azure_deployment_id"),
        )
    root, credential = _root(options), _credential(options, line)
    return AzureOpenAI(
        root,
        version,
        credential,
        line,
        version_option=options.called("azure_api_version"),
        deployment=deployment,
        hosting=hosting,
    )


def _root(options: Options) -> str:
    for name in ("base_url", "azure_foundry_url"):
        url = options.get(name, BASE_URL)
        if url is not None:
            return root_of(url)
    return f"https://{options.need('azure_resource_name', azure_arm.RESOURCE)}.openai.azure.com"


def _credential(options: Options, line: Line) -> Credential:
    """The mode that is named, else a token that was given, else the key, else a client's credential."""
    mode = options.get("azure_auth_mode", "entra|managed|workload")
    if mode in ("managed", "workload"):
        raise InvalidRequest(
            f"The value '{mode}' of {options.called('azure_auth_mode')} stands for the identity of the machine that "
            "the gateway runs on. A caller must not borrow that, and accounts of the gateway cannot use it so far. "
            "Use 'entra' with a client's credential, or a key.",
            param=options.called("azure_auth_mode"),
            code="unsupported_value",
        )
    given = options.get("azure_ad_token", rf"(Bearer )?{SECRET}")
    key = options.get("api_key", SECRET)
    if mode is None and given is not None:
        return partial(_fixed, {"authorization": f"Bearer {given.removeprefix('Bearer ')}"})
    if mode is None and key is not None:
        return partial(_fixed, {"api-key": key})
    if mode is None and options.get("azure_entra_client_secret", SECRET) is None:
        options.need("api_key")
    scope = options.get("azure_entra_scope", r"[\x21-\x7e]{1,500}") or azure_arm.COGNITIVE_SCOPE
    return partial(_fetched, azure_arm.entra(options, line, "azure_entra", scope))


async def _fixed(headers: Mapping[str, str]) -> Mapping[str, str]:
    return headers


async def _fetched(token: Bearer) -> Mapping[str, str]:
    return {"authorization": f"Bearer {await token()}"}


KIND = Kind(
    name=ROW.name,
    build=build,
    hosts=ROW.hosts,
    options={
        "azure_resource_name": "The resource: NAME of https://NAME.openai.azure.com.",
        "base_url": "The resource's endpoint, where it is another, such as https://NAME.cognitiveservices.azure.com.",
        "azure_foundry_url": "The same, as https://NAME.services.ai.azure.com.",
        "azure_api_version": f"`v1`, `preview` or a date; default {DEFAULT_VERSION}. DPO needs {MODERN} or `v1`.",
        "azure_deployment_id": "The deployment that chat requests go to, whatever model they name. For relays.",
        "azure_model_name": "Accepted from Portkey's clients; Azure is asked by its deployments' names.",
        "azure_auth_mode": "`entra`: a token by the client's credential below.",
        "azure_entra_tenant_id": "The tenant, by its id or domain.",
        "azure_entra_client_id": "The client (application) id.",
        "azure_entra_scope": f"Default {azure_arm.COGNITIVE_SCOPE}.",
        "login_url": "Another URL than https://login.microsoftonline.com.",
        **azure_arm.OPTIONS,
    },
    secrets={
        "api_key": "A key of the resource.",
        "azure_ad_token": "A Microsoft Entra token, instead of a key.",
        "azure_entra_client_secret": "The client's secret.",
        **azure_arm.SECRETS,
    },
    not_relayed=frozenset({"login_url", *azure_arm.OPTIONS, *azure_arm.SECRETS}),
    path_of_keys="azure",
)
