"""Which scope a request needs, by its method and path; what is not named here needs `read` or `tune`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.datastructures import Headers

from tuneway.keys import PREFIX
from tuneway.types import Scope

_FREE = {"/healthz", "/readyz"}

_SCOPES: Mapping[re.Pattern[str], Scope] = {
    re.compile(r"/v1/tuneway/(keys|webhooks)(/.*)?"): Scope.ADMIN,
    re.compile(r"/v1/fine_tuning/checkpoints/.*"): Scope.ADMIN,
}
_CHAT = re.compile(r"/v1/chat/completions(/.*)?")


def needed(method: str, path: str) -> Scope | None:
    """None for what everybody may ask. Paths that lead nowhere need a key too: a stranger learns no paths."""
    if path in _FREE:
        return None
    for pattern, scope in _SCOPES.items():
        if pattern.fullmatch(path):
            return scope
    if method in ("GET", "HEAD"):
        return Scope.READ
    return Scope.CHAT if _CHAT.fullmatch(path) else Scope.TUNE


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
