"""With acks_late off, a message that can't be published again is not lost without a word."""

from functools import partial
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.exceptions import Reject
from kombu.exceptions import OperationalError

from celery_idempotent import IdempotentTask
from celery_idempotent.core.message import WaitState
from celery_idempotent.delivery import callbacks
from celery_idempotent.delivery.origin import Origin
from celery_idempotent.delivery.waiting import put_back


@pytest.fixture(params=[True, False], ids=["late", "early"])
def task(request, monkeypatch):
    app = Celery(f"acks-{id(request)}", broker="memory://", backend="cache+memory://")
    app.conf.idempotency_store_url = "memory://"
    app.task = partial(app.task, shared=False)

    @app.task(base=IdempotentTask, bind=True, acks_late=request.param, name="waits")
    def waits(self, x):
        """Never runs."""

    def away(*args, **kwargs):
        raise OperationalError("the broker is away")

    monkeypatch.setattr(app.amqp, "send_task_message", away)
    monkeypatch.setattr("celery_idempotent.delivery.waiting.time.sleep", lambda seconds: None)
    app.conf.task_publish_retry = False
    waits.push_request(id="one", args=(1,), kwargs={}, called_directly=False, delivery_info={})
    yield waits
    waits.pop_request()


def delivery_of(task):
    """The delivery that is under way."""
    claimant = SimpleNamespace(callbacks=True)
    made = {"claimant": claimant, "call_key": None, "waits": WaitState()}
    return SimpleNamespace(task=task, request=task.request, **made)


def test_a_message_that_cannot_wait_goes_back_or_fails(task):
    """Acknowledged late it goes back to the broker; acknowledged early its call fails."""
    with pytest.raises(Reject if task.acks_late else OperationalError):
        put_back(delivery_of(task), WaitState(), 0.1, Origin({}))


def test_a_tail_that_cannot_be_sent_goes_back_or_fails(task):
    """As in plain Celery where the message is acknowledged early."""
    # Given
    task.request.callbacks = [task.si(2)]
    # Then
    with pytest.raises(Reject if task.acks_late else OperationalError):
        callbacks.hand_over(delivery_of(task), "result")
