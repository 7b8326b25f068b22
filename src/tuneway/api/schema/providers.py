"""Provider accounts on the wire: names of their secrets, never a secret."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from tuneway import types
from tuneway.accounts import LIMITS, Shown, ShownKind
from tuneway.api.schema.base import Request, Text, absent, parse
from tuneway.errors import InvalidRequest
from tuneway.settings import ACCOUNT_NAME

_OPTION_NAME = re.compile("[a-z][a-z0-9_]{0,29}")
_FIELDS = ("options", "secrets")


class CreateProviderRequest(Request):
    """`kind` is the name where it is not given. `GET /v1/tuneway/providers/kinds` has the options and secrets."""

    name: Annotated[Text, Field(json_schema_extra={"pattern": f"^{ACCOUNT_NAME}$"})]
    kind: Annotated[Text, Field(max_length=64)] = absent()
    options: Annotated[dict[str, Annotated[str, Field(max_length=2048)]], Field(max_length=64)] = absent()
    secrets: Annotated[dict[str, Annotated[str, Field(min_length=1, max_length=16384)]], Field(max_length=16)] = (
        absent()
    )

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> CreateProviderRequest:
        """Raises InvalidRequest that names the field, and repeats nothing that may be a secret in the wrong place."""
        for field in _FIELDS:
            given = body.get(field)
            if isinstance(given, dict) and not all(_OPTION_NAME.fullmatch(name) for name in given):
                raise InvalidRequest(
                    f"Invalid '{field}': a name in it is none. Names are small letters, digits and '_', at most 30.",
                    param=field,
                    code="invalid_value",
                )
        return parse(cls, body)

    def account(self) -> types.Account:
        return types.Account(self.name, self.kind or self.name, self.options or {})


class ProviderCapabilities(BaseModel):
    """What jobs may ask for. `options` are the provider's own fields; `refused_features` are what training data must
    not use.
    """

    methods: list[types.Method]
    seed: bool
    suffix: bool
    metadata: bool
    validation_file: bool
    pause: bool
    learning_rate: bool
    options: list[str]
    refused_features: list[str]

    @classmethod
    def of(cls, shown: Shown | ShownKind) -> ProviderCapabilities | None:
        can = shown.capabilities
        if can is None:
            return None
        return cls(
            methods=sorted(can.methods),
            seed=can.seed,
            suffix=can.suffix,
            metadata=can.metadata,
            validation_file=can.validation_file,
            pause=can.pause,
            learning_rate=can.learning_rate,
            options=sorted(can.options),
            refused_features=sorted(can.refused_features),
        )


class ProviderKind(BaseModel):
    """`options` and `secrets` by name, each with what it is for; `capabilities` are null where the options decide."""

    object: Literal["tuneway.provider.kind"] = "tuneway.provider.kind"
    name: str
    options: dict[str, str]
    secrets: dict[str, str]
    capabilities: ProviderCapabilities | None

    @classmethod
    def of(cls, kind: ShownKind) -> ProviderKind:
        return cls(
            name=kind.name,
            options=dict(kind.options),
            secrets=dict(kind.secrets),
            capabilities=ProviderCapabilities.of(kind),
        )


class ProviderKindList(BaseModel):
    """`limits` are options that every kind has."""

    object: Literal["list"] = "list"
    data: list[ProviderKind]
    has_more: Literal[False] = False
    limits: dict[str, str] = dict(LIMITS)


class ProviderLine(BaseModel):
    """How the requests to the account are doing, since this gateway's start. `answered` counts them by outcome."""

    circuit: types.CircuitState
    under_way: int
    concurrency: int
    timeout_seconds: float
    answered: dict[str, int]
    failures_in_a_row: int
    resting_until: int | None
    last_error: str | None

    @classmethod
    def of(cls, line: types.LineState) -> ProviderLine:
        return cls(
            circuit=line.circuit,
            under_way=line.under_way,
            concurrency=line.concurrency,
            timeout_seconds=line.timeout_seconds,
            answered=dict(line.answered),
            failures_in_a_row=line.failures_in_a_row,
            resting_until=line.resting_until,
            last_error=line.last_error,
        )


class Provider(BaseModel):
    """`origin` is `settings` (tuneway.toml) or `store` (added to a running gateway); `secrets` are their names."""

    object: Literal["tuneway.provider"] = "tuneway.provider"
    name: str
    kind: str
    origin: Literal["settings", "store"]
    options: dict[str, str]
    secrets: list[str]
    capabilities: ProviderCapabilities | None
    line: ProviderLine
    unended_jobs: int
    created_at: int | None

    @classmethod
    def of(cls, shown: Shown) -> Provider:
        account = shown.account
        return cls(
            name=account.name,
            kind=account.kind,
            origin="store" if account.origin == "store" else "settings",
            options=dict(account.options),
            secrets=list(shown.secrets),
            capabilities=ProviderCapabilities.of(shown),
            line=ProviderLine.of(shown.line),
            unended_jobs=shown.unended_jobs,
            created_at=account.created_at or None,
        )


class ProviderList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Provider]
    has_more: Literal[False] = False


class ProviderCheck(BaseModel):
    """The provider has answered."""

    ok: Literal[True] = True
