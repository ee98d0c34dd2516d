"""Where requests are recorded: one line of JSON each in a log, and numbers for Prometheus."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ui.operations import Record, Status


def open_log(name: str) -> Record:
    """Returns the function that appends a request to the file of this name; ``-`` is the standard output."""
    log = sys.stdout if name == "-" else Path(name).open("a", encoding="utf-8")
    return lambda request: print(json.dumps(request), file=log, flush=True)


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
        self.status = status
        registry.register(self)
        self.server, _ = prometheus.start_http_server(port, host, registry)

    def count(self, request: dict[str, Any]) -> None:
        """Counts a finished request and its time."""
        self.requests.labels(request["route"], request["status"]).inc()
        self.seconds.labels(request["route"]).observe(request["ms"] / 1000)

    def collect(self) -> Iterator[Any]:
        """The numbers that are read when Prometheus asks for them."""
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
