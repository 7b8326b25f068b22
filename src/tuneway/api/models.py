"""`/v1/models`. Names hold `:`, and those of other places `/`; both come as they are or percent-encoded."""

from __future__ import annotations

from fastapi import APIRouter

from tuneway.api.context import Project, Served, Spoken
from tuneway.api.dialect import AZURE, Dialect
from tuneway.api.schema import models as schema
from tuneway.api.schema.base import Deleted
from tuneway.types import BaseModel, Model

router = APIRouter(prefix="/models", tags=["Models"])


def _wire(model: BaseModel | Model, project: str, dialect: Dialect) -> schema.Model | schema.AzureModel:
    return schema.AzureModel.of(model, project) if dialect is AZURE else schema.Model.of(model, project)


@router.get("")
async def list_models(served: Served, project: Project, dialect: Spoken) -> schema.ModelList:
    models = await served.models.list(project)
    return schema.ModelList(object="list", data=[_wire(model, project, dialect) for model in models])


@router.get("/{model:path}")
async def retrieve_model(
    model: str, served: Served, project: Project, dialect: Spoken
) -> schema.Model | schema.AzureModel:
    return _wire(await served.models.get(project, model), project, dialect)


@router.delete("/{model:path}")
async def delete_model(model: str, served: Served, project: Project) -> Deleted:
    await served.models.delete(project, model)
    return Deleted(id=model, object="model")
