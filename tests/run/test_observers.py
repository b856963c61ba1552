"""Metrics, traces and one log line an outcome, from what becomes of each delivery."""

import logging
from functools import partial
from uuid import uuid4

import pytest
from celery import Celery

from celery_idempotent import IdempotentTask
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.http.edge import Edge
from celery_idempotent.http.messages import Request, Response
from celery_idempotent.observers import name_spans, observe, stop_observing
from celery_idempotent.settings import environment_of


@pytest.fixture
def app(request):
    app = Celery(f"observed-{id(request)}", broker="memory://", backend="cache+memory://")
    app.conf.idempotency_store_url = f"memory://{uuid4().hex}"
    app.task = partial(app.task, shared=False)
    return app


@pytest.fixture
def charge(app):
    @app.task(base=IdempotentTask, idempotency_key="order:{order_id}", name="observed.charge")
    def charge(order_id, amount=1):
        if amount < 0:
            raise ValueError(amount)
        return amount

    return charge


@pytest.fixture
def seen():
    seen = []
    observe(seen.append)
    yield seen
    stop_observing(seen.append)


def whats(seen):
    return [one.what for one in seen if one.what not in ("claim", "complete")]


def test_a_run_and_its_duplicate_are_observed(charge, seen):
    """With the key in words, and the original's id on the duplicate."""
    # When
    first, second = charge.apply((42,)), charge.apply((42,))
    # Then
    assert whats(seen) == ["claimed", "succeeded", "deduplicated"]
    assert {one.key for one in seen} == {"order:42"}
    assert (seen[-1].task_id, seen[-1].original_id) == (second.id, first.id)


def test_the_stores_times_are_observed(charge, seen):
    """A claim and a completion for the first, a claim for the duplicate."""
    charge.apply((42,))
    charge.apply((42,))
    times = [one for one in seen if one.what in ("claim", "complete")]
    assert [one.what for one in times] == ["claim", "complete", "claim"]
    assert all(0 <= one.details["seconds"] < 60 for one in times)


def test_a_run_that_lost_its_key_is_observed_to_lose_it(app, seen):
    """And not to end: its outcome is refused."""

    # Given
    @app.task(base=IdempotentTask, name="observed.lose")
    def lose(order_id):
        lose.forget(order_id)

    # When
    lose.apply((42,))
    # Then
    assert whats(seen) == ["claimed", "lost"]


def test_a_request_is_observed_as_a_delivery_is(app, seen):
    """Of the task that is called ``http``."""
    # Given
    edge = Edge(app, service="shop")
    request = Request("POST", "/orders", "", b"{}")
    # When
    edge.begin(request, "alice", "k").finish(Response(201, [], b"made"))
    edge.begin(request, "alice", "k")
    # Then
    first, second = ["claim", "claimed", "complete", "succeeded"], ["claim", "deduplicated"]
    assert [one.what for one in seen] == first + second
    assert {(one.task, one.sender) for one in seen} == {("http", None)}
    assert seen[-1].original_id == seen[0].task_id


def test_an_eager_call_that_is_refused_is_observed(app, seen):
    """It can't wait: it fails with the same error as a call that may not, and is counted so."""

    # Given
    @app.task(base=IdempotentTask, idempotency_key="{n}", bind=True, name="observed.nested")
    def nested(self, n):
        return self.apply((n,)).state

    # Then
    assert nested.apply((1,)).get() == "FAILURE"
    assert whats(seen) == ["claimed", "refused", "succeeded"]
    (refused,) = (one for one in seen if one.what == "refused")
    assert refused.original_id == seen[0].task_id


def test_an_observer_that_goes_wrong_changes_nothing(charge, caplog):
    """It is logged, and the task goes on."""

    # Given
    def broken(one):
        raise ZeroDivisionError

    observe(broken)
    # When
    try:
        result = charge.apply((42,)).get()
    finally:
        stop_observing(broken)
    # Then
    assert result == 1
    assert "observer" in caplog.text


def test_each_outcome_is_one_line_for_machines(charge, caplog):
    """The fields are on the log record; what happens all the time is told at DEBUG only."""
    # Given
    caplog.set_level(logging.INFO, "celery_idempotent.outcomes")
    # When
    first = charge.apply((42,))
    charge.apply((42,))
    charge.apply((7, -1))
    # Then
    lines = [r.idempotency for r in caplog.records if r.name == "celery_idempotent.outcomes"]
    assert [line["outcome"] for line in lines] == ["deduplicated", "released"]
    assert lines[0]["original_id"] == first.id
    assert lines[1]["error"] == "ValueError"
    assert "outcome='deduplicated'" in caplog.text


