"""`/v1/uploads`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from tuneway.api.body import read_json, read_nothing
from tuneway.api.context import Project, Sender, Served, Spoken
from tuneway.api.multipart import PART_BODY, read_part
from tuneway.api.schema import uploads as schema
from tuneway.api.schema.base import body as described
from tuneway.api.schema.base import parse
from tuneway.api.schema.files import require_suffix

router = APIRouter(prefix="/uploads", tags=["Uploads"])


# `exclude_unset` leaves out `file` until there is one, as OpenAI does.
@router.post("", response_model_exclude_unset=True, openapi_extra=described(schema.CreateUploadRequest))
async def create_upload(
    request: Request, response: Response, served: Served, project: Project, dialect: Spoken, origin: Sender
) -> schema.Upload:
    asked = parse(schema.CreateUploadRequest, await read_json(request, served.settings.max_json_bytes))
    require_suffix(asked.filename, asked.purpose, "filename")
    upload = await served.uploads.create(
        project,
        filename=asked.filename,
        purpose=asked.purpose,
        bytes=asked.bytes,
        mime_type=asked.mime_type,
        expires_after=None if asked.expires_after is None else asked.expires_after.seconds,
        origin=origin,
    )
    response.status_code = dialect.created
    return schema.Upload.of(upload)


@router.post("/{upload_id}/parts", openapi_extra=PART_BODY)
async def add_upload_part(
    upload_id: str,
    request: Request,
    response: Response,
    served: Served,
    project: Project,
    dialect: Spoken,
    origin: Sender,
) -> schema.UploadPart:
    incoming = await served.uploads.receive_part(project, upload_id)
    try:
        await read_part(request, incoming)
        part = await incoming.commit(origin)
    except BaseException:
        await incoming.discard()
        raise
    response.status_code = dialect.created
    return schema.UploadPart.of(part)


@router.post(
    "/{upload_id}/complete", response_model_exclude_unset=True, openapi_extra=described(schema.CompleteUploadRequest)
)
async def complete_upload(
    upload_id: str, request: Request, served: Served, project: Project, origin: Sender
) -> schema.Upload:
    asked = parse(schema.CompleteUploadRequest, await read_json(request, served.settings.max_json_bytes))
    upload, file = await served.uploads.complete(
        project, upload_id, part_ids=asked.part_ids, md5=asked.md5, origin=origin
    )
    return schema.Upload.of(upload, file)


@router.post("/{upload_id}/cancel", response_model_exclude_unset=True)
async def cancel_upload(
    upload_id: str, request: Request, served: Served, project: Project, origin: Sender
) -> schema.Upload:
    await read_nothing(request, served.settings.max_json_bytes)
    return schema.Upload.of(await served.uploads.cancel(project, upload_id, origin))
