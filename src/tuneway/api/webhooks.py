"""`/v1/tuneway/webhooks`: where the ends of a project's jobs are announced."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request

from tuneway.api.body import read_json, read_nothing
from tuneway.api.context import Project, Sender, Served
from tuneway.api.schema.base import Deleted, body, parse
from tuneway.api.schema.webhooks import (
    CreateWebhookRequest,
    NewWebhook,
    Webhook,
    WebhookDelivery,
    WebhookDeliveryList,
    WebhookList,
)
from tuneway.types import DeliveryState
from tuneway.webhooks import EVENTS

router = APIRouter(prefix="/tuneway/webhooks", tags=["Tuneway"])


@router.post("", openapi_extra=body(CreateWebhookRequest))
async def create_webhook(request: Request, served: Served, project: Project, origin: Sender) -> NewWebhook:
    asked = parse(CreateWebhookRequest, await read_json(request, served.settings.max_json_bytes))
    made = await served.services.webhooks.create(project, asked.url, asked.events or EVENTS, asked.name, origin)
    return NewWebhook.made(*made)


@router.get("")
async def list_webhooks(served: Served, project: Project) -> WebhookList:
    return WebhookList(data=[Webhook.of(webhook) for webhook in await served.services.webhooks.list(project)])


@router.get("/{webhook_id}")
async def retrieve_webhook(webhook_id: str, served: Served, project: Project) -> Webhook:
    return Webhook.of(await served.services.webhooks.get(project, webhook_id))


@router.delete("/{webhook_id}")
async def delete_webhook(webhook_id: str, served: Served, project: Project) -> Deleted:
    await served.services.webhooks.delete(project, webhook_id)
    return Deleted(id=webhook_id, object="tuneway.webhook")


@router.get("/{webhook_id}/deliveries")
async def list_webhook_deliveries(
    webhook_id: str,
    served: Served,
    project: Project,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    state: Literal["pending", "delivered", "failed"] | None = None,
) -> WebhookDeliveryList:
    wanted = None if state is None else DeliveryState(state)
    page = await served.services.webhooks.deliveries(project, webhook_id, after=after, limit=limit, state=wanted)
    return WebhookDeliveryList(data=[WebhookDelivery.of(one) for one in page.data], has_more=page.has_more)


@router.post("/{webhook_id}/test")
async def test_webhook(webhook_id: str, request: Request, served: Served, project: Project) -> WebhookDelivery:
    await read_nothing(request, served.settings.max_json_bytes)
    return WebhookDelivery.of(await served.services.webhooks.test(project, webhook_id))
