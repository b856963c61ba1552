"""The worker's parent gives a lost child's message back as it is."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from celery.worker.request import Request

from celery_idempotent.core.record import Owner, Record, State
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
