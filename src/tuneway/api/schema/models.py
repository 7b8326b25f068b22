"""Models on the wire."""

from __future__ import annotations

import time
from typing import Literal

from pydantic import BaseModel

from tuneway import types
from tuneway.api.schema.base import organization


class BaseModelExtension(BaseModel):
    provider: str
    description: str


class ModelDeployment(BaseModel):
    """What serves the model at its provider. `running_cost_usd` is what its hours have cost so far; null where the
    price of an hour is unknown.
    """

    name: str
    sku: str | None
    created_at: int
    expires_at: int | None
    usd_per_hour: float | None
    running_cost_usd: float | None

    @classmethod
    def of(cls, deployment: types.Deployment, now: float) -> ModelDeployment:
        price = deployment.usd_per_hour
        end = now if deployment.expires_at is None else min(now, deployment.expires_at)
        hours = max(0.0, end - deployment.created_at) / 3600
        return cls(
            name=deployment.name,
            sku=deployment.sku,
            created_at=deployment.created_at,
            expires_at=deployment.expires_at,
            usd_per_hour=price,
            running_cost_usd=None if price is None else round(price * hours, 4),
        )


class TunedModelExtension(BaseModel):
    """`imported`: it was made before this gateway, and stays where it is when it is deleted here."""

    provider: str
    base: str
    job: str | None
    step_number: int | None
    upstream_model: str | None
    deployment: ModelDeployment | None
    imported: bool

    @classmethod
    def of(cls, model: types.Model, project: str) -> TunedModelExtension:
        """A guest is told neither which job of its owner made it nor what it is, or costs, at the provider."""
        own = model.project_id == project
        return cls(
            provider=model.provider,
            base=model.base,
            job=(model.job_id or None) if own else None,
            step_number=model.step_number,
            upstream_model=model.upstream_model if own else None,
            deployment=ModelDeployment.of(model.deployment, time.time()) if own and model.deployment else None,
            imported=model.imported,
        )


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    tuneway: TunedModelExtension | BaseModelExtension

    @classmethod
    def of(cls, model: types.BaseModel | types.Model, project: str) -> Model:
        """As `project` sees it, which may be a guest."""
        if isinstance(model, types.BaseModel):
            return cls(
                id=model.name,
                created=model.created,
                owned_by="system",
                tuneway=BaseModelExtension(provider=model.provider, description=model.description),
            )
        return cls(
            id=model.id,
            created=model.created_at,
            owned_by=organization(model.project_id),
            tuneway=TunedModelExtension.of(model, project),
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
    tuneway: TunedModelExtension | BaseModelExtension

    @classmethod
    def of(cls, model: types.BaseModel | types.Model, project: str) -> AzureModel:
        plain = Model.of(model, project)
        tuned = plain.tuneway if isinstance(plain.tuneway, TunedModelExtension) else None
        return cls(
            id=plain.id,
            created=plain.created,
            created_at=plain.created,
            owned_by=plain.owned_by,
            capabilities=AzureCapabilities(fine_tune=tuned is None),
            model=None if tuned is None else tuned.base,
            fine_tune=None if tuned is None else tuned.job,
            tuneway=plain.tuneway,
        )


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model | AzureModel]
