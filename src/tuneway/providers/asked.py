"""A request to create a job, taken apart for vendors whose own request has another shape than OpenAI's.

What such a vendor could not carry is refused here, by the name of the field; its file only says where each value goes.
Their jobs know neither "auto" nor a multiplier of the learning rate: a rate is absolute, and no rule turns one into the
other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneway.errors import InvalidRequest
from tuneway.providers.shapes import unsupported
from tuneway.providers.vendor import Json, Vendor, method_of
from tuneway.types import AUTO, Method

EPOCHS = 3
"""Where "auto" is asked for, or nothing: what OpenAI takes for most files."""

PURPOSE = "fine-tune"

_FIELDS = frozenset(
    {
        "model",
        "training_file",
        "validation_file",
        "suffix",
        "seed",
        "metadata",
        "method",
        "hyperparameters",
        "integrations",
        "tuneway",
    }
)
_OPTIONAL = ("seed", "suffix", "validation_file", "metadata", "integrations")
"""Fields that a vendor's capabilities say something about."""
_NUMBERS = ("n_epochs", "batch_size", "learning_rate_multiplier")


@dataclass(frozen=True, slots=True)
class Asked:
    """None leaves a value to the vendor. `key` is the gateway's own of the job, for vendors that take chosen ids."""

    model: str
    training_file: str
    method: Method
    n_epochs: int
    batch_size: int | None
    """In examples."""
    beta: float | None
    learning_rate: float | None
    validation_file: str | None
    suffix: str | None
    seed: int | None
    options: Json
    key: str | None


def taken_apart(body: Json, vendor: Vendor) -> Asked:
    """Raises InvalidRequest that names the field which is wrong, or which the vendor does not take."""
    can = vendor.capabilities
    for name in body:
        if name not in _FIELDS:
            raise unsupported(vendor.kind, name)
    for name in _OPTIONAL:
        if body.get(name) not in (None, [], {}) and not getattr(can, name):
            raise unsupported(vendor.kind, name)
    method = _method(body, vendor)
    numbers = _numbers(body, method, vendor)
    extension = _object(body.get("tuneway"), "tuneway")
    options = dict(_object(extension.get("options"), "tuneway.options"))
    for name in options:
        if name not in can.options:
            raise unsupported(vendor.kind, f"tuneway.options.{name}")
    return Asked(
        model=_text(body, "model"),
        training_file=_text(body, "training_file"),
        method=method,
        n_epochs=numbers.get("n_epochs", EPOCHS),
        batch_size=numbers.get("batch_size"),
        beta=numbers.get("beta"),
        learning_rate=_number(extension.get("learning_rate"), "tuneway.learning_rate", whole=False),
        validation_file=body.get("validation_file") or None,
        suffix=body.get("suffix") or None,
        seed=body.get("seed"),
        options=options,
        key=extension.get("key"),
    )


def only_for(kind: str, param: str, what: str) -> InvalidRequest:
    """A field that the vendor has, and not in such a job."""
    return InvalidRequest(
        f"The provider '{kind}' takes '{param}' for {what} only. Remove it.", param=param, code="unsupported_parameter"
    )


def _method(body: Json, vendor: Vendor) -> Method:
    asked = _object(body.get("method"), "method")
    kind = asked.get("type", Method.SUPERVISED.value)
    if not isinstance(kind, str) or kind not in set(Method) or Method(kind) not in vendor.capabilities.methods:
        raise unsupported(vendor.kind, "method.type", str(kind)[:64])
    for name, value in asked.items():
        if name not in ("type", kind) and value is not None:
            raise unsupported(vendor.kind, f"method.{name}")
    for name, value in _object(asked.get(kind), f"method.{kind}").items():
        if name != "hyperparameters" and value is not None:
            raise unsupported(vendor.kind, f"method.{kind}.{name}")
    return method_of(body)


def _numbers(body: Json, method: Method, vendor: Vendor) -> Json:
    """Of both places where hyperparameters may stand; without those that are "auto"."""
    known = (*_NUMBERS, "beta") if method is Method.DPO else _NUMBERS
    own = _object(_object(body.get("method"), "method").get(method.value), f"method.{method.value}")
    places = {"hyperparameters": body.get("hyperparameters")}
    places[f"method.{method.value}.hyperparameters"] = own.get("hyperparameters")
    found: Json = {}
    for place, given in places.items():
        for name, value in _object(given, place).items():
            param = f"{place}.{name}"
            if name not in known:
                raise unsupported(vendor.kind, param)
            if value is None:
                continue
            if found.setdefault(name, value) != value:
                raise InvalidRequest(
                    f"'{param}' differs from 'hyperparameters.{name}'. Give it once; the first form is deprecated.",
                    param=param,
                    code="invalid_value",
                )
            if value == AUTO:
                continue
            if name == "learning_rate_multiplier":
                raise InvalidRequest(
                    f"The provider '{vendor.kind}' takes an absolute learning rate, and no rule turns a multiplier "
                    "into one. Send the rate as 'tuneway': {'learning_rate': …}.",
                    param=param,
                    code="unsupported_parameter",
                )
            _number(value, param, whole=name != "beta")
    return {name: value for name, value in found.items() if value != AUTO}


def _number(value: Any, param: str, *, whole: bool) -> Any:
    """Raises InvalidRequest unless it is None or a positive number."""
    kinds = (int,) if whole else (int, float)
    if value is not None and (not isinstance(value, kinds) or isinstance(value, bool) or not value > 0):
        expected = "a positive whole number" if whole else "a positive number"
        raise InvalidRequest(f"Invalid '{param}': expected {expected}.", param=param, code="invalid_value")
    return value


def _text(body: Json, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"Invalid '{name}': expected a string.", param=name, code="invalid_type")
    return value


def _object(value: Any, param: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise InvalidRequest(f"Invalid '{param}': expected an object.", param=param, code="invalid_type")
    return value or {}


def check_form(fields: Mapping[str, str], kind: str, *, whole: bool) -> None:
    """Of an upload that is relayed: raises InvalidRequest for a field that cannot be carried. Fields come in any order,
    so only of the `whole` form can it be told that one is missing.
    """
    for name in fields:
        if name != "purpose":
            raise unsupported(kind, name)
    if fields.get("purpose", None if whole else PURPOSE) != PURPOSE:
        raise InvalidRequest(
            f"Files that are passed on to '{kind}' must have the purpose '{PURPOSE}'.",
            param="purpose",
            code="invalid_value",
        )
