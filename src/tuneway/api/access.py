"""Who asks, and may they: the key that a request brings, and the scopes that routes need."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, Request
from starlette.datastructures import Headers

from tuneway.api.context import principal_of
from tuneway.errors import Forbidden
from tuneway.keys import DEFAULT_PROJECT, PREFIX, allow
from tuneway.types import Scope

FREE = ("/healthz", "/readyz")
"""Paths that need no key. Those that lead nowhere need one: a stranger learns no paths."""

READING = ("GET", "HEAD")


def presented(headers: Headers) -> str | None:
    """The key that a request brings: the first header with a key of ours, else the first with any; None for none.

    Portkey's clients send the gateway's key in a header of their own beside the provider's in `Authorization`, Azure's
    send `api-key`.
    """
    bearer = headers.get("authorization", "")
    scheme, _, token = bearer.partition(" ")
    found = [
        headers.get("x-tuneway-api-key"),
        headers.get("x-portkey-api-key"),
        token.strip() if scheme.lower() == "bearer" else None,
        headers.get("api-key"),
    ]
    keys = [key for key in found if key]
    ours = [key for key in keys if key.startswith(PREFIX)]
    return next(iter(ours or keys), None)


def _operator(request: Request) -> None:
    """Raises Forbidden for a key of another project than the operator's."""
    project = principal_of(request.scope).project
    if project != DEFAULT_PROJECT:
        raise Forbidden(
            f"Provider accounts are the gateway's, and every project uses them: only keys of the project "
            f"{DEFAULT_PROJECT!r} add, check, read and remove them. This one is of {project!r}."
        )


OPERATOR = [Depends(_operator)]
"""Of routes that the operator's project alone may use."""


def gateways_own(headers: Headers) -> str | None:
    """The gateway's key of a relay: it stands in a header of its own, as `Authorization` is the provider's."""
    keys = [key for name in ("x-tuneway-api-key", "x-portkey-api-key") if (key := headers.get(name))]
    return next((key for key in keys if key.startswith(PREFIX)), keys[0] if keys else None)


def needs(scope: Scope, *, to_read: Scope | None = None) -> Any:
    """A dependency of routes, which they run before anything else: Forbidden for a key without the scope.

    On the routes themselves, so that no spelling of a path leads to one past it. `to_read` is the scope of GET.
    """

    def check(request: Request) -> None:
        reading = to_read is not None and request.method in READING
        allow(principal_of(request.scope), to_read if reading and to_read is not None else scope)

    return Depends(check)
