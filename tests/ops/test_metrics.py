"""Metrics: what is counted, who serves it, and rules and dashboard that name only what there is."""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from celery import Celery
from prometheus_client import CollectorRegistry

from celery_idempotent import IdempotentTask
from celery_idempotent.core.keys import Owner
from celery_idempotent.core.record import Record, State
from celery_idempotent.core.verdicts import Claim, Settle
from celery_idempotent.observers import Observation, stop_observing
from celery_idempotent.ops import metrics
from celery_idempotent.ops.metrics import METRICS, Metrics, Unknown, Waiting
from celery_idempotent.settings import environment_of
from celery_idempotent.stores.memory import MemoryStore

ROOT = Path(__file__).parents[2]
RULES = ROOT / "contrib" / "prometheus" / "celery_idempotent.rules.yml"
DASHBOARD = ROOT / "contrib" / "grafana" / "celery_idempotent.json"
SAMPLES = {sample for metric in METRICS for sample in metric.samples}
NAMED = re.compile(r"celery_idempotency_[a-z_]+")


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("shop", set_as_current=False)
    app.conf.update(broker_url="memory://", idempotency_store_url=f"memory://{uuid.uuid4().hex}")

    @app.task(base=IdempotentTask, name="shop.charge", shared=False, idempotency_key="{order}")
    def charge(order: int) -> int:
        return order

    app.finalize()
    yield app
    app.close()


def seen(what: str, **details: Any) -> Observation:
    return Observation(what, "shop.charge", "order:1", "id", None, details)


# --- counters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("unknown", "unknown_outcomes"),
        ("refused", "refusals"),
        ("stopped", "stopped_calls"),
        ("dropped", "drops"),
        ("failed", "stored_failures"),
        ("interrupted", "interruptions"),
        ("deduplicated", "replays"),
        ("answered again", "replays"),
    ],
)
def test_each_thing_that_becomes_of_a_delivery_is_counted(
    registry: CollectorRegistry, what: str, name: str
) -> None:
    """By its task."""
    Metrics(registry)(seen(what, interruptions=1))
    labels = {"task": "shop.charge"}
    assert registry.get_sample_value(f"celery_idempotency_{name}_total", labels) == 1


def test_a_worker_that_starts_shows_its_counters_at_zero(
    registry: CollectorRegistry, app: Celery, served: list[int]
) -> None:
    """For Prometheus a counter that begins at 1 has not increased: a rule would miss one event."""
    # Given
    installed = metrics.install(registry)
    # When
    metrics._on_worker_ready(SimpleNamespace(app=app, pool=None))
    stop_observing(installed)
    # Then
    counters = [it.samples[0] for it in METRICS if it.kind == "counter" and len(it.labels) == 1]
    labels = {"task": "shop.charge"}
    assert {name: registry.get_sample_value(name, labels) for name in counters} == dict.fromkeys(
        counters, 0
    )


def test_the_list_of_metrics_is_what_is_exported(registry: CollectorRegistry, app: Celery) -> None:
    """No more and no less: names, kinds and texts."""
    # Given
    Metrics(registry)
    registry.register(Unknown(app))
    registry.register(Waiting())
    # When
    exported = {family.name: (family.type, family.documentation) for family in registry.collect()}
    # Then
    assert exported == {metric.name: (metric.kind, metric.text) for metric in METRICS}


# --- unknown outcomes ----------------------------------------------------------------------------


def make_unknown(app: Celery, key: str) -> str:
    """A record whose run was cut off, and what the journal says of that."""
    environment = environment_of(app)
    name = f"idempotent:{{shop.charge:{key}}}"
    asked = Record(State.RUNNING, 0, owner=Owner("first").pack(), nonce=b"nonce")
    verdict: Any = environment.store.claim(name, Claim(asked, 30_000, 60_000))
    held = asked._replace(token=verdict.token, state=State.UNKNOWN)
    environment.store.settle(name, Settle(held, 0, 60_000))
    environment.journal.write("unknown", name, "shop.charge", "second", original="first")
    return name


