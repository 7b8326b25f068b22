"""Files on the wire."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field

from tuneway import types
from tuneway.api.dialect import OPENAI, Dialect
from tuneway.api.schema.base import Request, Text
from tuneway.errors import InvalidRequest
from tuneway.types import FileStatus

Purpose = Literal["fine-tune", "assistants", "batch", "user_data", "vision", "evals"]
PURPOSES: tuple[str, ...] = get_args(Purpose)
"""In the order in which OpenAI's own error names them."""

MAX_NAME_LENGTH = 255
Filename = Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH, pattern=r"^[^\x00-\x1f\x7f]+$")]

EXPIRES_AFTER_SECONDS = range(3600, 2592000 + 1)


class FileExpirationAfter(Request):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=EXPIRES_AFTER_SECONDS[0], le=EXPIRES_AFTER_SECONDS[-1])]


class ImportFileRequest(Request):
    """Azure's: a file that the gateway fetches by itself."""

    purpose: Purpose
    filename: Filename
    content_url: Text


class OpenAIFile(BaseModel):
    id: str
    object: Literal["file"]
    purpose: str
    filename: str
    bytes: int
    created_at: int
    expires_at: int | None = None
    status: Literal["uploaded", "processed", "error", "pending"]
    status_details: str | None = None

    @classmethod
    def of(cls, file: types.File, dialect: Dialect = OPENAI) -> OpenAIFile:
        """The wire form, without `expires_at` for a file that stays and without `status_details` for a good one.

        A file that is still being fetched is `pending` in Azure's words; OpenAI's closed list has `uploaded`.
        """
        status = file.status.value
        if file.status is FileStatus.PENDING and dialect.name != "azure":
            status = "uploaded"
        fields: dict[str, Any] = {
            "id": file.id,
            "object": "file",
            "purpose": file.purpose,
            "filename": file.filename,
            "bytes": file.bytes,
            "created_at": file.created_at,
            "status": status,
        }
        if file.expires_at is not None:
            fields["expires_at"] = file.expires_at
        if file.status_details is not None:
            fields["status_details"] = file.status_details
        return cls.model_construct(**fields)


class FileList(BaseModel):
    object: Literal["list"]
    data: list[OpenAIFile]
    first_id: str | None
    last_id: str | None
    has_more: bool


def require_suffix(filename: str, purpose: str, param: str) -> None:
    """Raises InvalidRequest for a training file of another kind than JSONL."""
    if purpose == "fine-tune" and not filename.lower().endswith(".jsonl"):
        raise InvalidRequest("Invalid file format for Fine-Tuning API. Must be .jsonl", param=param)
