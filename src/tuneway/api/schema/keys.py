"""Keys of this gateway on the wire."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from tuneway import types
from tuneway.api.schema.base import Request, Text, absent
from tuneway.types import Scope

ScopeName = Literal["read", "tune", "chat", "admin", "relay"]


class CreateKeyRequest(Request):
    """`expires_after` is in seconds; a key without it stays until it is revoked."""

    name: Annotated[str, Field(max_length=255)] = ""
    project: Text = absent()
    scopes: Annotated[list[ScopeName], Field(min_length=1)] = absent()
    expires_after: Annotated[int, Field(ge=1, le=10 * 366 * 86400)] | None = None


class Key(BaseModel):
    object: Literal["tuneway.key"] = "tuneway.key"
    id: str
    name: str
    project: str
    hint: str
    scopes: list[Scope]
    created_at: int
    expires_at: int | None
    revoked_at: int | None

    @classmethod
    def of(cls, key: types.Key) -> Key:
        return cls(**_fields(key))


class NewKey(Key):
    """With the key itself, which no other answer shows."""

    key: str

    @classmethod
    def made(cls, key: types.Key, secret: str) -> NewKey:
        return cls(**_fields(key), key=secret)


class KeyList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Key]
    has_more: Literal[False] = False


def _fields(key: types.Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "project": key.project_id,
        "hint": key.hint,
        "scopes": sorted(key.scopes),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    }
