"""test_mail.py: how to test your own tasks without a broker and without Redis."""

import pytest
from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("shop")
sent = []


@app.task(base=IdempotentTask, name="shop.send_mail", idempotency_key="order:{order_id}")
def send_mail(order_id):
    sent.append(order_id)
    return "sent"


@pytest.fixture(autouse=True)
def eager():
    app.conf.update(task_always_eager=True, idempotency_store_url="memory://")


def test_a_mail_is_sent_once():
    answers = [send_mail.delay(42).get() for _ in range(3)]
    assert answers == ["sent", "sent", "sent"]
    assert sent == [42]
