"""The API's description, `/openapi.json`: what FastAPI finds out, and what the routes that read by themselves take."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from tuneway.api.schema import chat
from tuneway.api.schema.base import ErrorResponse, definitions
from tuneway.webhooks import EVENTS

CHAT_PATH = "/v1/chat/completions"
ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}}
"""What every operation may answer besides its success."""


class Described(FastAPI):
    """`auth`: whether every request needs a key, or may bring one."""

    auth: bool = False

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            components = document.setdefault("components", {})
            components["schemas"] = dict(
                sorted({**components["schemas"], **definitions(), **chat.definitions()}.items())
            )
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}] if self.auth else [{}, {"key": []}]
            errors = {
                status: {
                    "description": "Error",
                    "content": {"application/json": {"schema": chat.reference("ErrorResponse")}},
                }
                for status in map(str, ERRORS)
            }
            document["paths"].setdefault(CHAT_PATH, {})["post"] = chat.operation(errors)
            document["webhooks"] = {event: {"post": _webhook(event)} for event in EVENTS}
            for path in ("/healthz", "/readyz"):
                document["paths"][path]["get"]["security"] = []
            self.openapi_schema = document
        return self.openapi_schema


def _webhook(event: str) -> dict[str, Any]:
    """What a receiver gets; its headers are those of Standard Webhooks."""
    text = {"type": "string"}
    job = {"type": "object", "required": ["id"], "properties": {"id": text}}
    body = {
        "type": "object",
        "required": ["object", "id", "type", "created_at", "data"],
        "properties": {
            "object": {"type": "string", "enum": ["event"]},
            "id": text,
            "type": {"type": "string", "enum": [event]},
            "created_at": {"type": "integer"},
            "data": job,
        },
    }
    names = ("webhook-id", "webhook-timestamp", "webhook-signature")
    return {
        "operationId": event.replace(".", "_"),
        "parameters": [{"name": name, "in": "header", "required": True, "schema": text} for name in names],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"2XX": {"description": "Received. Anything else is sent again."}},
    }


def operation_id(route: APIRoute) -> str:
    """The function's name: it is the operation's."""
    return route.name
