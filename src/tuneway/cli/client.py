"""The way to the gateway: the official `openai` client, and its errors in this command line's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tuneway.cli.exits import Exit, Failure

if TYPE_CHECKING:
    from openai import OpenAI

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@contextmanager
def gateway(url: str | None) -> Iterator[OpenAI]:
    """A client of the gateway at `url` (None: `settings.client_url()`), with the key `settings.client_key()`.

    Inside the block, what the client raises becomes a Failure that says what to do next.
    """
    import openai

    from tuneway import settings

    base_url = url or settings.client_url()
    # A proxy that the environment names is for the outside; it cannot reach this machine's loopback.
    http_client = openai.DefaultHttpxClient(trust_env=False) if urlsplit(base_url).hostname in LOOPBACK else None
    try:
        # A gateway without keys looks at none, but the client insists on one.
        key = settings.client_key() or "none"
        with openai.OpenAI(base_url=base_url, api_key=key, http_client=http_client) as client:
            yield client
    except openai.APIConnectionError as error:
        raise unreachable(base_url) from error
    except openai.APIStatusError as error:
        raise refused(base_url, error.status_code, error.body, str(error)) from error
    except openai.APIError as error:
        # The gateway ended a stream with an error event.
        raise refused(base_url, None, error.body, error.message) from error
    except openai.OpenAIError as error:
        raise Failure(f"The answer of {base_url} cannot be read: {error}", hint="Is this a Tuneway gateway?") from error


def unreachable(base_url: str) -> Failure:
    return Failure(
        f"No gateway answers at {base_url}.",
        hint="`tuneway serve` starts one; --url or TUNEWAY_URL names another.",
        code=Exit.UNREACHABLE,
    )


def refused(base_url: str, status: int | None, body: Any, text: str) -> Failure:
    """The gateway's error object, or, where the answer holds none, its status."""
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return Failure(body["message"], error=body)
    return Failure(
        f"{base_url} answered with {status or 'an error'}: {text[:500]}",
        hint="Is this the address of a Tuneway gateway, with /v1 at its end?",
    )
