"""The imports service: reads what is at an account into a project, before its vendor closes.

Files, jobs with their events and checkpoints, and tuned models come under the ids that the vendor gave them, so that
code which names them goes on working. At the vendor nothing is changed: only GETs are sent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

from tuneway import ids
from tuneway.accounts import Accounts
from tuneway.blobs import Blobs
from tuneway.errors import ImportNotFound, InvalidRequest, ProviderNotFound, TunewayError, UpstreamError
from tuneway.imports.reading import Account, GaveUp
from tuneway.imports.run import Run
from tuneway.store import Store
from tuneway.store import imports as rows
from tuneway.types import Import, ImportState, Page

log = logging.getLogger("tuneway.imports")

AGAIN = "What was read is here; start the import again for the rest."


class Imports:
    """One import of an account into a project runs at a time, in the background and on through restarts."""

    def __init__(self, store: Store, blobs: Blobs, accounts: Accounts) -> None:
        self._store = store
        self._blobs = blobs
        self._accounts = accounts
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def open(self) -> None:
        """Goes on with the imports that the last run of the gateway left; the accounts must be open."""
        for found in await self._store.read(rows.unfinished):
            self._go(found)

    async def close(self) -> None:
        """Stops the imports under way; the next start goes on with them."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def start(self, project: str, provider: str) -> Import:
        """The import of this account that runs already, else a new one. Raises InvalidRequest for an account that
        cannot be imported.
        """
        await self._require_importable(provider)
        asked = Import(0, ids.import_id(), project, int(time.time()), provider)
        found = await self._store.write(rows.begin, asked)
        if found.id not in self._tasks:
            self._go(found)
        return found

    async def get(self, project: str, import_id: str) -> Import:
        """Raises ImportNotFound."""
        found = await self._store.read(rows.get, project, import_id)
        if found is None:
            raise ImportNotFound(import_id)
        return found

    async def list(self, project: str, *, after: str | None, limit: int) -> Page[Import]:
        """Newest first. Raises InvalidRequest when `after` is no import of the project."""
        page = await self._store.read(rows.page, project, after=after, limit=limit)
        if page is None:
            raise InvalidRequest(f"There is no import {after!r} to continue after.", param="after")
        return page

    async def _require_importable(self, provider: str) -> None:
        names = [shown.account.name for shown in await self._accounts.list()]
        importable = [name for name in names if self._accounts.remote(name).vendor.importable]
        if provider in importable:
            return
        what = "cannot be imported" if provider in names else "is no account that is configured here"
        ready = (
            f"Ready to be imported: {', '.join(importable)}."
            if importable
            else ("Configure one of the kind 'openai' by `tuneway providers add`, or in tuneway.toml.")
        )
        raise InvalidRequest(f"{provider[:64]!r} {what}. {ready}", param="provider", code="invalid_value")

    def _go(self, found: Import) -> None:
        task = self._tasks[found.id] = asyncio.create_task(self._run(found))
        task.add_done_callback(lambda _: self._tasks.pop(found.id))

    async def _run(self, found: Import) -> None:
        log.info("%s reads the account %s", found.id, found.provider)
        try:
            await self._read(found)
        except Exception:
            log.exception("%s could not be ended; it goes on when the gateway starts again", found.id)

    async def _read(self, found: Import) -> None:
        try:
            vendor = self._accounts.remote(found.provider).vendor
        except ProviderNotFound as gone:
            failed = replace(found, state=ImportState.FAILED, error=gone.message, finished_at=int(time.time()))
            return await self._store.write(rows.save, failed)
        run = Run(self._store, self._blobs, Account(found.provider, vendor), found)
        error: str | None = None
        try:
            await run.read()
        except GaveUp as failure:
            error = f"{failure} {AGAIN}"
        except UpstreamError as failure:
            error = f"{found.provider} could not be read: {failure.message} {AGAIN}"
        except TunewayError as failure:
            error = f"{failure.message} {AGAIN}"
        except Exception:
            log.exception("%s stopped", found.id)
            error = f"The gateway could not go on; its log says why. {AGAIN}"
        await run.end(error)