def test_a_run_after_one_that_was_cut_off_is_a_warning(charge, caplog, monkeypatch):
    """It names the call that was cut off."""
    # Given
    with monkeypatch.context() as patch:
        patch.setattr(charge, "run", _exits)
        with pytest.raises(SystemExit):
            charge.apply((42,), task_id="first")
    # When
    second = charge.apply((42,))
    charge.apply((7,))
    # Then
    lines = [r for r in caplog.records if r.name == "celery_idempotent.outcomes"]
    assert [(line.levelname, line.idempotency["outcome"]) for line in lines] == [
        ("WARNING", "interrupted")
    ]
    assert lines[0].getMessage() == (
        "idempotency outcome='interrupted' task='observed.charge' key='order:42' "
        f"task_id='{second.id}' original_id='first'"
    )


# --- Prometheus ----------------------------------------------------------------------------------


@pytest.fixture
def metrics():
    prometheus_client = pytest.importorskip("prometheus_client")
    from celery_idempotent.ops import metrics

    registry = prometheus_client.CollectorRegistry()
    installed = metrics.install(registry)
    yield lambda name, **labels: registry.get_sample_value(
        f"celery_idempotency_{name}", {"task": "observed.charge", **labels}
    )
    stop_observing(installed)


def test_deliveries_are_counted_by_task(charge, metrics):
    """Executions, replays and mismatches, and the time that the store took."""
    # When
    charge.apply((42,))
    charge.apply((42,))
    charge.apply((42,))
    charge.apply((1,), idempotency_key="k")
    charge.apply((2,), idempotency_key="k")
    # Then
    assert metrics("executions_total") == 2
    assert metrics("replays_total") == 2
    assert metrics("mismatches_total") == 1
    assert metrics("claim_seconds_count") == 5
    assert metrics("complete_seconds_count") == 2


def test_runs_that_were_cut_off_are_counted(charge, metrics):
    """By itself where it could, else by the run that took over."""
    # Given
    body, charge.run = charge.run, _exits
    with pytest.raises(SystemExit):
        charge.apply((42,))
    charge.run = body
    before = metrics("interruptions_total")
    # When
    charge.apply((42,))
    # Then
    assert before == 1
    assert metrics("executions_total") == 2


def _exits(*args):
    raise SystemExit


def test_a_store_that_is_away_is_counted(app, charge, metrics, monkeypatch):
    """Each delivery that finds it so."""

    # Given
    def away(*args):
        raise StoreUnavailable("away")

    monkeypatch.setattr(environment_of(app).store, "claim", away)
    # When
    charge.apply((42,))
    # Then
    assert metrics("store_errors_total") == 1
    assert metrics("executions_total") is None


def test_shadow_mode_is_counted_apart(app, metrics):
    """What would have been a replay is not counted as one."""

    # Given
    @app.task(base=IdempotentTask, idempotency_mode="shadow", name="observed.charge")
    def charge(order_id):
        return order_id

    # When
    charge.apply((42,))
    charge.apply((42,))
    # Then
    assert metrics("shadow_total", outcome="deduplicated") == 1
    assert metrics("replays_total") is None


# --- OpenTelemetry -------------------------------------------------------------------------------


@pytest.fixture
def spans():
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from celery_idempotent.ops import tracing

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.install()
    yield provider.get_tracer("test"), exporter
    stop_observing(tracing._observe)
    name_spans(None)


def test_a_duplicates_span_links_to_its_originals(charge, spans):
    """And both carry key and outcome."""
    # Given
    tracer, exporter = spans
    # When
    with tracer.start_as_current_span("first") as first:
        original = charge.apply((42,))
    with tracer.start_as_current_span("second"):
        charge.apply((42,))
    # Then
    one, two = exporter.get_finished_spans()
    assert one.attributes["celery.idempotency.outcome"] == "succeeded"
    assert one.attributes["celery.idempotency.key"] == "order:42"
    assert not one.links
    assert two.attributes["celery.idempotency.outcome"] == "deduplicated"
    assert two.attributes["celery.idempotency.original"] == original.id
    assert [link.context.span_id for link in two.links] == [first.get_span_context().span_id]
    assert [link.context.trace_id for link in two.links] == [first.get_span_context().trace_id]


def test_a_record_without_a_trace_links_to_nothing(charge, spans):
    """Its original ran where nobody traced."""
    tracer, exporter = spans
    charge.apply((42,))
    with tracer.start_as_current_span("second"):
        charge.apply((42,))
    assert not exporter.get_finished_spans()[0].links


def test_what_a_record_says_of_its_trace_is_not_believed_blindly(charge, spans):
    """Anything but two hexadecimal numbers is no link."""
    from celery_idempotent.ops.tracing import _context_of

    for text in (None, "", "x", "1-2-3", "zz-1", 5):
        assert _context_of(text) is None
    assert _context_of("0a-0b").span_id == 11
