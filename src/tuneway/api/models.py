"""`/v1/models`. Names hold `:`, and those of other places `/`; both come as they are or percent-encoded."""

from __future__ import annotations

from fastapi import APIRouter

from tuneway.api import schema
from tuneway.api.context import Project, Served

router = APIRouter(prefix="/models", tags=["Models"])


@router.get("")
async def list_models(served: Served, project: Project) -> schema.ModelList:
    return schema.ModelList(object="list", data=[schema.Model.of(model) for model in await served.models.list(project)])


@router.get("/{model:path}")
async def retrieve_model(model: str, served: Served, project: Project) -> schema.Model:
    return schema.Model.of(await served.models.get(project, model))


@router.delete("/{model:path}")
async def delete_model(model: str, served: Served, project: Project) -> schema.Deleted:
    await served.models.delete(project, model)
    return schema.Deleted(id=model, object="model")
