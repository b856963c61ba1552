"""Prometheus metrics of deliveries, by task: extra ``[prometheus]``.

In a worker with a prefork pool the figures are made in the pool's processes. Set
``PROMETHEUS_MULTIPROC_DIR``, as prometheus_client wants it for several processes, and serve them
from the parent::

    from celery.signals import worker_init
    from celery_idempotent.ops import metrics

    @worker_init.connect
    def serve(**kwargs):
        metrics.install(port=9808)
"""

from __future__ import annotations

import os
from typing import Any

from celery_idempotent.observers import Observation, observe

__all__ = ["Metrics", "install"]

try:
    import prometheus_client
    from prometheus_client import multiprocess
except ImportError as exc:  # pragma: no cover
    raise ImportError(
        "metrics need prometheus_client: pip install celery-idempotent[prometheus]"
    ) from exc

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

#: Which counter an observation counts in.
_COUNTED = {
    "claimed": ("executions", "Bodies that were run under a claim."),
    "deduplicated": ("replays", "Deliveries that were answered with a stored outcome."),
    "waiting": ("waits", "Deliveries that were put back to come again."),
    "mismatch": ("mismatches", "Calls that brought a key with other arguments."),
    "interrupted": ("interruptions", "Runs that were cut off."),
    "lost": ("lost_claims", "Runs that lost their key before they ended."),
    "store away": ("store_errors", "Deliveries that found the store away."),
}
_ALSO = {"answered again": "deduplicated"}
#: What shadow mode reports instead of doing it.
_WOULD = frozenset(("deduplicated", "waiting", "mismatch", "unknown", "superseded"))


class Metrics:
    """The counters and histograms of one registry; an observer of deliveries."""

    def __init__(self, registry: Any = None) -> None:
        registry = prometheus_client.REGISTRY if registry is None else registry
        self._counters = {
            what: prometheus_client.Counter(
                f"celery_idempotency_{name}", text, ["task"], registry=registry
            )
            for what, (name, text) in _COUNTED.items()
        }
        self._shadow = prometheus_client.Counter(
            "celery_idempotency_shadow",
            "Deliveries in shadow mode that would not have run.",
            ["task", "outcome"],
            registry=registry,
        )
        self._latency = {
            what: prometheus_client.Histogram(
                f"celery_idempotency_{what}_seconds",
                f"How long the store took to {what} a key.",
                ["task"],
                buckets=_SECONDS,
                registry=registry,
            )
            for what in ("claim", "complete")
        }

    def __call__(self, seen: Observation) -> None:
        """Count one observation."""
        latency = self._latency.get(seen.what)
        if latency is not None:
            latency.labels(seen.task).observe(seen.details["seconds"])
            return
        what = _ALSO.get(seen.what, seen.what)
        if seen.details.get("shadow") and what in _WOULD:
            self._shadow.labels(seen.task, what).inc()
            return
        counter = self._counters.get(what)
        if counter is not None:
            counter.labels(seen.task).inc()
        if seen.what == "claimed" and seen.details.get("interruptions"):
            # The run that it takes over from could not count itself.
            self._counters["interrupted"].labels(seen.task).inc()


_installed: Metrics | None = None


def install(registry: Any = None, port: int | None = None, address: str = "127.0.0.1") -> Metrics:
    """Count from now on, in this process and those that it forks.

    Args:
        registry: where the metrics go; prometheus_client's own by default.
        port: serve them over HTTP on this port of ``address``, those of all of the worker's
            processes if ``PROMETHEUS_MULTIPROC_DIR`` is set.
    """
    global _installed
    if _installed is None or registry is not None:
        _installed = Metrics(registry)
        observe(_installed)
    if port is not None:
        served = registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            served = prometheus_client.CollectorRegistry()
            collector: Any = multiprocess.MultiProcessCollector  # it has no types
            collector(served)
        served = prometheus_client.REGISTRY if served is None else served
        prometheus_client.start_http_server(port, addr=address, registry=served)
    return _installed
