"""`/v1/fine_tuning/alpha/graders`."""

from __future__ import annotations

from fastapi import APIRouter, Request

from tuneway.api.body import read_json
from tuneway.api.context import Project, Served
from tuneway.api.schema import graders as schema
from tuneway.api.schema.base import body as described

router = APIRouter(prefix="/fine_tuning/alpha/graders", tags=["Fine-tuning"])


@router.post("/run", openapi_extra=described(schema.RunGraderRequest))
async def run_grader(request: Request, served: Served, project: Project) -> schema.RunGraderResponse:
    asked = schema.parse(schema.RunGraderRequest, await read_json(request, served.settings.max_json_bytes))
    grader = asked.grader.to_domain("grader")
    graded = await served.services.graders.run(project, grader, asked.model_sample, asked.item or {})
    return schema.RunGraderResponse.of(grader, graded)


@router.post("/validate", openapi_extra=described(schema.ValidateGraderRequest), response_model_exclude_none=True)
async def validate_grader(request: Request, served: Served) -> schema.ValidateGraderResponse:
    asked = schema.parse(schema.ValidateGraderRequest, await read_json(request, served.settings.max_json_bytes))
    await served.services.graders.validate(asked.grader.to_domain("grader"))
    return schema.ValidateGraderResponse(grader=asked.grader)
