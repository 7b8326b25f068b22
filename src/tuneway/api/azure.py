"""Azure's forms of a URL are other names of the same routes: `rewrite` turns each into OpenAI's.

Measured with the `openai` package's AzureOpenAI (3.3.1): `/openai/…?api-version=`, `/openai/v1/…`, and chat at
`/openai[/v1]/deployments/{name}/chat/completions`, the name one percent-encoded segment.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qs, quote, unquote

from starlette.types import Scope

from tuneway.api.dialect import ORIGINAL_PATH
from tuneway.errors import UnknownRoute

DEPLOYMENT = "tuneway.deployment"
"""Key, in the ASGI scope, of the model that the path names."""

_FORM = re.compile(r"/openai(?P<v1>/v1)?(?:/deployments/(?P<deployment>[^/]+)(?=/chat/completions$))?(?P<rest>/.*)")

_JOB = re.compile(r"/fine_tuning/jobs/[^/]+")


def rewrite(scope: Scope) -> None:
    """Gives a request in Azure's form OpenAI's path. Raises UnknownRoute where Azure would not know it either."""
    scope[ORIGINAL_PATH] = scope["path"]
    form = _FORM.fullmatch(scope.get("raw_path", b"").decode("latin-1").partition("?")[0])
    if form is None:
        return
    query = parse_qs(scope["query_string"].decode("latin-1"))
    if form["v1"] is None and not query.get("api-version"):
        raise UnknownRoute("Resource not found: this path needs '?api-version=', as in '?api-version=2024-10-21'.")
    if form["deployment"] is not None:
        scope[DEPLOYMENT] = unquote(form["deployment"])
    rest = form["rest"]
    if rest == "/files/import" or (scope["method"] == "DELETE" and _JOB.fullmatch(rest)):
        # OpenAI has neither; there they are extensions, which have paths of their own.
        rest = "/tuneway" + rest.replace("/fine_tuning", "")
    scope["path"] = unquote("/v1" + rest)
    scope["raw_path"] = b"/v1" + rest.encode("latin-1")


def location(scope: Scope, new_id: str) -> str:
    """The URL of what a POST has made, in the form in which the client asked."""
    collection = scope[ORIGINAL_PATH].removesuffix("/import").replace("/tuneway/", "/")
    query = scope["query_string"].decode("latin-1")
    return f"{quote(collection)}/{new_id}{'?' if query else ''}{query}"
