"""The worker's parent gives a lost child's message back as it is."""

from types import SimpleNamespace

import pytest
from celery.worker.request import Request

from celery_idempotent.request import IdempotentRequest


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
