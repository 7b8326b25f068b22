"""`/v1/tuneway/providers`: the accounts at providers that this gateway has.

Every project may see them, as all of them use them; only the operator's changes them.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.convertors import StringConvertor, register_url_convertor

from tuneway.api.access import OPERATOR
from tuneway.api.body import read_json, read_nothing
from tuneway.api.context import Served
from tuneway.api.schema.base import Deleted, body
from tuneway.api.schema.providers import (
    CreateProviderRequest,
    Provider,
    ProviderCheck,
    ProviderKind,
    ProviderKindList,
    ProviderList,
)

router = APIRouter(prefix="/tuneway/providers", tags=["Tuneway"])


class _Name(StringConvertor):
    """An account's name in a path: not `kinds`, which is a path of its own with methods of its own."""

    regex = "(?!kinds$)[^/]+"


register_url_convertor("account", _Name())


@router.get("/kinds")
async def list_provider_kinds(served: Served) -> ProviderKindList:
    return ProviderKindList(data=[ProviderKind.of(kind) for kind in served.services.accounts.kinds()])


@router.post("", openapi_extra=body(CreateProviderRequest), dependencies=OPERATOR)
async def create_provider(request: Request, served: Served) -> Provider:
    asked = CreateProviderRequest.parse(await read_json(request, served.settings.max_json_bytes))
    return Provider.of(await served.services.accounts.add(asked.account(), asked.secrets or {}))


@router.get("")
async def list_providers(served: Served) -> ProviderList:
    return ProviderList(data=[Provider.of(shown) for shown in await served.services.accounts.list()])


@router.get("/{name:account}")
async def retrieve_provider(name: str, served: Served) -> Provider:
    return Provider.of(await served.services.accounts.get(name))


@router.delete("/{name:account}", dependencies=OPERATOR)
async def delete_provider(name: str, served: Served) -> Deleted:
    await served.services.accounts.remove(name)
    return Deleted(id=name, object="tuneway.provider")


@router.post("/{name:account}/check", dependencies=OPERATOR)
async def check_provider(name: str, request: Request, served: Served) -> ProviderCheck:
    """Asks the provider for the newest of its jobs: whether it can be reached and takes the credential."""
    await read_nothing(request, served.settings.max_json_bytes)
    await served.services.accounts.check(name)
    return ProviderCheck()
