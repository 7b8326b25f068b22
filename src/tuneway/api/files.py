"""`/v1/files`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Literal
from urllib.parse import quote

import anyio
from anyio import AsyncFile
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from tuneway.api.azure import location
from tuneway.api.body import read_json
from tuneway.api.completions import FILE_BODY, create_file_of_completions, is_json
from tuneway.api.context import Project, Sender, Served, Spoken
from tuneway.api.multipart import UPLOAD_BODY, read_upload
from tuneway.api.schema import files as schema
from tuneway.api.schema.base import Deleted, parse
from tuneway.api.schema.base import body as described
from tuneway.api.schema.completions import FileFromCompletions
from tuneway.errors import FileNotFound

router = APIRouter(prefix="/files", tags=["Files"])
extensions = APIRouter(prefix="/tuneway/files", tags=["Tuneway"])

CHUNK = 256 * 1024

CREATE_BODY = {"requestBody": {"required": True, "content": {**UPLOAD_BODY["requestBody"]["content"], **FILE_BODY}}}


# `exclude_unset` leaves out `expires_at` of a file that stays: OpenAI's schema has no null there.
@router.post("", response_model_exclude_unset=True, openapi_extra=CREATE_BODY)
async def create_file(
    request: Request, response: Response, served: Served, project: Project, dialect: Spoken, origin: Sender
) -> FileFromCompletions | schema.OpenAIFile:
    if is_json(request):
        return await create_file_of_completions(request, response, served, project, dialect, origin)
    incoming = served.files.receive()
    try:
        form = await read_upload(request, incoming, served.settings.max_file_bytes)
        file = await incoming.commit(
            project, filename=form.filename, purpose=form.purpose, expires_after=form.expires_after, origin=origin
        )
    except BaseException:
        await incoming.discard()
        raise
    response.status_code = dialect.created
    if dialect.created == 201:
        response.headers["location"] = location(request.scope, file.id)
    return schema.OpenAIFile.of(file, dialect)


@extensions.post("/import", response_model_exclude_unset=True, openapi_extra=described(schema.ImportFileRequest))
async def import_file(
    request: Request, response: Response, served: Served, project: Project, dialect: Spoken, origin: Sender
) -> schema.OpenAIFile:
    asked = parse(schema.ImportFileRequest, await read_json(request, served.settings.max_json_bytes))
    schema.require_suffix(asked.filename, asked.purpose, "filename")
    file = await served.files.fetch(
        project, filename=asked.filename, purpose=asked.purpose, url=asked.content_url, origin=origin
    )
    response.status_code = dialect.created
    if dialect.created == 201:
        response.headers["location"] = location(request.scope, file.id)
    return schema.OpenAIFile.of(file, dialect)


@router.get("", response_model_exclude_unset=True)
async def list_files(
    served: Served,
    project: Project,
    dialect: Spoken,
    after: str | None = None,
    limit: Annotated[int, Query(ge=0, le=10000)] = 10000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> schema.FileList:
    page = await served.files.list(project, after=after, limit=limit, order=order, purpose=purpose)
    return schema.FileList(
        object="list",
        data=[schema.OpenAIFile.of(file, dialect) for file in page.data],
        first_id=page.data[0].id if page.data else None,
        last_id=page.data[-1].id if page.data else None,
        has_more=page.has_more,
    )


@router.get("/{file_id}", response_model_exclude_unset=True)
async def retrieve_file(file_id: str, served: Served, project: Project, dialect: Spoken) -> schema.OpenAIFile:
    return schema.OpenAIFile.of(await served.files.get(project, file_id), dialect)


@router.delete("/{file_id}")
async def delete_file(file_id: str, served: Served, project: Project) -> Deleted:
    await served.files.delete(project, file_id)
    return Deleted(id=file_id, object="file")


@router.get("/{file_id}/content", response_class=StreamingResponse)
async def download_file(file_id: str, served: Served, project: Project) -> StreamingResponse:
    file = await served.files.get(project, file_id)
    # Opened before the first header is sent, and readable to the end even if it is deleted meanwhile.
    try:
        content = await anyio.open_file(served.files.path(file), "rb")
    except FileNotFoundError:
        raise FileNotFound(file_id) from None  # deleted just now
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
