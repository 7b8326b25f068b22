"""`/v1/tuneway/imports`: what is at an account of a vendor, read into the project."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from tuneway.api.access import OPERATOR
from tuneway.api.body import read_json
from tuneway.api.context import Project, Served
from tuneway.api.schema.base import body, parse
from tuneway.api.schema.imports import CreateImportRequest, Import, ImportList

router = APIRouter(prefix="/tuneway/imports", tags=["Tuneway"])


@router.post("", openapi_extra=body(CreateImportRequest), dependencies=OPERATOR)
async def create_import(request: Request, served: Served, project: Project) -> Import:
    asked = parse(CreateImportRequest, await read_json(request, served.settings.max_json_bytes))
    return Import.of(await served.services.imports.start(project, asked.provider))


@router.get("")
async def list_imports(
    served: Served,
    project: Project,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> ImportList:
    page = await served.services.imports.list(project, after=after, limit=limit)
    return ImportList(data=[Import.of(found) for found in page.data], has_more=page.has_more)


@router.get("/{import_id}")
async def retrieve_import(import_id: str, served: Served, project: Project) -> Import:
    return Import.of(await served.services.imports.get(project, import_id))
