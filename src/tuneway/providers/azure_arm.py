"""What Azure has beside its OpenAI API: tokens from Microsoft Entra, and deployments by the Resource Manager (ARM).

Knows nothing of training. Facts: the Resource Manager's description of 2024-10-01 and Azure's how-to pages; tested
against a simulator. No message repeats what the token's endpoint says but its error code: what it says may hold what
it was sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

from tuneway.errors import JobFailure, ProviderError, ProviderSilent
from tuneway.providers.line import Line
from tuneway.providers.openai_compatible import BASE_URL
from tuneway.providers.shapes import segment, unix_seconds
from tuneway.providers.vendor import Json, Options, Report, is_unknown
from tuneway.types import Deployment, Model

COGNITIVE_SCOPE = "https://cognitiveservices.azure.com/.default"
ARM_SCOPE = "https://management.azure.com/.default"
API_VERSION = "2024-10-01"
"""Of the Resource Manager: the one of its own description. A how-to page writes the data plane's 2024-10-21 here."""
EARLY_SECONDS = 5 * 60
"""How long before its end a token is fetched anew, so that none ends on its way."""
DEPLOY_SECONDS = 60 * 60
FIRST_WAIT = 0.5
LONGEST_WAIT = 15.0
"""Between two looks at a deployment, in seconds; each wait is twice the one before."""

SKUS: Mapping[str, float] = {"standard": 1.70, "GlobalStandard": 1.70, "developertier": 0.0}
"""USD an hour for hosting a tuned model, besides its tokens (Microsoft Learn, cost management for fine-tuning, read in
2026; it calls its numbers examples).
"""
DEVELOPER_SECONDS = 24 * 60 * 60
"""After which Azure deletes a deployment of the developer tier."""

SECRET = r"[\x21-\x7e]{1,16384}"  # noqa: S105
RESOURCE = r"[A-Za-z0-9][A-Za-z0-9-]{1,62}"
_GUID = r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
_TENANT = r"[A-Za-z0-9][A-Za-z0-9-]*(\.[A-Za-z0-9-]+)*"
_GROUP = r"[A-Za-z0-9_().-]{0,89}[A-Za-z0-9_()-]"

OPTIONS: Mapping[str, str] = {
    "subscription": "The Azure subscription's id, to deploy what was tuned.",
    "resource_group": "The resource group of the resource.",
    "account": "The resource's name in the Resource Manager; default azure_resource_name.",
    "arm_client_id": "The client that may deploy; default: the one of azure_entra_client_id.",
    "arm_tenant_id": "Its tenant; default azure_entra_tenant_id.",
    "arm_url": "Another URL than https://management.azure.com.",
    "deployment_sku": "`standard` (default), `GlobalStandard`, or `developertier`: hosted free, gone after 24 hours.",
    "deployment_capacity": "Thousands of tokens a minute, of the subscription's quota; default 1.",
    "deploy": "`no`: tuned models are not deployed. Default: they are, where the Resource Manager is configured.",
}
SECRETS: Mapping[str, str] = {
    "arm_client_secret": "The secret of arm_client_id.",
    "arm_token": "A token for the Resource Manager, instead of a client. It ends within hours.",
}

Bearer = Callable[[], Awaitable[str]]
"""Gives a bearer token; raises ProviderError and ProviderSilent, for sure without effect on what the token is for."""


