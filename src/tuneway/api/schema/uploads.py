"""Uploads and their parts on the wire."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from tuneway import types
from tuneway.api.schema.base import Request, Text, absent
from tuneway.api.schema.files import FileExpirationAfter, Filename, OpenAIFile, Purpose


class CreateUploadRequest(Request):
    filename: Filename
    purpose: Purpose
    bytes: Annotated[int, Field(ge=0)]
    mime_type: Annotated[Text, Field(max_length=255)]
    expires_after: FileExpirationAfter = absent()


class CompleteUploadRequest(Request):
    part_ids: list[str]
    md5: Annotated[str, Field(pattern="^[0-9A-Fa-f]{32}$")] = absent()


class Upload(BaseModel):
    id: str
    object: Literal["upload"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    expires_at: int
    file: OpenAIFile | None = None

    @classmethod
    def of(cls, upload: types.Upload, file: types.File | None = None) -> Upload:
        """The wire form, with `file` only for a completed one."""
        fields: dict[str, Any] = {
            "id": upload.id,
            "object": "upload",
            "bytes": upload.bytes,
            "created_at": upload.created_at,
            "filename": upload.filename,
            "purpose": upload.purpose,
            "status": upload.status.value,
            "expires_at": upload.expires_at,
        }
        if file is not None:
            fields["file"] = OpenAIFile.of(file)
        return cls.model_construct(**fields)


class UploadPart(BaseModel):
    id: str
    object: Literal["upload.part"]
    created_at: int
    upload_id: str

    @classmethod
    def of(cls, part: types.UploadPart) -> UploadPart:
        return cls(id=part.id, object="upload.part", created_at=part.created_at, upload_id=part.upload_id)
