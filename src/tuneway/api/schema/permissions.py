"""Checkpoint permissions on the wire."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from tuneway import types
from tuneway.api.schema.base import Request, Text


class CreatePermissionsRequest(Request):
    project_ids: Annotated[list[Text], Field(min_length=1, max_length=100)]


class CheckpointPermission(BaseModel):
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    id: str
    created_at: int
    project_id: str

    @classmethod
    def of(cls, permission: types.Permission) -> CheckpointPermission:
        return cls(id=permission.id, created_at=permission.created_at, project_id=permission.granted_to)


class PermissionList(BaseModel):
    object: Literal["list"] = "list"
    data: list[CheckpointPermission]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, permissions: tuple[types.Permission, ...], has_more: bool) -> PermissionList:
        data = [CheckpointPermission.of(permission) for permission in permissions]
        return cls(
            data=data,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=has_more,
        )
