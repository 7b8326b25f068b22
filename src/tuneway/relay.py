"""The relay service: requests that bring a provider's own credential are translated and passed on to it.

Nothing of them is kept. Ids are the provider's own. A create is never sent twice: a client's retry of one first looks
whether its first try arrived.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any
from weakref import WeakValueDictionary

from tuneway.errors import Forbidden, InvalidRequest, UnsupportedOperation
from tuneway.providers.line import CREDENTIALS, Dial, Limits, Reply
from tuneway.providers.line import Line as Line
from tuneway.providers.vendor import RETRY_SECONDS, Options, same_job, same_model
from tuneway.providers.vendor import Json as Json
from tuneway.providers.vendor import Kind as Kind
from tuneway.providers.vendor import Vendor as Vendor
from tuneway.types import JobStatus

PAGE = 100
MAX_PAGES = 5
"""Of the newest jobs, among which a retry looks for the job of its first try."""


class Relay:
    """`kinds` by name; `allowed` is the setting `relay`."""

    def __init__(self, kinds: Mapping[str, Kind], dial: Dial, *, allowed: bool) -> None:
        self._kinds = {**{alias: kind for kind in kinds.values() for alias in kind.aliases}, **kinds}
        self._dial = dial
        self._allowed = allowed
        self._turns: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        """Of creates that are under way."""

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """By name, and by every other name that they have."""
        return self._kinds

    def vendor(
        self,
        kind: str,
        given: Mapping[str, str],
        called: Mapping[str, str],
        forwarded: Mapping[str, str],
        seconds: float,
    ) -> Vendor:
        """The vendor as the caller is known there.

        `given` are options and secrets by name, and `called` is the header of each; `forwarded` goes along wherever the
        caller's credential goes. Raises InvalidRequest that names a header, and Forbidden where relays are off.
        """
        if not self._allowed:
            raise Forbidden("This gateway passes nothing on: its operator has set `relay` to off.")
        found = self._kinds[kind]
        for name in given:
            if name in found.not_relayed:
                raise InvalidRequest(
                    f"{called[name]} is for accounts of the gateway; a relay has nothing of the gateway's.",
                    param=called[name],
                    code="unsupported_parameter",
                )
        options = Options(given, called=lambda name: called.get(name, f"x-tuneway-{name.replace('_', '-')}"))
        line = Line(
            kind,
            _accompanied(self._dial, forwarded),
            Limits(timeout_seconds=seconds, silence_seconds=seconds),
            circuit=False,
            secrets=[given[name].removeprefix("Bearer ") for name in found.secrets if name in given],
        )
        return found.build(options, line)

    async def create_job(self, vendor: Vendor, body: Json, *, retry: int, caller: Mapping[str, str]) -> Json:
        """Sends the create; for a retry only where the provider has no job that the first try made.

        `retry` counts the client's tries before this one, and `caller` are the options and secrets that `vendor` was
        made of. A retry waits for a try of the same that is still under way. Raises what the vendor does, and what
        listing its jobs does: a retry that cannot be looked up is not sent.
        """
        vendor.translate(body)
        said = json.dumps([vendor.kind, dict(caller), body], sort_keys=True)
        async with self._turns.setdefault(hashlib.sha256(said.encode()).digest(), asyncio.Lock()):
            if retry:
                found = await self._made(vendor, vendor.as_shown(body))
                if found is not None:
                    return found
            return await vendor.create_job(body)

    async def _made(self, vendor: Vendor, body: Json) -> Json | None:
        """The newest job that an earlier try of this create may have made."""
        since = time.time() - RETRY_SECONDS
        query = {"limit": str(PAGE)}
        for _ in range(MAX_PAGES):
            try:
                found = await vendor.list_jobs(query)
            except UnsupportedOperation:
                raise InvalidRequest(
                    f"The provider '{vendor.kind}' cannot list its jobs, so it cannot be told whether the first try of "
                    "this request made one. Look there, and send the request again without a retry count.",
                    code="conflict",
                ) from None
            for job in found["data"]:
                if (
                    job["status"] != JobStatus.CANCELLED
                    and same_job(body, job, since)
                    and _same_model_and_metadata(body, job)
                ):
                    return _shown_made(job)
            oldest = found["data"][-1] if found["data"] else {}
            if not found["has_more"] or not oldest or int(oldest.get("created_at") or 0) < since:
                return None
            query = {**query, "after": str(oldest["id"])}
        return None


def _same_model_and_metadata(asked: Json, shown: Json) -> bool:
    """What `same_job` leaves open, as it knows the seeds of managed jobs to be random: clients fix theirs, and compare
    models by it.
    """
    if not same_model(asked.get("model"), shown.get("model")):
        return False
    return not shown.get("metadata") or shown["metadata"] == (asked.get("metadata") or {})


def _shown_made(job: Json) -> Json:
    return {**job, "tuneway": {**job.get("tuneway", {}), "retried": True}}


def _accompanied(dial: Dial, forwarded: Mapping[str, str]) -> Dial:
    """Sends `forwarded` along with every request that carries a credential; a signed URL or a login gets neither."""

    def accompanied(
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | AsyncIterable[bytes] | None = None,
        seconds: float | None = None,
        silence: float | None = None,
    ) -> AbstractAsyncContextManager[Reply]:
        credential = any(name.lower() in CREDENTIALS for name in headers)
        sent: dict[str, Any] = {**forwarded, **headers} if credential else dict(headers)
        return dial(method, url, headers=sent, body=body, seconds=seconds, silence=silence)

    return accompanied
