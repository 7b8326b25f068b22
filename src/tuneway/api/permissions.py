"""`/v1/fine_tuning/checkpoints/{checkpoint}/permissions`. Names of checkpoints hold `:`, plain or percent-encoded."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request

from tuneway.api.body import read_json
from tuneway.api.context import Project, Served
from tuneway.api.schema.base import Deleted, body, parse
from tuneway.api.schema.permissions import CreatePermissionsRequest, PermissionList

router = APIRouter(prefix="/fine_tuning/checkpoints/{checkpoint:path}/permissions", tags=["Fine-tuning"])


@router.get("")
async def list_checkpoint_permissions(
    checkpoint: str,
    served: Served,
    project: Project,
    project_id: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=0, le=10000)] = 10,
    order: Literal["ascending", "descending"] = "descending",
) -> PermissionList:
    page = await served.services.permissions.list(
        project, checkpoint, granted_to=project_id, after=after, limit=limit, order=order
    )
    return PermissionList.of(page.data, page.has_more)


@router.post("", openapi_extra=body(CreatePermissionsRequest))
async def create_checkpoint_permissions(
    checkpoint: str, request: Request, served: Served, project: Project
) -> PermissionList:
    asked = parse(CreatePermissionsRequest, await read_json(request, served.settings.max_json_bytes))
    granted = await served.services.permissions.grant(project, checkpoint, asked.project_ids)
    return PermissionList.of(tuple(granted), has_more=False)


@router.delete("/{permission_id}")
async def delete_checkpoint_permission(
    checkpoint: str, permission_id: str, served: Served, project: Project
) -> Deleted:
    await served.services.permissions.revoke(project, checkpoint, permission_id)
    return Deleted(id=permission_id, object="checkpoint.permission")
