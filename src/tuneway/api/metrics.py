"""What `/metrics` shows, in a registry of its own, so that two gateways in one process do not share numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tuneway.types import CircuitState, JobStatus, LineState

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

    def render(self, jobs: Mapping[str, int], lines: Iterable[tuple[str, LineState]]) -> bytes:
        """The text form, with `jobs`, the number of jobs by status (one that is not in it has none), and the lines to
        the provider accounts by name.
        """
        counts = CollectorRegistry()
        counts.register(_JobCounts(jobs))
        counts.register(_Lines(list(lines)))
        return generate_latest(self._registry) + generate_latest(counts)


class _JobCounts(Collector):
    def __init__(self, jobs: Mapping[str, int]) -> None:
        self._jobs = jobs

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("tuneway_jobs", "Jobs by status.", labels=["status"])
        for status in JobStatus:
            family.add_metric([status.value], self._jobs.get(status.value, 0))
        yield family


class _Lines(Collector):
    def __init__(self, lines: Sequence[tuple[str, LineState]]) -> None:
        self._lines = lines

    def collect(self) -> Iterator[Metric]:
        circuit = GaugeMetricFamily(
            "tuneway_provider_circuit",
            "1 for the state of the circuit to a provider account, 0 for the others.",
            labels=["provider", "state"],
        )
        requests = CounterMetricFamily(
            "tuneway_provider_requests", "Requests to a provider account, by outcome.", labels=["provider", "outcome"]
        )
        under_way = GaugeMetricFamily(
            "tuneway_provider_under_way",
            "Requests to a provider account that are not answered yet.",
            labels=["provider"],
        )
        concurrency = GaugeMetricFamily(
            "tuneway_provider_concurrency_limit", "Requests to a provider account at a time.", labels=["provider"]
        )
        timeout = GaugeMetricFamily(
            "tuneway_provider_timeout_seconds", "Time-out of a request that transfers no file.", labels=["provider"]
        )
        for name, line in self._lines:
            for state in CircuitState:
                circuit.add_metric([name, state.value], line.circuit is state)
            for outcome, number in sorted(line.answered.items()):
                requests.add_metric([name, outcome], number)
            under_way.add_metric([name], line.under_way)
            concurrency.add_metric([name], line.concurrency)
            timeout.add_metric([name], line.timeout_seconds)
        yield from (circuit, requests, under_way, concurrency, timeout)
