"""When a message is due is read as Celery reads it: seconds, an instant, or one as text."""

import math
from datetime import datetime, timedelta, timezone

import pytest
from celery import Celery

from celery_idempotent import IdempotentTask
from celery_idempotent.core.options import LONGEST
from celery_idempotent.due import ms_until
from celery_idempotent.testing.deliveries import deliver
from celery_idempotent.testing.memory import memory_store

FAR = round(LONGEST * 1000)


@pytest.mark.parametrize(
    ("when", "ms"),
    [
        (60, 60_000),
        (0.5, 500),
        (-1, 0),
        (math.inf, None),
        (math.nan, None),
        (None, None),
        ("", None),
        ("tomorrow", None),
        (10.0**30, FAR),
        ("3000-01-01T00:00:00Z", FAR),
        ("3000-01-01T00:00:00+00:00", FAR),
        ("3000-01-01T00:00:00", FAR),
        ("3000-01", FAR),
        ("30000101T000000Z", FAR),
        ("1999-12-31T24:00:00Z", 0),
        (datetime(3000, 1, 1), FAR),
        (datetime(3000, 1, 1, tzinfo=timezone.utc), FAR),
        (datetime(2000, 1, 1), 0),
    ],
)
def test_it_is_read_as_celery_reads_it(when, ms):
    assert ms_until(when) == ms


@pytest.mark.parametrize("hours", [-11, 0, 11])
def test_an_instant_without_a_time_zone_is_utc_and_others_are_what_they_say(hours):
    # Given
    there = timezone(timedelta(hours=hours))
    instant = datetime.now(there) + timedelta(days=1)
    # When
    naive = instant.astimezone(timezone.utc).replace(tzinfo=None)
    found = [ms_until(it) for it in (instant, instant.isoformat(), naive, naive.isoformat())]
    # Then
    day_ms = 86_400_000
    assert all(day_ms / 2 < it <= day_ms for it in found)


@pytest.mark.parametrize("as_text", [False, True])
def test_a_retry_with_an_eta_keeps_its_key_until_then(as_text):
    """A duplicate takes over once the retry is overdue, and not before."""
    # Given
    eta = datetime.now(timezone.utc) + timedelta(hours=1)
    with memory_store() as store:
        app = Celery("due", broker="memory://", backend="cache+memory://")

        @app.task(base=IdempotentTask, bind=True, name="later", idempotency_lease=30)
        def later(self, number):
            raise self.retry(eta=eta.isoformat() if as_text else eta)

        deliver(later, (1,), task_id="A")
        # When
        store.advance(31)
        duplicate = deliver(later, (1,), task_id="B")
        # Then
        assert duplicate.state == "RETRY"
        assert later.idempotency_record(1).owner_id == "A"
