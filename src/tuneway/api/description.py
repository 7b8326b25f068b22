"""The API's description, `/openapi.json`: what FastAPI finds out, and what the routes that read by themselves take."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from tuneway.api.schema import chat
from tuneway.api.schema.base import ErrorResponse, definitions

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
            for path in ("/healthz", "/readyz"):
                document["paths"][path]["get"]["security"] = []
            self.openapi_schema = document
        return self.openapi_schema


def operation_id(route: APIRoute) -> str:
    """The function's name: it is the operation's."""
    return route.name
