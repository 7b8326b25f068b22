"""Puts the HTTP side together; `tuneway.app` gives it its services."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import ASGIApp

from tuneway.api import files as file_routes
from tuneway.api import health
from tuneway.api import jobs as job_routes
from tuneway.api import models as model_routes
from tuneway.api.chat import ChatCompletions
from tuneway.api.context import ApiSettings, Context, Files, Jobs, Models
from tuneway.api.edge import Edge
from tuneway.api.errors import on_http_exception, on_invalid_parameters
from tuneway.api.metrics import Metrics
from tuneway.api.schema import ErrorResponse, definitions
from tuneway.proxy import Proxy


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        document["components"]["schemas"].update(definitions())
        return document


def build(*, jobs: Jobs, files: Files, models: Models, ready: Callable[[], bool], settings: ApiSettings) -> ASGIApp:
    """The ASGI app. It starts nothing and keeps nothing open: it has no lifespan of its own.

    `ready` is asked by `/readyz`. What a service raises besides `tuneway.errors` becomes a 500 and goes to the log.
    """
    metrics = Metrics(settings.version)
    app = _App(
        title="Tuneway",
        version=settings.version,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[Middleware(Edge, allowed_hosts=settings.allowed_hosts, metrics=metrics)],
        exception_handlers={HTTPException: on_http_exception, RequestValidationError: on_invalid_parameters},
        responses={"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}},
    )
    app.state.context = Context(jobs, files, models, ready, metrics, settings)
    for routes in (file_routes, job_routes, model_routes):
        app.include_router(routes.router, prefix="/v1")
    app.include_router(health.router)
    chat = ChatCompletions(Proxy(models.route), limit=settings.max_chat_bytes, streams=metrics.chat_streams)
    app.router.routes.append(Route("/v1/chat/completions", chat, methods=["POST"], name="create_chat_completion"))
    return app
