"""`/v1/files`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Literal
from urllib.parse import quote

import anyio
from anyio import AsyncFile
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from tuneway.api import schema
from tuneway.api.context import Project, Served, Spoken
from tuneway.api.multipart import UPLOAD_BODY, boundary_of, read_upload

router = APIRouter(prefix="/files", tags=["Files"])

CHUNK = 256 * 1024


# `exclude_unset` leaves out `expires_at` of a file that stays: OpenAI's schema has no null there.
@router.post("", response_model_exclude_unset=True, openapi_extra=UPLOAD_BODY)
async def create_file(
    request: Request, response: Response, served: Served, project: Project, dialect: Spoken
) -> schema.OpenAIFile:
    boundary = boundary_of(request, served.settings.max_file_bytes)
    incoming = served.files.receive()
    try:
        form = await read_upload(request.stream(), boundary, incoming, served.settings.max_file_bytes)
        file = await incoming.commit(
            project, filename=form.filename, purpose=form.purpose, expires_after=form.expires_after
        )
    except BaseException:
        await incoming.discard()
        raise
    response.status_code = dialect.created
    if dialect.created == 201:
        response.headers["location"] = f"{request.url.path}/{file.id}"
    return schema.OpenAIFile.of(file)


@router.get("", response_model_exclude_unset=True)
async def list_files(
    served: Served,
    project: Project,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10000)] = 10000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> schema.FileList:
    page = await served.files.list(project, after=after, limit=limit, order=order, purpose=purpose)
    return schema.FileList(
        object="list",
        data=[schema.OpenAIFile.of(file) for file in page.data],
        first_id=page.data[0].id if page.data else None,
        last_id=page.data[-1].id if page.data else None,
        has_more=page.has_more,
    )


@router.get("/{file_id}", response_model_exclude_unset=True)
async def retrieve_file(file_id: str, served: Served, project: Project) -> schema.OpenAIFile:
    return schema.OpenAIFile.of(await served.files.get(project, file_id))


@router.delete("/{file_id}")
async def delete_file(file_id: str, served: Served, project: Project) -> schema.Deleted:
    await served.files.delete(project, file_id)
    return schema.Deleted(id=file_id, object="file")


@router.get("/{file_id}/content", response_class=StreamingResponse)
async def download_file(file_id: str, served: Served, project: Project) -> StreamingResponse:
    file = await served.files.get(project, file_id)
    # Opened before the first header is sent, and readable to the end even if it is deleted meanwhile.
    content = await anyio.open_file(served.files.path(file), "rb")
    return StreamingResponse(
        _chunks(content),
        media_type="application/octet-stream",
        headers={
            "content-length": str(file.bytes),
            "content-disposition": _attachment(file.filename),
            "x-content-type-options": "nosniff",
        },
    )


async def _chunks(content: AsyncFile[bytes]) -> AsyncIterator[bytes]:
    async with content:
        while chunk := await content.read(CHUNK):
            yield chunk


def _attachment(filename: str) -> str:
    """RFC 6266: a plain name for old clients, the exact one in UTF-8 behind it. Neither can hold a path."""
    name = filename.replace("/", "_").replace("\\", "_")
    plain = "".join(char if char.isascii() and char.isprintable() and char not in '"%' else "_" for char in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
