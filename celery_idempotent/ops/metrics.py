"""Prometheus metrics of deliveries, by task, and of what needs a person: extra ``[prometheus]``.

Beside the app::

    from celery_idempotent.ops import metrics

    metrics.install(port=9808)

A worker then serves them; no other process opens the port. In a worker with a prefork pool the
figures are made in the pool's processes: set ``PROMETHEUS_MULTIPROC_DIR``, as prometheus_client
wants it for several processes.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from celery import current_app, signals

from celery_idempotent.errors import IdempotencyError, missing_extra
from celery_idempotent.observers import Observation, observe
from celery_idempotent.ops.lookup import setups
from celery_idempotent.ops.unsettled import unsettled
from celery_idempotent.settings import environment_of
from celery_idempotent.worker.waiters import waiting_messages

__all__ = ["METRICS", "Metric", "Metrics", "Unknown", "Waiting", "install"]

try:
    import prometheus_client
    from prometheus_client import multiprocess
    from prometheus_client.core import GaugeMetricFamily
except ImportError as exc:
    raise missing_extra(exc, "metrics need", "prometheus") from exc

log = logging.getLogger("celery_idempotent")

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_PREFIX: Final = "celery_idempotency_"
#: For how long what the store says of unknown outcomes is kept.
_FRESH_S: Final = 30.0


class Metric(NamedTuple):
    """One metric, as documentation, alert rules and dashboard know it."""

    name: str
    #: ``counter``, ``gauge`` or ``histogram``.
    kind: str
    text: str
    labels: tuple[str, ...] = ("task",)

    @property
    def samples(self) -> tuple[str, ...]:
        """The names that a query uses."""
        if self.kind == "counter":
            return (f"{self.name}_total",)
        if self.kind == "histogram":
            return tuple(f"{self.name}_{end}" for end in ("bucket", "sum", "count"))
        return (self.name,)


#: Which counter an observation counts in, and what that counts.
_COUNTED: Final = {
    "claimed": ("executions", "Bodies that were run under a claim."),
    "deduplicated": ("replays", "Deliveries that were answered with a stored outcome."),
    "waiting": ("waits", "Deliveries that were put back to come again."),
    "refused": ("refusals", "Calls that failed with IdempotencyInProgress."),
    "dropped": ("drops", "Calls that were dropped (idempotency_on_running)."),
    "stopped": ("stopped_calls", "Calls that were not published (idempotency_on_enqueue)."),
    "mismatch": ("mismatches", "Calls that brought a key with other arguments."),
    "failed": ("stored_failures", "Runs whose failure is the key's outcome."),
    "interrupted": ("interruptions", "Runs that took over from one that was cut off."),
    "unknown": ("unknown_outcomes", "Calls that failed with OutcomeUnknown."),
    "lost": ("lost_claims", "Runs that lost their key before they ended."),
    "store away": ("store_errors", "Deliveries that found the store away."),
}
_SHADOW: Final = Metric(
    f"{_PREFIX}shadow",
    "counter",
    "Deliveries in shadow mode that would not have run.",
    ("task", "outcome"),
)
_LATENCY: Final = {
    what: Metric(
        f"{_PREFIX}{what}_seconds", "histogram", f"How long the store took to {what} a key."
    )
    for what in ("claim", "complete")
}
_UNKNOWN: Final = Metric(
    f"{_PREFIX}unknown_records",
    "gauge",
    "Keys whose outcome is unknown now: each needs a person.",
)
_OLDEST: Final = Metric(
    f"{_PREFIX}unknown_oldest_seconds",
    "gauge",
    "For how long the oldest of them has been unknown.",
    (),
)
_WAITERS: Final = Metric(
    f"{_PREFIX}waiters",
    "gauge",
    "Messages that this worker holds until a key is free or answered.",
)
_LONGEST_WAIT: Final = Metric(
    f"{_PREFIX}oldest_wait_seconds",
    "gauge",
    "For how long it has held the oldest of them.",
    (),
)
#: All metrics.
METRICS: Final = (
    *(Metric(_PREFIX + name, "counter", text) for name, text in _COUNTED.values()),
    _SHADOW,
    *_LATENCY.values(),
    _UNKNOWN,
    _OLDEST,
    _WAITERS,
    _LONGEST_WAIT,
)
_ALSO = {"answered again": "deduplicated"}
#: What shadow mode reports instead of doing it.
_WOULD = frozenset(("deduplicated", "waiting", "mismatch", "unknown", "superseded"))


class Metrics:
    """The counters and histograms of one registry; an observer of deliveries."""

    def __init__(self, registry: Any = None) -> None:
        registry = prometheus_client.REGISTRY if registry is None else registry
        self._counters = {
            what: prometheus_client.Counter(_PREFIX + name, text, ["task"], registry=registry)
            for what, (name, text) in _COUNTED.items()
        }
        self._shadow = prometheus_client.Counter(
            _SHADOW.name, _SHADOW.text, _SHADOW.labels, registry=registry
        )
        self._latency = {
            what: prometheus_client.Histogram(
                metric.name, metric.text, metric.labels, buckets=_SECONDS, registry=registry
            )
            for what, metric in _LATENCY.items()
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

    def begin(self, tasks: Iterable[str]) -> None:
        """Show each counter of these tasks at 0: one that begins at 1 has not increased."""
        for task in tasks:
            for counter in self._counters.values():
                counter.labels(task)


class Unknown:
    """A collector of the unknown outcomes of an app.

    The store's list is read when somebody asks, and at most every half a minute. While the store is
    away there are no figures.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._asked = -_FRESH_S
        self._found: list[tuple[str, int]] = []
        self._now_ms = 0

    def describe(self) -> list[Any]:
        """Return nothing: whoever registers it asks no store."""
        return []

    def collect(self) -> Iterator[Any]:
        """Make the gauges."""
        if time.monotonic() - self._asked >= _FRESH_S:
            try:
                environment = environment_of(self._app)
                self._found = [(one.view.task, one.since_ms) for one in unsettled(environment)]
                self._now_ms = environment.store.now_ms()
            except IdempotencyError as exc:
                log.debug("the unknown outcomes could not be counted: %s", exc)
                return
            self._asked = time.monotonic()
        tasks = [task for task, _ in self._found]
        records = GaugeMetricFamily(_UNKNOWN.name, _UNKNOWN.text, labels=_UNKNOWN.labels)
        for task in sorted(set(tasks)):
            records.add_metric([task], tasks.count(task))
        yield records
        ages = [(self._now_ms - since) / 1000 for _, since in self._found]
        yield GaugeMetricFamily(_OLDEST.name, _OLDEST.text, value=max(ages, default=0.0))


