"""Models on the wire."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from tuneway import types
from tuneway.api.schema.base import organization


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    tuneway: dict[str, Any]

    @classmethod
    def of(cls, model: types.BaseModel | types.Model, project: str) -> Model:
        """As `project` sees it: a guest is not told which job of its owner made it."""
        if isinstance(model, types.BaseModel):
            return cls(
                id=model.name,
                created=model.created,
                owned_by="system",
                tuneway={"provider": model.provider, "description": model.description},
            )
        return cls(
            id=model.id,
            created=model.created_at,
            owned_by=organization(model.project_id),
            tuneway={
                "provider": model.provider,
                "base": model.base,
                "job": model.job_id if model.project_id == project else None,
                "step_number": model.step_number,
            },
        )


class AzureCapabilities(BaseModel):
    fine_tune: bool
    inference: bool = True
    completion: bool = False
    chat_completion: bool = True
    embeddings: bool = False


class AzureDeprecation(BaseModel):
    """Azure has dates here; a model of this gateway stays until it is deleted."""


class AzureModel(BaseModel):
    """A model in Azure's form (its REST API description, 2024-10-21); OpenAI's four fields are in it as well."""

    id: str
    object: Literal["model"] = "model"
    created: int
    created_at: int
    owned_by: str
    status: Literal["succeeded"] = "succeeded"
    capabilities: AzureCapabilities
    lifecycle_status: Literal["generally-available"] = "generally-available"
    deprecation: AzureDeprecation = AzureDeprecation()
    model: str | None
    fine_tune: str | None
    tuneway: dict[str, Any]

    @classmethod
    def of(cls, model: types.BaseModel | types.Model, project: str) -> AzureModel:
        plain = Model.of(model, project)
        tuned = isinstance(model, types.Model)
        return cls(
            **plain.model_dump(),
            created_at=plain.created,
            capabilities=AzureCapabilities(fine_tune=not tuned),
            model=model.base if isinstance(model, types.Model) else None,
            fine_tune=plain.tuneway.get("job"),
        )


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model | AzureModel]
