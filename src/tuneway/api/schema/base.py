"""What the wire models of all resources share.

Wire models convert to and from `types` by named methods; their names are those of OpenAI's API description. Requests
are strict: an unknown field, or a value of another type, is refused, never dropped or converted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import models_json_schema

from tuneway.api.errors import explain


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


Text = Annotated[str, Field(min_length=1)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]

_REFERENCE = "#/components/schemas/{model}"
_bodies: list[type[Request]] = []

M = TypeVar("M", bound=Request)


def absent() -> Any:
    """The default of a field that may be left out but not be null, and that is None then."""
    return Field(default=None, json_schema_extra=_without_default)


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def parse(model: type[M], body: Mapping[str, Any]) -> M:
    """`body` as `model`. Raises InvalidRequest that names the first field at fault."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise explain(error.errors(include_url=False)) from None


def body(model: type[Request], *, required: bool = True) -> dict[str, Any]:
    """What an operation that reads `model` by itself adds to its OpenAPI description; see `definitions`."""
    _bodies.append(model)
    reference = {"$ref": _REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": reference}}}}


METADATA_FILTER: dict[str, Any] = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "explode": True,
    "description": "`metadata[key]=value`: only those with these pairs. `metadata=null`: only those without any.",
    "schema": {"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 16},
}
IDEMPOTENCY_KEY: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key within a day, with the same body, gives the first result again.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}


def definitions() -> dict[str, Any]:
    """The JSON schemas of the requests that operations read by themselves, by name."""
    _, schema = models_json_schema([(model, "validation") for model in _bodies], ref_template=_REFERENCE)
    found: dict[str, Any] = schema["$defs"]
    return found


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    error: ErrorBody


class Deleted(BaseModel):
    id: str
    object: str
    deleted: Literal[True] = True


def organization(project: str) -> str:
    return f"org-{project}"


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
