"""`/v1/fine_tuning/jobs`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from tuneway import types
from tuneway.api import schema
from tuneway.api.body import read_json, read_nothing
from tuneway.api.context import Context, Project, Served, Spoken
from tuneway.api.dialect import Dialect
from tuneway.errors import InvalidRequest
from tuneway.types import JobRequest, JobStatus

router = APIRouter(prefix="/fine_tuning/jobs", tags=["Fine-tuning"])

Limit = Annotated[int, Query(ge=1, le=10000)]

_METADATA = re.compile(r"metadata\[(.+)\]")
_MAX_KEY_LENGTH = 255


@router.post("", openapi_extra=schema.body(schema.CreateFineTuningJobRequest))
async def create_job(
    request: Request, response: Response, served: Served, project: Project, dialect: Spoken
) -> schema.FineTuningJob:
    body = await read_json(request, served.settings.max_json_bytes)
    asked = schema.CreateFineTuningJobRequest.parse(body, dialect).to_domain(dialect)
    job = await served.jobs.create(project, _with_provider(asked, request), idempotency_key=_idempotency_key(request))
    response.status_code = dialect.created
    if dialect.created == 201:
        response.headers["location"] = f"{request.url.path}/{job.id}"
    return await _wire(job, served, dialect)


@router.get("")
async def list_jobs(
    request: Request, served: Served, project: Project, dialect: Spoken, after: str | None = None, limit: Limit = 20
) -> schema.JobList:
    page = await served.jobs.list(project, after=after, limit=limit, metadata=_metadata(request))
    return schema.JobList(
        object="list", data=[await _wire(job, served, dialect) for job in page.data], has_more=page.has_more
    )


@router.get("/{job_id}")
async def retrieve_job(job_id: str, served: Served, project: Project, dialect: Spoken) -> schema.FineTuningJob:
    return await _wire(await served.jobs.get(project, job_id), served, dialect)


@router.post("/{job_id}/cancel")
async def cancel_job(
    job_id: str, request: Request, served: Served, project: Project, dialect: Spoken
) -> schema.FineTuningJob:
    await read_nothing(request, served.settings.max_json_bytes)
    return await _wire(await served.jobs.cancel(project, job_id), served, dialect)


@router.get("/{job_id}/events")
async def list_events(
    job_id: str, served: Served, project: Project, dialect: Spoken, after: str | None = None, limit: Limit = 20
) -> schema.EventList:
    page = await served.jobs.events(project, job_id, after=after, limit=limit)
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


async def _wire(job: types.Job, served: Context, dialect: Dialect) -> schema.FineTuningJob:
    position = await served.jobs.queue_position(job) if job.status is JobStatus.QUEUED else None
    return schema.FineTuningJob.of(job, dialect, position)


def _with_provider(asked: JobRequest, request: Request) -> JobRequest:
    """The provider may stand in a header too, as Portkey's clients send it. Raises InvalidRequest for two answers."""
    for header in ("x-tuneway-provider", "x-portkey-provider"):
        named = request.headers.get(header)
        if named is None:
            continue
        if asked.provider not in (None, named):
            raise InvalidRequest(
                f"The request names two providers: '{asked.provider}', and '{named}' in the header {header}.",
                param="tuneway.provider",
                code="invalid_value",
            )
        asked = replace(asked, provider=named)
    return asked


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= _MAX_KEY_LENGTH:
        raise InvalidRequest(f"The header Idempotency-Key must have 1 to {_MAX_KEY_LENGTH} characters.")
    return key


def _metadata(request: Request) -> Mapping[str, str] | None:
    """The filter in `metadata[k]=v`, {} (jobs without metadata) for `metadata=null`, None for no filter."""
    wanted: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        key = _METADATA.fullmatch(name)
        if key is not None and wanted.setdefault(key[1], value) != value:
            raise InvalidRequest(f"'{name}' is given twice with different values.", param=name)
    literal = request.query_params.get("metadata")
    if literal is None:
        return wanted or None
    if literal != "null" or wanted:
        raise InvalidRequest(
            "Filter jobs by 'metadata[key]=value', or by 'metadata=null' for those without metadata.", param="metadata"
        )
    return {}
