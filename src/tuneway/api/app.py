"""Puts the HTTP side together; `tuneway.app` gives it its services."""

from __future__ import annotations

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import ASGIApp

from tuneway.api import completions as completion_routes
from tuneway.api import files as file_routes
from tuneway.api import graders as grader_routes
from tuneway.api import health
from tuneway.api import imports as import_routes
from tuneway.api import jobs as job_routes
from tuneway.api import keys as key_routes
from tuneway.api import models as model_routes
from tuneway.api import permissions as permission_routes
from tuneway.api import providers as provider_routes
from tuneway.api import uploads as upload_routes
from tuneway.api import webhooks as webhook_routes
from tuneway.api.access import needs
from tuneway.api.chat import ChatCompletions
from tuneway.api.context import ApiSettings, Context, Services
from tuneway.api.description import CHAT_PATH, ERRORS, Described, operation_id
from tuneway.api.edge import Edge
from tuneway.api.errors import on_http_exception, on_invalid_parameters
from tuneway.api.metrics import Metrics
from tuneway.api.relay import RelayRoutes
from tuneway.types import Scope


def build(services: Services, settings: ApiSettings) -> ASGIApp:
    """The ASGI app. It starts nothing and keeps nothing open: it has no lifespan of its own.

    What a service raises besides `tuneway.errors` becomes a 500 and goes to the log.
    """
    metrics = Metrics(settings.version)
    relay = None if services.relay is None else RelayRoutes(services.relay, services.chat, services.models, settings)
    app = Described(
        title="Tuneway",
        version=settings.version,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(Edge, keys=services.keys, allowed_hosts=settings.allowed_hosts, metrics=metrics, relay=relay)
        ],
        exception_handlers={HTTPException: on_http_exception, RequestValidationError: on_invalid_parameters},
        generate_unique_id_function=operation_id,
        responses=ERRORS,
    )
    app.auth = settings.auth
    app.state.context = Context(services, metrics, settings)
    tune, chat_or_read = needs(Scope.TUNE, to_read=Scope.READ), needs(Scope.CHAT, to_read=Scope.READ)
    for router, scope in (
        (file_routes.router, tune),
        (file_routes.extensions, tune),
        (upload_routes.router, tune),
        (job_routes.router, tune),
        (job_routes.extensions, tune),
        (permission_routes.router, needs(Scope.ADMIN)),
        (grader_routes.router, tune),
        (model_routes.router, tune),
        (completion_routes.router, chat_or_read),
        (key_routes.router, needs(Scope.ADMIN)),
        (webhook_routes.router, needs(Scope.ADMIN)),
        (provider_routes.router, needs(Scope.ADMIN, to_read=Scope.READ)),
        (import_routes.router, needs(Scope.ADMIN)),
    ):
        app.include_router(router, prefix="/v1", dependencies=[scope])
    app.include_router(health.router)
    chat = ChatCompletions(services.chat, services.models, limit=settings.max_chat_bytes, streams=metrics.chat_streams)
    app.router.routes.append(Route(CHAT_PATH, chat, methods=["POST"], name="create_chat_completion"))
    return app
