"""A message that has to wait is put back as it was."""

import uuid
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from uuid import uuid4

import pytest
from celery import Celery, Task, signals
from celery.app.trace import build_tracer
from kombu.exceptions import OperationalError

from celery_idempotent import IdempotentTask
from celery_idempotent.delivery import waiting


@dataclass
class Order:
    """What JSON can't carry, and pickle can."""

    number: int


@pytest.fixture
def app(request):
    app = Celery(f"waiting-{id(request)}", broker="memory://", backend="cache+memory://")
    app.conf.update(
        idempotency_store_url=f"memory://{uuid4().hex}", accept_content=["json", "pickle"]
    )
    app.task = partial(app.task, shared=False)
    return app


@pytest.fixture
def published():
    sent = []

    def note(headers, **_):
        sent.append(headers)

    signals.before_task_publish.connect(note)
    yield sent
    signals.before_task_publish.disconnect(note)


def deliver(task, *args, **more):
    """Have a worker's tracer run one delivery; give the state it leaves."""
    request = {"retries": 0, "delivery_info": {}, "hostname": "h", **more}
    task_id = request.setdefault("id", uuid.uuid4().hex)
    answer = build_tracer(task.name, task, app=task.app)(task_id, list(args), {}, request)
    return "SUCCESS" if answer.info is None else answer.info.state


def busy(app, seen, **more):
    """A task whose key is busy for a duplicate that comes while it runs."""

    @app.task(base=IdempotentTask, bind=True, idempotency_key="{order.number}")
    def charge(self, order):
        if not seen:
            seen.append("running")
            seen.append(deliver(self, order, **more))

    return charge


def test_a_call_that_came_by_another_serializer_waits_by_it(app):
    """Else it would go back to the broker as it is, and come again at once, for as long."""
    # Given
    seen = []
    charge = busy(app, seen)
    # When
    deliver(charge, Order(1))
    # Then
    assert seen == ["running", "RETRY"]


def test_arguments_that_are_hidden_stay_hidden(app, published):
    """What is shown of them in logs and events is what their sender chose."""
    # Given
    charge = busy(app, [], argsrepr="(***)", kwargsrepr="{***}")
    # When
    deliver(charge, Order(1))
    # Then
    assert published[0]["argsrepr"] == "(***)"
    assert published[0]["kwargsrepr"] == "{***}"


@pytest.mark.parametrize("nested", [{}, {"headers": {"trace-id": "1"}}], ids=["plain", "traced"])
def test_what_was_sent_along_stays(app, published, nested):
    """Also where a tracer's table hides it from Celery; what a dead-letter queue added goes."""
    # Given
    sent = {"x-tenant": "a", "x-death": [{"count": 1}], "lang": "py", **nested}
    charge = busy(app, [], **sent)
    # When
    deliver(charge, Order(1))
    # Then
    headers = published[-1]
    assert headers["x-tenant"] == "a"
    assert headers.get("trace-id") == nested.get("headers", {}).get("trace-id")
    assert "x-death" not in headers
    assert not [name for name in headers if name.startswith("_")]


def test_a_message_that_cannot_be_put_back_does_not_spin(app, monkeypatch):
    """It goes back to the broker as it is, and not at once: it comes again at once."""
    # Given
    seen, pauses = [], []
    charge = busy(app, seen)

    def away(*args, **kwargs):
        raise OperationalError("away")

    monkeypatch.setattr(Task, "apply_async", away)
    monkeypatch.setattr(waiting, "time", SimpleNamespace(sleep=pauses.append))
    # When
    deliver(charge, Order(1))
    # Then
    assert seen == ["running", "REJECTED"]
    assert len(pauses) == 1 and 0.05 <= pauses[0] <= 1


class Locking(Task):
    """A base that lets nothing into the queue any more."""

    abstract = True

    def apply_async(self, *args, **options):
        raise AssertionError("a message that is published again gets past this")


@pytest.mark.parametrize("bases", [(Locking, IdempotentTask), (IdempotentTask, Locking)])
class TestPastOtherBases:
    """What is in the queue already is not enqueued by a base's ``apply_async`` again."""

    @pytest.fixture
    def base(self, bases):
        return type("Both", bases, {"abstract": True})

    def test_a_message_that_is_put_back(self, app, base, published):
        """Wherever that base stands."""
        # Given
        seen = []

        @app.task(base=base, bind=True, idempotency_key="{order}")
        def charge(self, order):
            if not seen:
                seen.append("running")
                seen.append(deliver(self, order))

        # When
        deliver(charge, 1)
        # Then
        assert seen == ["running", "RETRY"]
        assert len(published) == 1

    def test_a_retry(self, app, base, published):
        """Celery's own, with whatever options."""

        # Given
        @app.task(base=base, bind=True, idempotency_key="{order}")
        def charge(self, order):
            raise self.retry(countdown=3, headers={"tenant": "a"}, priority=4)

        # When
        state = deliver(charge, 1)
        # Then
        assert state == "RETRY"
        assert [(it["retries"], it["tenant"]) for it in published] == [(1, "a")]

    def test_a_retry_by_hand(self, app, base, published):
        """The signature of a message is the message, whoever publishes it."""

        # Given
        @app.task(base=base, bind=True, idempotency_key="{order}")
        def charge(self, order, note=None):
            same = self.signature_from_request(retries=1)
            same.apply_async(countdown=3, kwargs={"note": "more"})

        # When
        deliver(charge, 1)
        # Then
        assert [it["retries"] for it in published] == [1]
        assert published[0]["eta"] and "note" in published[0]["kwargsrepr"]


def test_a_copy_of_a_running_message_does_not_expire(app, published):
    """If the run dies, the copy is all there is; a duplicate expires as its sender said."""
    # Given a message that expires, which comes again while it runs
    expires = "2100-01-01T00:00:00+00:00"

    @app.task(base=IdempotentTask, bind=True, idempotency_key="{order}")
    def charge(self, order):
        deliver(self, order, id=self.request.id, expires=expires)
        deliver(self, order, expires=expires)

    # When
    deliver(charge, 1, expires=expires)
    # Then
    copy, duplicate = published
    assert copy["expires"] is None
    assert duplicate["expires"] == expires


@pytest.mark.parametrize("how", ["put back", "retried with its headers"])
def test_what_the_broker_wrote_is_taken_out(app, published, how):
    """With it RabbitMQ before 4.0.1 drops a message that the broker delays for the second time."""
    # Given
    deaths = {"x-death": [{"count": 1}], "x-first-death-queue": "celery_delayed_0"}
    headers = {**deaths, "tenant": "a"}
    if how == "put back":
        charge = busy(app, [], headers=headers)
    else:

        @app.task(base=IdempotentTask, bind=True, idempotency_key="{order}")
        def charge(self, order):
            raise self.retry(headers=self.request.headers)

    # When
    deliver(charge, Order(1) if how == "put back" else 1, headers=headers)
    # Then
    assert {sent["tenant"] for sent in published} == {"a"}
    assert not [name for sent in published for name in sent if "death" in name]
