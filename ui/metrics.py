"""Where requests are recorded: one line of JSON each in a log, and numbers for Prometheus."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from ui.operations import Status


def recorder(log: TextIO | None, metrics: Metrics | None) -> Callable[[dict[str, Any]], None] | None:
    """The function that records a request in the log and in the metrics; None where there is neither."""
    if log is None and metrics is None:
        return None

    def record(request: dict[str, Any]) -> None:
        if metrics is not None:
            metrics.count(request)
        if log is not None:
            print(json.dumps(request), file=log, flush=True)

    return record


def open_log(name: str | None) -> TextIO | None:
    """Opens the file of this name to append to it; ``-`` is the standard output, and None is no log."""
    if name is None or name == "-":
        return sys.stdout if name else None
    return Path(name).open("a", encoding="utf-8")


class Metrics:
    """Numbers for Prometheus, served at a port of their own that strangers need not reach."""

    def __init__(self, status: Status, host: str, port: int) -> None:
        """Raises ImportError without prometheus-client, and OSError for a port that is taken."""
        import prometheus_client as prometheus

        registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        self.requests = prometheus.Counter("pem_requests", "Requests", ["route", "status"], registry=registry)
        self.seconds = prometheus.Histogram(
            "pem_request_seconds",
            "Time of a request, streams included",
            ["route"],
            registry=registry,
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
        )
        registry.register(_Now(status))
        self.server, _ = prometheus.start_http_server(port, host, registry)

    def count(self, request: dict[str, Any]) -> None:
        """Counts a finished request and its time."""
        self.requests.labels(request["route"], request["status"]).inc()
        self.seconds.labels(request["route"]).observe(request["ms"] / 1000)


class _Now:
    """Numbers that are read when Prometheus asks for them."""

    def __init__(self, status: Status) -> None:
        self.status = status

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        yield GaugeMetricFamily("pem_ready", "Whether photos are taken", value=self.status.is_ready)
        page, engine = self.status.page, self.status.engine
        if page is not None:
            waiting = GaugeMetricFamily("pem_waiting", "Events that wait their turn", labels=["queue"])
            for name, events in page._queue.event_queue_per_concurrency_id.items():
                waiting.add_metric([str(name)], len(events.queue))
            yield waiting
        if engine is not None:
            yield GaugeMetricFamily("pem_places_taken", "Places of the gate", value=engine.gate.inside)
            yield CounterMetricFamily("pem_photos", "Photos that the network ran on", value=engine.num_runs)
            seconds = CounterMetricFamily("pem_photo_seconds", "Time by stage", labels=["stage"])
            for stage, ms in dict(engine.run_ms).items():
                seconds.add_metric([stage], ms / 1000)
            yield seconds
