"""`/v1/fine_tuning/jobs`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from tuneway import types
from tuneway.api.azure import location
from tuneway.api.body import read_json, read_nothing
from tuneway.api.context import PROVIDER_HEADERS, Context, Project, Sender, Served, Spoken, metadata_filter
from tuneway.api.dialect import Dialect
from tuneway.api.schema import chat
from tuneway.api.schema import jobs as schema
from tuneway.api.schema.base import IDEMPOTENCY_KEY, METADATA_FILTER, parse
from tuneway.api.schema.base import body as described
from tuneway.errors import InvalidRequest, JobNotFound
from tuneway.types import JobRequest, JobStatus

router = APIRouter(prefix="/fine_tuning/jobs", tags=["Fine-tuning"])
extensions = APIRouter(prefix="/tuneway/jobs", tags=["Tuneway"])

Limit = Annotated[int, Query(ge=0, le=10000)]

_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A list, newest first; with `stream=true` all events as they come, oldest first, until the job "
        "has ended: `id: …` and `data: {…}` for each, then `data: [DONE]`.",
        "content": {"text/event-stream": {"schema": chat.SERVER_SENT}},
    }
}


@router.post("", openapi_extra=described(schema.CreateFineTuningJobRequest) | {"parameters": [IDEMPOTENCY_KEY]})
async def create_job(
    request: Request, response: Response, served: Served, project: Project, dialect: Spoken, origin: Sender
) -> schema.FineTuningJob:
    body = await read_json(request, served.settings.max_json_bytes)
    optional = {name: (option, body.pop(name)) for name, option in dialect.optional.items() if name in body}
    asked = schema.CreateFineTuningJobRequest.parse(body, dialect).to_domain(dialect)
    asked = replace(_with_provider(asked, request, served), optional=optional)
    job = await served.jobs.create(project, asked, origin)
    response.status_code = dialect.created
    if dialect.created == 201:
        response.headers["location"] = location(request.scope, job.id)
    ignored = served.jobs.ignored(asked, job.spec.provider)
    if ignored:
        response.headers["x-tuneway-ignored"] = ", ".join(ignored)
    return await _wire(job, served, dialect)


@router.get("", openapi_extra={"parameters": [METADATA_FILTER]})
async def list_jobs(
    request: Request, served: Served, project: Project, dialect: Spoken, after: str | None = None, limit: Limit = 20
) -> schema.JobList:
    page = await served.jobs.list(project, after=after, limit=limit, metadata=metadata_filter(request, "jobs"))
    return schema.JobList(
        object="list", data=[await _wire(job, served, dialect) for job in page.data], has_more=page.has_more
    )


@router.get("/{job_id}")
async def retrieve_job(job_id: str, served: Served, project: Project, dialect: Spoken) -> schema.FineTuningJob:
    return await _wire(await served.jobs.get(project, job_id), served, dialect)


@extensions.delete("/{job_id}", status_code=204)
async def delete_job(job_id: str, request: Request, served: Served, project: Project, dialect: Spoken) -> None:
    await read_nothing(request, served.settings.max_json_bytes)
    try:
        await served.jobs.delete(project, job_id)
    except JobNotFound:
        if not dialect.deletes_blindly:
            raise


@router.post("/{job_id}/cancel")
async def cancel_job(
    job_id: str, request: Request, served: Served, project: Project, dialect: Spoken, origin: Sender
) -> schema.FineTuningJob:
    await read_nothing(request, served.settings.max_json_bytes)
    return await _wire(await served.jobs.cancel(project, job_id, origin), served, dialect)


@extensions.post("/{job_id}/adopt", openapi_extra=described(schema.AdoptJobRequest))
async def adopt_job(
    job_id: str, request: Request, served: Served, project: Project, dialect: Spoken
) -> schema.FineTuningJob:
    """For a job that waits for a person (`tuneway.attention`): says which of the provider's jobs it is; null: none of
    them, it is started.
    """
    asked = parse(schema.AdoptJobRequest, await read_json(request, served.settings.max_json_bytes))
    return await _wire(await served.jobs.adopt(project, job_id, asked.provider_job_id), served, dialect)


@router.post("/{job_id}/pause")
async def pause_job(
    job_id: str, request: Request, served: Served, project: Project, dialect: Spoken
) -> schema.FineTuningJob:
    await read_nothing(request, served.settings.max_json_bytes)
    return await _wire(await served.jobs.pause(project, job_id), served, dialect)


@router.post("/{job_id}/resume")
async def resume_job(
    job_id: str, request: Request, served: Served, project: Project, dialect: Spoken
) -> schema.FineTuningJob:
    await read_nothing(request, served.settings.max_json_bytes)
    return await _wire(await served.jobs.resume(project, job_id), served, dialect)


@router.get("/{job_id}/events", response_model=schema.EventList, responses=_STREAM)
async def list_events(
    job_id: str,
    served: Served,
    project: Project,
    dialect: Spoken,
    after: str | None = None,
    limit: Annotated[int | None, Query(ge=0, le=10000, description="Of a list: 20 if not given.")] = None,
    stream: Literal["true", "false", "1", "0"] = "false",
    last_event_id: Annotated[str | None, Header(description="Of a stream: as `after`, and before it.")] = None,
) -> schema.EventList | StreamingResponse:
    if stream in ("true", "1"):
        if limit is not None:
            raise InvalidRequest(
                "A stream has no 'limit'. Remove it, or 'stream'.", param="limit", code="invalid_value"
            )
        batches = await served.jobs.follow(project, job_id, after=last_event_id or after)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(_frames(batches, dialect), media_type="text/event-stream", headers=headers)
    page = await served.jobs.events(project, job_id, after=after, limit=20 if limit is None else limit)
    events = [schema.FineTuningJobEvent.of(event, dialect) for event in page.data]
    return schema.EventList(object="list", data=events, has_more=page.has_more)


@router.get("/{job_id}/checkpoints")
async def list_checkpoints(
    job_id: str, served: Served, project: Project, after: str | None = None, limit: Limit = 10
) -> schema.CheckpointList:
    page = await served.jobs.checkpoints(project, job_id, after=after, limit=limit)
    return schema.CheckpointList(
        object="list",
        data=[schema.FineTuningJobCheckpoint.of(checkpoint) for checkpoint in page.data],
        first_id=page.data[0].id if page.data else None,
        last_id=page.data[-1].id if page.data else None,
        has_more=page.has_more,
    )


async def _frames(batches: AsyncIterator[Sequence[types.JobEvent] | None], dialect: Dialect) -> AsyncIterator[str]:
    """Server-sent events, with a comment where there was nothing to send for a while."""
    async for batch in batches:
        if batch is None:
            yield "data: [DONE]\n\n"
        elif not batch:
            yield ": \n\n"
        else:
            shown = (schema.FineTuningJobEvent.of(event, dialect) for event in batch)
            yield "".join(f"id: {event.id}\ndata: {event.model_dump_json()}\n\n" for event in shown)


async def _wire(job: types.Job, served: Context, dialect: Dialect) -> schema.FineTuningJob:
    position = await served.jobs.queue_position(job) if job.status is JobStatus.QUEUED else None
    return schema.FineTuningJob.of(job, dialect, position)


def _with_provider(asked: JobRequest, request: Request, served: Context) -> JobRequest:
    """The provider may stand in a header too, as Portkey's clients send it. Raises InvalidRequest for two answers."""
    for header in PROVIDER_HEADERS:
        named = request.headers.get(header, "").removeprefix("@")  # Portkey's clients write it so
        if not named:
            continue
        served.models.require_provider(named, header)
        if asked.provider not in (None, named):
            raise InvalidRequest(
                f"The request names two providers: '{asked.provider}', and '{named}' in the header {header}.",
                param="tuneway.provider",
                code="invalid_value",
            )
        asked = replace(asked, provider=named)
    return asked