class EntraToken:
    """A bearer token by a client's own credential (OAuth 2.0 client credentials), kept until shortly before its end.

    `client` are its id and secret; `called` is how messages name what was configured.
    """

    def __init__(self, line: Line, url: str, client: tuple[str, str], scope: str, called: str) -> None:
        self._line = line
        self._url = url
        fields = {"grant_type": "client_credentials", "client_id": client[0], "client_secret": client[1]}
        self._form = urlencode({**fields, "scope": scope}).encode()
        self._called = called
        self._token = ""
        self._good_until = 0.0
        self._turn = asyncio.Lock()

    async def __call__(self) -> str:
        async with self._turn:
            if time.monotonic() >= self._good_until:
                asked = time.monotonic()
                self._token, seconds = await self._fetch()
                self._good_until = asked + seconds - min(EARLY_SECONDS, seconds / 2)
            return self._token

    async def _fetch(self) -> tuple[str, float]:
        headers = {"content-type": "application/x-www-form-urlencoded"}
        try:
            answer = await self._line.json("POST", self._url, headers=headers, content=self._form)
        except ProviderSilent as silent:
            raise type(silent)(f"Microsoft Entra gave no token. {silent.message}", sent=False) from None
        except ProviderError as refused:
            raise self._refusal(refused) from None
        found = answer if isinstance(answer, dict) else {}
        token, seconds = found.get("access_token"), str(found.get("expires_in"))
        if not isinstance(token, str) or not re.fullmatch(SECRET, token) or not re.fullmatch(r"\d{1,9}", seconds):
            raise ProviderSilent("Microsoft Entra answered without a token that could be used.", sent=False)
        return token, float(seconds)

    def _refusal(self, refused: ProviderError) -> ProviderError | ProviderSilent:
        if refused.status >= 500:
            return ProviderSilent(f"Microsoft Entra gave no token: it answered with {refused.status}.", sent=False)
        word = f" ({refused.message})" if re.fullmatch(r"[a-z_]{1,60}", refused.message) else ""
        return ProviderError(
            429 if refused.status == 429 else 401,
            f"Microsoft Entra refused a token{word}. Check {self._called}.",
            code="invalid_client",
            request_id=refused.request_id,
            retry_after=refused.retry_after,
        )


class Hosting:
    """How tuned models are deployed in one account, whose URL under the Resource Manager is `url`.

    `wanted` False: none is made, and those that were made are ended with their models.
    """

    def __init__(self, line: Line, url: str, bearer: Bearer, *, sku: str, capacity: int, wanted: bool) -> None:
        self.wanted = wanted
        self._line = line
        self._url = url
        self._bearer = bearer
        self._sku = sku
        self._capacity = capacity

    async def deploy(self, model: Model, report: Report) -> Deployment:
        """Has the model deployed and waits until it is. What an earlier call began is found, by its name.

        Raises JobFailure where that will not come to be.
        """
        name, tuned = deployment_name(model.id), model.upstream_model
        found = await self._find(name)
        if found is None:
            await report(f"The model is being deployed at Azure as {name} ({self._sku}), {_price(self._sku)}")
            wanted = {"format": "OpenAI", "name": tuned, "version": "1"}
            body = {"sku": {"name": self._sku, "capacity": self._capacity}, "properties": {"model": wanted}}
            found = await self._ask("PUT", name, body)
        found = await self._settled(name, tuned, found, report)
        sku = str((found.get("sku") or {}).get("name") or self._sku)
        created_at = unix_seconds((found.get("systemData") or {}).get("createdAt")) or int(time.time())
        developer = sku.lower() == "developertier"
        expires_at = created_at + DEVELOPER_SECONDS if developer else None
        return Deployment(name, created_at, sku, _usd_per_hour(sku), expires_at)

    async def end(self, name: str) -> None:
        """Deletes a deployment; one that is not there is no error. What Azure accepts here it does within minutes."""
        try:
            await self._ask("DELETE", name)
        except ProviderError as error:
            if not is_unknown(error):
                raise

    async def _settled(self, name: str, tuned: str, found: Json, report: Report) -> Json:
        said, end, wait = "", time.monotonic() + DEPLOY_SECONDS, FIRST_WAIT
        while True:
            properties = found.get("properties") or {}
            state, served = str(properties.get("provisioningState")), (properties.get("model") or {}).get("name")
            if served != tuned:
                raise _failed(tuned, name, f"there is one of that name already, of the model {served}")
            if state != said:
                said = state
                await report(f"Azure says of the deployment {name}: {state}")
            if state == "Succeeded":
                return found
            if state in ("Failed", "Canceled") or time.monotonic() > end:
                error = found.get("error") or properties.get("error")
                reason = error.get("message") if isinstance(error, dict) else None
                raise _failed(tuned, name, reason or f"its state is {state}")
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)
            again = await self._find(name)
            if again is None:
                raise _failed(tuned, name, "somebody has deleted it meanwhile")
            found = again

    async def _find(self, name: str) -> Json | None:
        try:
            return await self._ask("GET", name)
        except ProviderError as error:
            if not is_unknown(error):
                raise
            return None

    async def _ask(self, method: str, name: str, body: Json | None = None) -> Json:
        url = f"{self._url}/deployments/{segment(name)}?api-version={API_VERSION}"
        headers = {"authorization": f"Bearer {await self._bearer()}"}
        found: Any = await self._line.json(method, url, headers=headers, body=body)
        return found if isinstance(found, dict) else {}


