"""The permissions service: lets other projects use a checkpoint of one's own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from tuneway import ids
from tuneway.errors import ModelNotFound, PermissionNotFound
from tuneway.store import Store, Tx
from tuneway.store import models as model_rows
from tuneway.store import permissions as rows
from tuneway.types import Page, Permission


class Permissions:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def grant(self, project: str, model: str, to: Sequence[str]) -> Sequence[Permission]:
        """Lets the projects `to` chat with the project's checkpoint, all of them or, when it raises, none.

        Granting again changes nothing. Raises ModelNotFound.
        """
        now = int(time.time())

        def store(tx: Tx) -> Sequence[Permission]:
            _known(tx, project, model)
            return [
                rows.insert(tx, Permission(0, ids.permission_id(), project, now, model, guest))
                for guest in dict.fromkeys(to)
            ]

        return await self._store.write(store)

    async def list(
        self,
        project: str,
        model: str,
        *,
        granted_to: str | None,
        after: str | None,
        limit: int,
        order: Literal["ascending", "descending"],
    ) -> Page[Permission]:
        """An empty page when `after` is no permission of the checkpoint. Raises ModelNotFound."""

        def read(tx: Tx) -> Page[Permission] | None:
            _known(tx, project, model)
            return rows.page(tx, project, model, granted_to=granted_to, after=after, limit=limit, order=order)

        page = await self._store.read(read)
        return Page((), has_more=False) if page is None else page

    async def revoke(self, project: str, model: str, permission_id: str) -> None:
        """Ends a permission from the next request on. Raises ModelNotFound and PermissionNotFound."""

        def store(tx: Tx) -> bool:
            _known(tx, project, model)
            return rows.remove(tx, project, model, permission_id)

        if not await self._store.write(store):
            raise PermissionNotFound(permission_id)


def _known(tx: Tx, project: str, model: str) -> None:
    if model_rows.get(tx, project, model) is None:
        raise ModelNotFound(model)
