"""`/healthz`, `/readyz` and `/metrics`."""

from __future__ import annotations

from fastapi import APIRouter, Response

from tuneway.api.access import needs
from tuneway.api.context import Served
from tuneway.api.metrics import CONTENT_TYPE
from tuneway.errors import NotReady
from tuneway.types import Scope

router = APIRouter(tags=["Operation"])


@router.get("/healthz")
async def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readiness(served: Served) -> dict[str, str]:
    """The gateway takes work; 503 while it starts or stops."""
    if not served.services.ready():
        raise NotReady
    return {"status": "ready"}


@router.get("/metrics", response_class=Response, dependencies=[needs(Scope.ADMIN)])
async def metrics(served: Served) -> Response:
    shown = served.metrics.render(await served.jobs.count_by_status(), served.services.accounts.lines())
    return Response(shown, media_type=CONTENT_TYPE)
