"""The models service: what can be tuned, what has been, and where a name's chat requests go.

A name resolves in this order: exact tuned model → `model_map` → base model → `provider:model`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from tuneway.errors import ChatModelNotFound, InvalidRequest, ModelNotFound, ModelNotTunable
from tuneway.providers.base import Provider
from tuneway.store import Store, Tx, permissions
from tuneway.store import models as rows
from tuneway.types import BaseModel, Model, Route


class Models:
    """`providers` in the order of preference: where two have a base of one name, the first one's is meant."""

    def __init__(self, store: Store, providers: Mapping[str, Provider], model_map: Mapping[str, str]) -> None:
        self._store = store
        self._providers = providers
        self._model_map = model_map

    def bases(self) -> Sequence[BaseModel]:
        """Every base model of every provider."""
        return [base for provider in self._providers.values() for base in provider.base_models()]

    def require_provider(self, provider: str, param: str) -> None:
        """Raises InvalidRequest, naming the field or header `param`, for a provider that is not configured."""
        if provider not in self._providers:
            known = ", ".join(self._providers)
            raise InvalidRequest(f"There is no provider {provider[:64]!r} here. Configured: {known}.", param=param)

    def tunable(self, name: str, provider: str | None) -> BaseModel:
        """The base that a job asking for `name` trains, at `provider` where one is given.

        Raises ModelNotTunable with the list of what can be tuned, and InvalidRequest for an unknown provider.
        """
        if provider is not None:
            self.require_provider(provider, "tuneway.provider")
        name = self._model_map.get(name, name)
        bases = [base for base in self.bases() if provider in (None, base.provider)]
        base = _named(bases, name)
        if base is None:
            raise ModelNotTunable(
                f"Model {name} is not available for fine-tuning or does not exist. "
                f"Models that can be tuned here: {', '.join(base.name for base in bases)}."
            )
        return base

    async def list(self, project: str) -> Sequence[BaseModel | Model]:
        """The base models, the names that `model_map` gives a meaning, then the project's tuned ones, newest first."""
        mapped = [self._mapped(name) for name in self._model_map]
        return [*self.bases(), *mapped, *await self._store.read(rows.every, project)]

    async def get(self, project: str, name: str) -> BaseModel | Model:
        """Raises ModelNotFound."""
        found = await self._resolve(project, name)
        if found is None:
            raise ModelNotFound(name)
        exact = isinstance(found, Model) and found.id == name
        return self._mapped(name) if name in self._model_map and not exact else found

    async def delete(self, project: str, name: str) -> None:
        """Deletes a tuned model for good. Raises ModelNotFound, and InvalidRequest for a base model."""
        model = await self._store.write(rows.delete, project, name, int(time.time()))
        if model is None:
            if _named(self.bases(), self._model_map.get(name, name)) is not None:
                raise InvalidRequest(f"{name!r} is a base model; only tuned models can be deleted.", param="model")
            raise ModelNotFound(name)
        await self._providers[model.provider].forget(model)

    async def route(self, project: str, name: str) -> Route:
        """Where chat requests for `name` go; may start what serves it.

        Raises ChatModelNotFound, and EngineUnavailable when it cannot be started.
        """
        found = await self._resolve(project, name)
        if found is None:
            raise ChatModelNotFound(name)
        provider = self._providers[found.provider]
        if isinstance(found, Model):
            return Route(await provider.upstream(found.base, found), found.id)
        return Route(await provider.upstream(found.name, None), found.name)

    def _mapped(self, name: str) -> BaseModel:
        target = self._model_map[name]
        base = _named(self.bases(), target)
        provider, created = ("", 0) if base is None else (base.provider, base.created)
        return BaseModel(name, provider, f"Stands for {target}.", created)

    async def _resolve(self, project: str, name: str) -> BaseModel | Model | None:
        model = await self._store.read(_usable, project, name)
        if model is None and name in self._model_map:
            name = self._model_map[name]
            model = await self._store.read(_usable, project, name)
        return model or _named(self.bases(), name)


def _usable(tx: Tx, project: str, name: str) -> Model | None:
    """The project's own model, or a checkpoint that another one lets it use."""
    found = rows.get(tx, project, name)
    if found is None and (owner := permissions.owner(tx, project, name)) is not None:
        found = rows.get(tx, owner, name)
    return found


def _named(bases: Sequence[BaseModel], name: str) -> BaseModel | None:
    for base in bases:
        if base.name == name:
            return base
    provider, colon, model = name.partition(":")
    for base in bases:
        if colon and (base.provider, base.name) == (provider, model):
            return base
    return None