class Waiting:
    """A collector of the messages that this worker's parent process holds for keys."""

    def describe(self) -> list[Any]:
        """Return nothing: it is asked for what there is."""
        return []

    def collect(self) -> Iterator[Any]:
        """Make the gauges."""
        held, now = waiting_messages(), time.monotonic()
        tasks = [one.request.name for one in held]
        waiters = GaugeMetricFamily(_WAITERS.name, _WAITERS.text, labels=_WAITERS.labels)
        for task in sorted(set(tasks)):
            waiters.add_metric([task], tasks.count(task))
        yield waiters
        oldest = max((now - one.since for one in held), default=0.0)
        yield GaugeMetricFamily(_LONGEST_WAIT.name, _LONGEST_WAIT.text, value=oldest)


_installed: Metrics | None = None
#: What is to be served once this process is a worker.
_to_serve: list[tuple[Any, int, str, Any]] = []
_is_worker = False


def install(
    registry: Any = None, port: int | None = None, address: str = "127.0.0.1", app: Any = None
) -> Metrics:
    """Count from now on, in this process and those that it forks.

    Args:
        registry: where the metrics go; prometheus_client's own by default.
        port: serve them over HTTP on this port of ``address`` in a worker, those of all of its
            processes if ``PROMETHEUS_MULTIPROC_DIR`` is set. Other processes, such as commands
            and producers, open no port.
        app: whose unknown outcomes are counted there; the current app by default.
    """
    global _installed
    if _installed is None or registry is not None:
        _installed = Metrics(registry)
        observe(_installed)
    if port is not None:
        wanted = (registry, port, address, app)
        if _is_worker:
            _serve(*wanted)
        else:
            _to_serve.append(wanted)
    return _installed


def _serve(registry: Any, port: int, address: str, app: Any) -> None:
    served = registry
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        served = prometheus_client.CollectorRegistry()
        collector: Any = multiprocess.MultiProcessCollector  # it has no types
        collector(served)
    served = prometheus_client.REGISTRY if served is None else served
    served.register(Unknown(app or current_app._get_current_object()))
    served.register(Waiting())
    try:
        prometheus_client.start_http_server(port, addr=address, registry=served)
    except OSError as exc:
        log.error("metrics are not served on port %s: %s", port, exc)


def _on_worker_init(**_: Any) -> None:
    global _is_worker
    _is_worker = True
    while _to_serve:
        _serve(*_to_serve.pop(0))


def _on_worker_ready(sender: Any = None, **_: Any) -> None:
    if _installed is None:
        return
    _installed.begin(task.name for task, _ in setups(sender.app))
    pool = type(getattr(sender, "pool", None)).__module__
    if pool.endswith("prefork") and "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        log.warning(
            "metrics: the pool has processes, and PROMETHEUS_MULTIPROC_DIR is not set: what they "
            "count is served nowhere. Set it to an empty directory before the worker starts"
        )


signals.worker_init.connect(_on_worker_init, weak=False)
signals.worker_ready.connect(_on_worker_ready, weak=False)
