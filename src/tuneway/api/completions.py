"""`/v1/chat/completions`, as far as they are stored ones, and `/v1/files` made of them.

The request that makes a completion is in `chat.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from tuneway.api.azure import location
from tuneway.api.body import read_json
from tuneway.api.context import Project, Served, metadata_filter
from tuneway.api.dialect import Dialect
from tuneway.api.schema import completions as schema
from tuneway.api.schema.base import METADATA_FILTER, Deleted, body, parse
from tuneway.api.schema.files import require_suffix
from tuneway.types import Origin

router = APIRouter(prefix="/chat/completions", tags=["Chat"])

Limit = Annotated[int, Query(ge=0, le=10000)]
Order = Literal["asc", "desc"]


FILE_BODY: Mapping[str, Any] = body(schema.CreateFileFromCompletionsRequest)["requestBody"]["content"]
"""The OpenAPI description of the body that `create_file_of_completions` reads."""


# `exclude_unset`: what an upstream left out of its answer stays out.
@router.get("", response_model_exclude_unset=True, openapi_extra={"parameters": [METADATA_FILTER]})
async def list_chat_completions(
    request: Request,
    served: Served,
    project: Project,
    model: str | None = None,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> schema.ChatCompletionList:
    page = await served.completions.list(
        project, after=after, limit=limit, order=order, model=model, metadata=metadata_filter(request, "completions")
    )
    return schema.ChatCompletionList(
        object="list",
        data=[schema.ChatCompletion.of(completion) for completion in page.data],
        first_id=page.data[0].id if page.data else None,
        last_id=page.data[-1].id if page.data else None,
        has_more=page.has_more,
    )


@router.get("/{completion_id}", response_model_exclude_unset=True)
async def get_chat_completion(completion_id: str, served: Served, project: Project) -> schema.ChatCompletion:
    return schema.ChatCompletion.of(await served.completions.get(project, completion_id))


@router.post(
    "/{completion_id}",
    response_model_exclude_unset=True,
    openapi_extra=body(schema.UpdateChatCompletionRequest),
)
async def update_chat_completion(
    completion_id: str, request: Request, served: Served, project: Project
) -> schema.ChatCompletion:
    asked = parse(schema.UpdateChatCompletionRequest, await read_json(request, served.settings.max_json_bytes))
    return schema.ChatCompletion.of(await served.completions.update(project, completion_id, asked.metadata))


@router.delete("/{completion_id}")
async def delete_chat_completion(completion_id: str, served: Served, project: Project) -> Deleted:
    await served.completions.delete(project, completion_id)
    return Deleted(id=completion_id, object="chat.completion.deleted")


@router.get("/{completion_id}/messages", response_model_exclude_unset=True)
async def get_chat_completion_messages(
    completion_id: str,
    served: Served,
    project: Project,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> schema.ChatCompletionMessageList:
    completion = await served.completions.get(project, completion_id)
    numbers = [*range(len(completion.request["messages"]))]
    if order == "desc":
        numbers.reverse()
    if after is not None:
        marks = [f"{completion.id}-{number}" for number in numbers]
        numbers = numbers[marks.index(after) + 1 :] if after in marks else []
    data = [schema.ChatCompletionStoreMessage.of(completion, number) for number in numbers[:limit]]
    return schema.ChatCompletionMessageList(
        object="list",
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(numbers) > limit,
    )


# --------------------------------------------------------------------------------------------------------------- files


def is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


async def create_file_of_completions(
    request: Request, response: Response, served: Served, project: Project, dialect: Dialect, origin: Origin
) -> schema.FileFromCompletions:
    """`POST /v1/files` with a JSON body."""
    asked = parse(schema.CreateFileFromCompletionsRequest, await read_json(request, served.settings.max_json_bytes))
    require_suffix(asked.filename, asked.purpose, "filename")
    file, outcome = await served.completions.make_file(
        project,
        asked.tuneway.stored_completions.to_domain(),
        filename=asked.filename,
        expires_after=None if asked.expires_after is None else asked.expires_after.seconds,
        origin=origin,
    )
    response.status_code = dialect.created
    if dialect.created == 201:
        response.headers["location"] = location(request.scope, file.id)
    return schema.FileFromCompletions.made(file, outcome, dialect)
