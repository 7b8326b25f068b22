"""Gateways with accounts at simulated vendors, and what tests wait for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
from openai.types.fine_tuning import FineTuningJob

from tests.wire.conftest import Gateway, running

PATIENCE = 60
"""Seconds after which something that should have happened is said not to; far above what it takes."""
ENDED = ("succeeded", "failed", "cancelled")


def settings(*accounts: str, more: str = "") -> str:
    """Of a gateway with these accounts, each a TOML table."""
    head = 'default_provider = "fake"\noutbound_hosts = ["127.0.0.1"]\nmax_file_bytes = 1048576\n'
    return head + more + "".join(accounts)


def account(name: str, /, **options: Any) -> str:
    """A table of `providers`; what is looked up often, is looked up at once here."""
    given = {"poll_seconds": 0.1, "settle_seconds": 2, "api_key": "env:VENDOR_KEY", **options}
    rows = "".join(f"{key} = {_toml(value)}\n" for key, value in given.items())
    return f"[providers.{name}]\n{rows}"


@contextmanager
def gateway_of(data: Path, key: str, *accounts: str, secrets: Mapping[str, str] = {}) -> Iterator[Gateway]:
    with running(data, settings(*accounts), secrets={"VENDOR_KEY": key, **secrets}) as gateway:
        yield gateway


def eventually(what: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """What `what` gives once it is true; what is awaited happens in other processes, which cannot tell us."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"it did not happen within {patience} s")


def ended(client: openai.OpenAI, job_id: str) -> FineTuningJob:
    def look() -> FineTuningJob | None:
        job = client.fine_tuning.jobs.retrieve(job_id)
        return job if job.status in ENDED else None

    found: FineTuningJob = eventually(look)
    return found


def succeeded(gateway: Gateway, job_id: str) -> FineTuningJob:
    job = ended(gateway.lenient, job_id)
    assert job.status == "succeeded", (job.error, messages(gateway.lenient, job_id), gateway.log()[-2000:])
    return job


def messages(client: openai.OpenAI, job_id: str) -> list[str]:
    """Of its events, oldest first."""
    return [event.message for event in client.fine_tuning.jobs.list_events(job_id, limit=100)][::-1]


def state(gateway: Gateway, job_id: str) -> dict[str, Any]:
    """What stands in the job's `tuneway`."""
    found: dict[str, Any] = gateway.http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["tuneway"]
    return found


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
