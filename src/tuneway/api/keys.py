"""`/v1/tuneway/keys`: the keys of the caller's project; of every project for a gateway's operator, who has no key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request

from tuneway.api.body import read_json
from tuneway.api.context import Keys, Served, principal_of
from tuneway.api.schema.base import body, parse
from tuneway.api.schema.keys import CreateKeyRequest, Key, KeyList, NewKey
from tuneway.errors import Forbidden
from tuneway.keys import DEFAULT_SCOPES
from tuneway.types import Principal, Scope

router = APIRouter(prefix="/tuneway/keys", tags=["Tuneway"])


@router.post("", openapi_extra=body(CreateKeyRequest))
async def create_key(request: Request, served: Served) -> NewKey:
    asked = await read_json(request, served.settings.max_json_bytes)
    return await create(served.services.keys, principal_of(request.scope), asked)


@router.get("")
async def list_keys(request: Request, served: Served) -> KeyList:
    return await every(served.services.keys, principal_of(request.scope))


@router.delete("/{key_id}")
async def revoke_key(key_id: str, request: Request, served: Served) -> Key:
    return await revoke(served.services.keys, principal_of(request.scope), key_id)


# Without the web, for `tuneway keys` while no gateway runs.


async def create(keys: Keys, principal: Principal, asked: Mapping[str, Any]) -> NewKey:
    """Raises InvalidRequest, and Forbidden for a key of another project than the caller's."""
    wanted = parse(CreateKeyRequest, asked)
    project = wanted.project or principal.project
    if _reach(principal) not in (None, project):
        raise Forbidden(f"This key can make keys for its own project only, which is {principal.project!r}.")
    scopes = [Scope(scope) for scope in wanted.scopes or DEFAULT_SCOPES]
    key, secret = await keys.create(project, wanted.name, scopes, wanted.expires_after)
    return NewKey.made(key, secret)


async def every(keys: Keys, principal: Principal) -> KeyList:
    return KeyList(data=[Key.of(key) for key in await keys.list(_reach(principal))])


async def revoke(keys: Keys, principal: Principal, key_id: str) -> Key:
    """Raises KeyNotFound."""
    return Key.of(await keys.revoke(_reach(principal), key_id))


def _reach(principal: Principal) -> str | None:
    """The project whose keys the caller may see and make; None for every project."""
    return None if principal.key_id is None else principal.project
