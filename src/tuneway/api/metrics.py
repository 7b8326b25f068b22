"""What `/metrics` shows, in a registry of its own, so that two gateways in one process do not share numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from tuneway.types import JobStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    def __init__(self, version: str) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tuneway_http_requests", "Answered requests.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "tuneway_http_request_seconds",
            "Seconds until the last byte of the answer.",
            ["route"],
            registry=self._registry,
        )
        self.chat_streams = Gauge(
            "tuneway_chat_streams_open", "Chat requests that are being answered.", registry=self._registry
        )
        Info("tuneway_build", "The gateway's version.", registry=self._registry).info({"version": version})

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts a request. `route` is a handler's name and `method` a known one: never what a client made up."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def render(self, jobs: Mapping[str, int]) -> bytes:
        """The text form, with `jobs`, the number of jobs by status; a status that is not in it has none."""
        counts = CollectorRegistry()
        counts.register(_JobCounts(jobs))
        return generate_latest(self._registry) + generate_latest(counts)


class _JobCounts(Collector):
    def __init__(self, jobs: Mapping[str, int]) -> None:
        self._jobs = jobs

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("tuneway_jobs", "Jobs by status.", labels=["status"])
        for status in JobStatus:
            family.add_metric([status.value], self._jobs.get(status.value, 0))
        yield family
