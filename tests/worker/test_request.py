"""The worker's parent gives a lost child's message back as it is."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from celery import Celery
from celery.worker.request import Request
from kombu import Message

from celery_idempotent import IdempotentTask
from celery_idempotent.core.keys import Owner
from celery_idempotent.core.record import Record, State
from celery_idempotent.core.verdicts import Recorded
from celery_idempotent.worker import request as request_module
from celery_idempotent.worker.request import IdempotentRequest


@pytest.mark.celery_at_least(5, 7)  # which has retry_on_worker_lost
@pytest.mark.parametrize(
    ("options", "retried"),
    [
        ({"reject_on_worker_lost": True, "acks_late": True}, False),
        ({"reject_on_worker_lost": False, "acks_late": True}, True),
        ({"reject_on_worker_lost": True, "acks_late": False}, True),
    ],
)
def test_a_lost_run_is_an_interruption_and_no_retry(monkeypatch, options, retried):
    """``retry_on_worker_lost`` would hide it from ``interrupted``, reconcile and "unknown"."""
    # Given
    monkeypatch.setattr(Request, "_retry_worker_lost", lambda *_: True)
    request = object.__new__(IdempotentRequest)
    request._task = SimpleNamespace(**options)
    # When
    answer = request._retry_worker_lost(None, None)
    # Then
    assert answer is retried


class Held(NamedTuple):
    """A store with one record."""

    record: Any
    settled: list[Any]

    def get(self, key):
        return self.record

    def settle(self, key, event):
        self.settled.append(event)
        return Recorded(event.record.token)


@pytest.mark.parametrize(
    ("state", "owner", "retries", "attempt", "freed", "over"),
    [
        (State.RETRYING, "mine", 1, 1, True, True),
        (State.RETRYING, "mine", 2, 1, False, True),
        (State.RETRYING, "another", 1, 1, False, True),
        (State.RUNNING, "mine", 0, 0, False, True),
        (State.RUNNING, "mine", 0, 1, False, False),
        (State.SUCCEEDED, "mine", 0, 1, False, True),
        (None, "mine", 0, 0, False, True),
    ],
)
def test_a_discarded_message_frees_its_own_key(
    monkeypatch, state, owner, retries, attempt, freed, over
):
    """Only where it is the attempt that the key waits for; its last one may not have ended yet."""
    # Given
    record = state and Record(state, 7, 0, retries, owner=Owner(owner).pack())
    store = Held(record, [])
    journal = SimpleNamespace(write=lambda *_, **__: None)
    environment = SimpleNamespace(store=store, horizon=60.0, journal=journal)
    monkeypatch.setattr(request_module, "environment_of", lambda app: environment)
    request = object.__new__(IdempotentRequest)
    request._app = None
    request._hostname = "h"
    request._context = SimpleNamespace(id="mine", retries=attempt, replaced_task_nesting=0)
    request.id = "mine"
    request._task = SimpleNamespace(name="pay", _record_key=lambda *_: "key")
    request._args = request._kwargs = ()
    # When
    answer = request._free_key()
    # Then
    assert answer is over
    assert [event.record.state for event in store.settled] == [State.RELEASED] * freed


@pytest.mark.parametrize(
    ("broker", "redelivered"),
    [
        ({"redelivered": True}, True),
        ({}, False),
        ({"sqs_message": {"Attributes": {"ApproximateReceiveCount": "1"}}}, False),
        ({"sqs_message": {"Attributes": {"ApproximateReceiveCount": "2"}}}, True),
        ({"sqs_message": {}}, False),
    ],
)
def test_a_message_that_sqs_delivers_again_is_known_as_such(broker, redelivered):
    """SQS counts, and sets no flag. A message without our header has nothing else to tell it by."""
    # Given
    app = Celery("sqs", broker="memory://", set_as_current=False)
    app.conf.idempotency_store_url = "memory://sqs"

    @app.task(base=IdempotentTask, name="pay")
    def pay(order):
        """Do nothing."""

    sent = app.amqp.as_task_v2("id-1", "pay", (1,))
    message = Message(
        "[[1], {}, {}]",
        headers=sent.headers,
        delivery_info=broker,
        content_type="application/json",
        content_encoding="utf-8",
    )
    request = IdempotentRequest(message, app=app, task=app.tasks["pay"], decoded=False)
    # When
    info = request.request_dict["delivery_info"]
    # Then
    assert info["redelivered"] is redelivered
