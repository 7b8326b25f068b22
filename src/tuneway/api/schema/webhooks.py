"""Webhooks and their deliveries on the wire."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from tuneway import types
from tuneway.api.schema.base import Request, Text

EventType = Literal["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]


class CreateWebhookRequest(Request):
    url: Annotated[Text, Field(max_length=2048)]
    events: Annotated[list[EventType], Field(min_length=1, max_length=3)] | None = None
    name: Annotated[str, Field(max_length=256)] = ""


class Webhook(BaseModel):
    object: Literal["tuneway.webhook"] = "tuneway.webhook"
    id: str
    url: str
    name: str
    events: list[EventType]
    created_at: int

    @classmethod
    def of(cls, webhook: types.Webhook) -> Webhook:
        return cls.model_validate(_fields(webhook))


class NewWebhook(Webhook):
    secret: str
    """What deliveries are signed with; shown in this answer only."""

    @classmethod
    def made(cls, webhook: types.Webhook, secret: str) -> NewWebhook:
        return cls.model_validate({**_fields(webhook), "secret": secret})


class WebhookList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Webhook]


class Subject(BaseModel):
    id: str


class WebhookEvent(BaseModel):
    """The body that is sent."""

    object: Literal["event"]
    id: str
    type: EventType | Literal["tuneway.test"]
    created_at: int
    data: Subject


class WebhookDelivery(BaseModel):
    object: Literal["tuneway.webhook.delivery"] = "tuneway.webhook.delivery"
    id: str
    event_id: str
    type: EventType | Literal["tuneway.test"]
    state: Literal["pending", "delivered", "failed"]
    attempts: int
    created_at: int
    next_attempt_at: int | None
    delivered_at: int | None
    last_status: int | None
    last_error: str | None
    data: WebhookEvent

    @classmethod
    def of(cls, delivery: types.Delivery) -> WebhookDelivery:
        return cls.model_validate(
            {
                "id": delivery.id,
                "event_id": delivery.event_id,
                "type": delivery.type,
                "state": delivery.state.value,
                "attempts": delivery.attempts,
                "created_at": delivery.created_at,
                "next_attempt_at": delivery.next_at if delivery.state is types.DeliveryState.PENDING else None,
                "delivered_at": delivery.delivered_at,
                "last_status": delivery.last_status,
                "last_error": delivery.last_error,
                "data": json.loads(delivery.body),
            }
        )


class WebhookDeliveryList(BaseModel):
    object: Literal["list"] = "list"
    data: list[WebhookDelivery]
    has_more: bool


def _fields(webhook: types.Webhook) -> dict[str, object]:
    return {
        "id": webhook.id,
        "url": webhook.url,
        "name": webhook.name,
        "events": list(webhook.events),
        "created_at": webhook.created_at,
    }