def deployment_name(model_id: str) -> str:
    """Of a tuned model of the gateway: always the same, so that what a crash left behind is found; at most 52 long."""
    readable = "".join(char for char in model_id.lower() if char.isascii() and char.isalnum())[-30:]
    return f"tuneway-{readable}-{hashlib.sha256(model_id.encode()).hexdigest()[:13]}"


def _usd_per_hour(sku: str) -> float | None:
    return {name.lower(): price for name, price in SKUS.items()}.get(sku.lower())


def _price(sku: str) -> str:
    price = _usd_per_hour(sku)
    if price:
        return f"which costs about ${price:.2f} an hour, besides its tokens, until the model is deleted here"
    return "which costs nothing by the hour and ends after 24 hours"


def _failed(tuned: str, name: str, reason: str) -> JobFailure:
    return JobFailure(
        f"Training has succeeded, and the tuned model stays at Azure as {tuned}; but its deployment {name} fails: "
        f"{reason}. Look at it in Azure's portal: it may need quota, another `deployment_sku` or less "
        "`deployment_capacity`. The model can be deployed there by hand."
    )


# ------------------------------------------------------------------------------------------------------ the account


def entra(options: Options, line: Line, prefix: str, scope: str) -> EntraToken:
    """By the three options `{prefix}_tenant_id`, `…_client_id` and `…_client_secret`."""
    login = options.get("login_url", BASE_URL) or "https://login.microsoftonline.com"
    given = options.get(f"{prefix}_tenant_id", _TENANT) or options.get("azure_entra_tenant_id", _TENANT)
    tenant = given or options.need(f"{prefix}_tenant_id")
    client = options.need(f"{prefix}_client_id", SECRET), options.need(f"{prefix}_client_secret", SECRET)
    names = [options.called(f"{prefix}_{part}") for part in ("tenant_id", "client_id", "client_secret")]
    url = f"{login.rstrip('/')}/{tenant}/oauth2/v2.0/token"
    return EntraToken(line, url, client, scope, f"{names[0]}, {names[1]} and {names[2]}")


def hosting(options: Options, line: Line) -> Hosting | None:
    """None for an account that says nothing of the Resource Manager; one that says half of it is refused."""
    wanted = options.get("deploy", "yes|no")
    if wanted != "yes" and not any(options.get(name) for name in (*OPTIONS, *SECRETS) if name != "deploy"):
        return None
    subscription, group = options.need("subscription", _GUID), options.need("resource_group", _GROUP)
    account = options.get("account", RESOURCE) or options.get("azure_resource_name", RESOURCE)
    url = (
        f"{(options.get('arm_url', BASE_URL) or 'https://management.azure.com').rstrip('/')}"
        f"/subscriptions/{subscription}/resourceGroups/{quote(group, safe='()')}"
        f"/providers/Microsoft.CognitiveServices/accounts/{account or options.need('account')}"
    )
    return Hosting(
        line,
        url,
        _bearer(options, line),
        sku=options.get("deployment_sku", "|".join(SKUS)) or "standard",
        capacity=int(options.number("deployment_capacity", 1, 1, 1_000_000)),
        wanted=wanted != "no",
    )


def _bearer(options: Options, line: Line) -> Bearer:
    token = options.get("arm_token", SECRET)
    if token is not None:
        return partial(_itself, token)
    own = options.get("arm_client_id") or options.get("arm_client_secret")
    shared = options.get("azure_entra_client_secret") and not own
    return entra(options, line, "azure_entra" if shared else "arm", ARM_SCOPE)


async def _itself(token: str) -> str:
    return token
