"""`/v1/fine_tuning/alpha/graders`."""

from __future__ import annotations

from fastapi import APIRouter, Request

from tuneway.api.body import read_json
from tuneway.api.context import Project, Served, principal_of
from tuneway.api.schema import graders as schema
from tuneway.api.schema.base import body as described
from tuneway.graders import asks_a_model
from tuneway.keys import allow
from tuneway.types import Scope

router = APIRouter(prefix="/fine_tuning/alpha/graders", tags=["Fine-tuning"])


@router.post("/run", openapi_extra=described(schema.RunGraderRequest))
async def run_grader(request: Request, served: Served, project: Project) -> schema.RunGraderResponse:
    """A grader that asks a model needs a key that may chat."""
    asked = schema.parse(schema.RunGraderRequest, await read_json(request, served.settings.max_json_bytes))
    grader = asked.grader.to_domain("grader")
    if asks_a_model(grader):
        allow(principal_of(request.scope), Scope.CHAT)
    graded = await served.services.graders.run(project, grader, asked.model_sample, asked.item or {})
    return schema.RunGraderResponse.of(grader, graded)


@router.post("/validate", openapi_extra=described(schema.ValidateGraderRequest), response_model_exclude_none=True)
async def validate_grader(request: Request, served: Served) -> schema.ValidateGraderResponse:
    asked = schema.parse(schema.ValidateGraderRequest, await read_json(request, served.settings.max_json_bytes))
    await served.services.graders.validate(asked.grader.to_domain("grader"))
    return schema.ValidateGraderResponse(grader=asked.grader)
