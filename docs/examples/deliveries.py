"""Tests of duplicates and redeliveries, and of what a task publishes."""

from celery import Celery

from celery_idempotent import IdempotentTask
from celery_idempotent.testing import deliver

app = Celery("shop")


@app.task(base=IdempotentTask, idempotency_key="order:{order_id}")
def charge(order_id):
    return f"receipt of {order_id}"


def test_a_message_that_comes_twice_is_answered_twice(idempotent_store):
    first = deliver(charge, (42,), link=charge.si(43))
    assert [message.args for message in first.published] == [(43,)]  # its callback
    again = first.again()
    assert again.get() == first.get() == "receipt of 42"
    assert again.published == ()  # it went out before


def test_after_its_window_the_same_call_is_a_new_one(idempotent_store):
    deliver(charge, (42,))
    idempotent_store.advance(86400)
    assert charge.idempotency_record(42) is None
