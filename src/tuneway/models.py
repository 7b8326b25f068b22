"""The models service: what can be tuned, what has been, and where a name's chat requests go.

A name resolves in this order: exact tuned model → `model_map` → base model → `provider:model`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tuneway.errors import ChatModelNotFound, InvalidRequest, ModelNotFound, ModelNotTunable, ProviderGone
from tuneway.providers.base import Provider
from tuneway.store import Store, Tx, permissions
from tuneway.store import jobs as job_rows
from tuneway.store import models as rows
from tuneway.types import TERMINAL_STATUSES, BaseModel, Model, Route

_VENDORS_NAME = re.compile(r"[^\x00-\x20\x7f]{1,256}")


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

    async def tunable(self, project: str, name: str, provider: str | None) -> BaseModel:
        """The base that a job asking for `name` trains, at `provider` where one is given.

        A model that was tuned at a vendor is tuned on there, by the vendor's own name of it. Raises ModelNotTunable
        with the list of what can be tuned, and InvalidRequest for an unknown provider.
        """
        if provider is not None:
            self.require_provider(provider, "tuneway.provider")
        tuned = await self._store.read(_usable, project, name)
        if tuned is not None and provider in (None, tuned.provider) and self._any_base(tuned.provider):
            return BaseModel(tuned.upstream_model, tuned.provider, "", tuned.created_at)
        name = self._model_map.get(name, name)
        bases = [base for base in self.bases() if provider in (None, base.provider)]
        base = _named(bases, name) or await self._at_vendor(project, name, provider)
        if base is None:
            raise ModelNotTunable(
                f"Model {name} is not available for fine-tuning or does not exist. "
                f"Models that can be tuned here: {', '.join(base.name for base in _told_apart(bases))}."
            )
        return base

    def _any_base(self, provider: str) -> bool:
        return provider in self._providers and self._providers[provider].capabilities.any_base

    async def _at_vendor(self, project: str, name: str, provider: str | None) -> BaseModel | None:
        """A base that a vendor was named for and may have, though it does not list it.

        Not what another project has tuned there: the account is the gateway's, its models are their projects'.
        """
        account, colon, model = name.partition(":")
        if not (colon and provider in (None, account) and self._any_base(account)):
            account, model = provider or "", name
        if not _VENDORS_NAME.fullmatch(model) or not self._any_base(account):
            return None
        if await self._store.read(rows.belongs_to_others, project, account, model):
            return None
        return BaseModel(model, account, "", 0)

    async def list(self, project: str) -> Sequence[BaseModel | Model]:
        """The base models, the names that `model_map` gives a meaning, then the project's tuned ones, newest first."""
        mapped = [self._mapped(name) for name in self._model_map]
        return [*_told_apart(self.bases()), *mapped, *await self._store.read(rows.every, project)]

    async def get(self, project: str, name: str) -> BaseModel | Model:
        """Raises ModelNotFound."""
        found = await self._resolve(project, name)
        if found is None:
            raise ModelNotFound(name)
        exact = isinstance(found, Model) and found.id == name
        return self._mapped(name) if name in self._model_map and not exact else found

    async def delete(self, project: str, name: str) -> None:
        """Deletes a tuned model for good. Raises ModelNotFound, and InvalidRequest for a base model.

        One at a vendor is deleted there first: where that fails, nothing has changed. Raises ProviderGone where nobody
        can do that any more, and InvalidRequest while the model is being made ready.
        """
        model = await self._store.read(rows.get, project, name)
        provider = None if model is None else self._providers.get(model.provider)
        if model is not None:
            if provider is None:
                raise ProviderGone(model.provider)
            job = await self._store.read(job_rows.get, project, model.job_id)
            if job is not None and job.planned_model == name and job.status not in TERMINAL_STATUSES:
                raise InvalidRequest(
                    f"{name} is being made ready by {job.id}. Cancel the job, or delete the model when it has ended.",
                    param="model",
                    code="conflict",
                )
            if provider.capabilities.remote:
                await provider.forget(model)
        model = await self._store.write(rows.delete, project, name, int(time.time()))
        if model is None:
            if _named(self.bases(), self._model_map.get(name, name)) is not None:
                raise InvalidRequest(f"{name!r} is a base model; only tuned models can be deleted.", param="model")
            raise ModelNotFound(name)
        if provider is not None and not provider.capabilities.remote:
            await provider.forget(model)

    async def route(self, project: str, name: str) -> Route:
        """Where chat requests for `name` go; may start what serves it.

        Raises ChatModelNotFound, and EngineUnavailable when it cannot be started.
        """
        found = await self._resolve(project, name)
        if found is None:
            found = await self._at_vendor(project, self._model_map.get(name, name), None)
        if found is None:
            raise ChatModelNotFound(name)
        provider = self._providers.get(found.provider)
        if provider is None:
            raise ProviderGone(found.provider)
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


def _told_apart(bases: Sequence[BaseModel]) -> Sequence[BaseModel]:
    """Each under a name of its own: where several providers have a base of one name, the first one is meant by it, and
    the others are called `provider:name`.
    """
    shown: dict[str, BaseModel] = {}
    for base in bases:
        name = base.name if base.name not in shown else f"{base.provider}:{base.name}"
        shown[name] = replace(base, name=name)
    return list(shown.values())


def _named(bases: Sequence[BaseModel], name: str) -> BaseModel | None:
    """By its own name, by `provider:name`, or by the name without the date that a vendor's snapshots end with."""
    for base in bases:
        if base.name == name:
            return base
    for base in bases:
        if re.fullmatch(re.escape(name) + r"-\d{4}-\d{2}-\d{2}", base.name):
            return base
    provider, colon, model = name.partition(":")
    for base in bases:
        if colon and base.provider == provider and _named([base], model) is not None:
            return base
    return None