def gauges(app: Celery) -> dict[str, float]:
    families = Unknown(app).collect()
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_unknown_records_are_gauged_until_they_are_settled(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many there are, and for how long the oldest has been."""
    # Given
    now = [1_767_258_000_000_000]
    store = MemoryStore(lambda: now[0])
    monkeypatch.setitem(MemoryStore._shared, app.conf.idempotency_store_url, store)
    assert gauges(app) == {"celery_idempotency_unknown_oldest_seconds": 0}
    name = make_unknown(app, "1")
    now[0] += 40_000_000
    make_unknown(app, "2")
    # Then
    assert gauges(app) == {
        "celery_idempotency_unknown_records": 2,
        "celery_idempotency_unknown_oldest_seconds": 40,
    }
    store.forget(name, 1000)
    assert gauges(app)["celery_idempotency_unknown_records"] == 1


def test_a_store_that_is_away_has_no_gauges(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """And hurts no scrape."""
    app.conf.idempotency_store_url = "redis://localhost:1/0"
    assert gauges(app) == {}


# --- who serves ----------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ports that are opened."""
    ports: list[int] = []
    monkeypatch.setattr(
        metrics.prometheus_client, "start_http_server", lambda port, **_: ports.append(port)
    )
    monkeypatch.setattr(metrics, "_installed", None)
    monkeypatch.setattr(metrics, "_to_serve", [])
    monkeypatch.setattr(metrics, "_is_worker", False)
    return ports


def test_only_a_worker_opens_the_port(
    served: list[int], registry: CollectorRegistry, app: Celery
) -> None:
    """A command that imports the app's module, or a producer, does not."""
    installed = metrics.install(registry, port=9808, app=app)
    try:
        assert served == []
        metrics._on_worker_init()
        assert served == [9808]
        metrics.install(CollectorRegistry(), port=9809, app=app)
        assert served == [9808, 9809]
    finally:
        stop_observing(installed)


def test_a_taken_port_stops_no_worker(
    served: list[int],
    registry: CollectorRegistry,
    app: Celery,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is said, and the worker starts."""

    def taken(port: int, **_: Any) -> None:
        raise OSError("Address already in use")

    monkeypatch.setattr(metrics.prometheus_client, "start_http_server", taken)
    installed = metrics.install(registry, port=9808, app=app)
    metrics._on_worker_init()
    stop_observing(installed)
    assert "Address already in use" in caplog.text


@pytest.mark.parametrize(
    ("pool", "folder", "is_warned"),
    [
        ("celery.concurrency.prefork", None, True),
        ("celery.concurrency.prefork", "/tmp/metrics", False),
        ("celery.concurrency.thread", None, False),
    ],
)
def test_a_prefork_worker_that_would_export_nothing_says_so(
    served: list[int],
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    app: Celery,
    pool: str,
    folder: str | None,
    is_warned: bool,
) -> None:
    """What its processes count is served only with PROMETHEUS_MULTIPROC_DIR."""
    # Given
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    installed = metrics.install(registry)
    if folder:
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", folder)
    # When
    with caplog.at_level(logging.WARNING, "celery_idempotent"):
        made = type("Pool", (), {"__module__": pool})()
        metrics._on_worker_ready(SimpleNamespace(app=app, pool=made))
    stop_observing(installed)
    # Then
    assert ("PROMETHEUS_MULTIPROC_DIR" in caplog.text) == is_warned


# --- alert rules and dashboard -------------------------------------------------------------------


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def test_the_alert_rules_are_rules() -> None:
    """Each has what Prometheus wants, and says what to do."""
    names = set()
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"CeleryIdempotency\w+", rule["alert"])
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
        assert rule["labels"]["severity"] in ("page", "warning")
        assert {"summary", "description"} >= set(rule["annotations"]) >= {"summary"}
        for opening, closing in ("()", "{}", "[]"):
            assert rule["expr"].count(opening) == rule["expr"].count(closing)
        names.add(rule["alert"])
    assert len(names) == len(rules()) > 5


def test_each_metric_of_a_rule_exists() -> None:
    """And what needs a person has one."""
    used = {name for rule in rules() for name in NAMED.findall(rule["expr"])}
    assert used <= SAMPLES
    assert {"celery_idempotency_unknown_records", "celery_idempotency_store_errors_total"} <= used


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    """In panels that do not overlap."""
    # Given
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    texts = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    used = {name for text in texts for name in NAMED.findall(text)}
    # Then
    assert used <= SAMPLES
    assert all(used & set(metric.samples) for metric in METRICS)
    places = {
        (panel["gridPos"]["y"], column)
        for panel in board["panels"]
        for column in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
    }
    assert len(places) == sum(panel["gridPos"]["w"] for panel in board["panels"])
    assert max(column for _, column in places) < 24
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_the_page_has_each_metric_with_its_name() -> None:
    """In its table, and no other one."""
    page = (ROOT / "docs" / "metrics.rst").read_text(encoding="utf-8")
    listed = re.findall(r"^   \* - ``(celery_idempotency_\w+)``$", page, re.MULTILINE)
    names = [it.name if it.kind == "histogram" else it.samples[0] for it in METRICS]
    assert sorted(listed) == sorted(names)


def test_the_alerts_that_pages_name_exist() -> None:
    """A runbook is found by the name of its alert."""
    alerts = {rule["alert"] for rule in rules()}
    for path in (ROOT / "docs").glob("*.rst"):
        named = set(re.findall(r"CeleryIdempotency\w+", path.read_text(encoding="utf-8")))
        assert named <= alerts, path.name
