"""Shadow mode keeps records and reports, and suppresses nothing."""

from functools import partial
from uuid import uuid4

import pytest
from celery import Celery
from celery.app.trace import build_tracer

from celery_idempotent import ClaimLost, IdempotentTask, KeyDerivationError, State, signals
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.settings import environment_of


@pytest.fixture
def app(request):
    app = Celery(f"shadow-{id(request)}", broker="memory://", backend="cache+memory://")
    app.conf.update(idempotency_store_url=f"memory://{uuid4().hex}", idempotency_mode="shadow")
    app.task = partial(app.task, shared=False)
    return app


@pytest.fixture
def heard():
    events = []

    def listen(sender, event, **_):
        events.append((type(event).__name__, event.key, event.original_id, event.shadow))

    watched = (
        signals.task_deduplicated,
        signals.task_waiting,
        signals.key_mismatch,
        signals.task_interrupted,
        signals.store_unavailable,
    )
    for signal in watched:
        signal.connect(listen)
    yield events
    for signal in watched:
        signal.disconnect(listen)


@pytest.fixture
def runs():
    return []


@pytest.fixture
def charge(app, runs):
    @app.task(base=IdempotentTask, bind=True, idempotency_key="order:{order_id}", name="charge")
    def charge(self, order_id, amount=1, inner=0):
        runs.append((order_id, self.idempotency.token))
        if inner:
            charge.apply((order_id,))
        if amount < 0:
            raise ValueError(amount)
        return len(runs)

    return charge


def test_every_call_runs_and_a_duplicate_is_reported(charge, runs, heard):
    """The first one's record is kept; the second one's caller gets its own result."""
    # When
    first, second = charge.apply((42,)), charge.apply((42,))
    # Then
    assert (first.get(), second.get()) == (1, 2)
    assert charge.idempotency_record(42).state is State.SUCCEEDED
    assert heard == [("Event", "order:42", first.id, True)]


def test_a_call_that_would_wait_is_reported(charge, runs, heard):
    """And runs."""
    answer = charge.apply((42, 1, 1))
    assert len(runs) == 2
    assert heard == [("WaitingEvent", "order:42", answer.id, True)]


@pytest.mark.parametrize("retries", ["many", -1, 2**32, 1.5, True])
def test_a_message_that_would_be_refused_runs(app, charge, runs, retries):
    """A header that only Celery should write, written by somebody else: no key's trouble here."""
    assert charge.apply((42,), retries=retries).get() == 1
    # But a typed error where calls are held to their keys
    app.conf.idempotency_mode = "enforce"

    @app.task(base=IdempotentTask, name="guarded")
    def guarded(order_id):
        return order_id

    assert isinstance(guarded.apply((42,), retries=retries).result, KeyDerivationError)
    assert guarded.apply((42,), retries=3).get() == 42


def test_a_call_that_would_be_refused_is_reported(charge, runs, heard):
    """And runs."""
    first = charge.apply((42,), idempotency_key="k")
    second = charge.apply((43,), idempotency_key="k")
    assert second.get() == 2
    assert heard == [("Event", "k", first.id, True)]


def test_a_failure_is_the_tasks_own(charge, runs, heard):
    """It frees the key, as it would."""
    assert isinstance(charge.apply((42, -1)).result, ValueError)
    assert charge.idempotency_record(42).state is State.RELEASED
    assert charge.apply((42,)).get() == 2
    assert heard == []


def test_a_store_that_is_away_changes_nothing(app, charge, runs, heard, monkeypatch):
    """The task runs, and it is reported."""

    # Given
    def away(*args):
        raise StoreUnavailable("away")

    monkeypatch.setattr(environment_of(app).store, "claim", away)
    # Then
    assert charge.apply((42,)).get() == 1
    assert heard == [("StoreUnavailableEvent", "order:42", None, True)]


def test_a_run_after_one_that_was_cut_off_is_no_interruption(charge, runs, heard):
    """It would have run in any case; nothing is done because of that."""
    # Given
    body, charge.run = charge.run, _exits
    with pytest.raises(SystemExit):
        charge.apply((42,))
    charge.run = body
    # When
    charge.apply((42,))
    # Then
    assert len(runs) == 1
    assert heard == []


def _exits(*args):
    raise SystemExit


def test_there_is_no_token_in_shadow(app, runs):
    """Nothing is guarded, and what asks is told so."""

    # Given
    @app.task(base=IdempotentTask, bind=True, name="asks")
    def asks(self, x):
        with pytest.raises(ClaimLost, match="shadow"):
            self.idempotency.check()
        return [self.idempotency.token, self.idempotency.key_for("stripe")]

    # Then
    token, key = asks.apply((1,)).get()
    assert token is None
    assert len(key) == 32


def test_a_call_without_a_key_is_published_and_runs(app):
    """What would be an error is said in the log: nothing is suppressed."""
    # Given
    ran = []

    @app.task(base=IdempotentTask)
    def charge(order):
        ran.append(order)

    # When
    charge.apply_async((float("nan"),))
    charge.apply((float("nan"),), throw=True)
    # Then
    assert len(ran) == 1


def test_a_message_whose_key_cannot_be_derived_runs(app):
    """From a producer that knows nothing of keys, or that sends a wrong one."""
    # Given
    ran = []

    @app.task(base=IdempotentTask)
    def charge(order):
        ran.append(order)

    tracer = build_tracer(charge.name, charge, app=app)
    # When
    for headers in (None, {"idempotency-key": ""}):
        request = {"id": "t", "retries": 0, "delivery_info": {}, "headers": headers}
        tracer("t", [float("nan")], {}, request)
    # Then
    assert len(ran) == 2


def test_no_call_is_attached_to_another(app):
    """Each is published, also with ``idempotency_on_enqueue`` on."""

    # Given
    @app.task(base=IdempotentTask, idempotency_on_enqueue="attach")
    def charge(order):
        return order

    first = charge.apply((1,))
    charge.backend.store_result(first.id, 1, "SUCCESS")
    # When
    second = charge.delay(1)
    # Then
    assert second.id != first.id
