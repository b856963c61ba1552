"""Tests of one's own tasks: duplicates, redeliveries, and every point where a worker can die."""

from importlib.metadata import entry_points

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("shop")


class Bank:
    """A stand-in that knows idempotency keys, as the real one does."""

    def __init__(self):
        self.charges = {}

    def charge(self, order_id, key):
        return self.charges.setdefault(key, f"receipt of {order_id}")


bank = Bank()


@app.task(base=IdempotentTask, bind=True, idempotency_key="order:{order_id}")
def charge(self, order_id):
    return bank.charge(order_id, self.idempotency.key_for("bank"))


# [crashes]
from celery_idempotent.testing import crash_points, deliver  # noqa: E402


def test_a_customer_is_charged_once_wherever_the_worker_dies():
    for crash in crash_points(charge, (42,), fresh=bank.charges.clear):
        assert len(bank.charges) == 1, crash
        assert crash.result == "receipt of 42", crash


# [deliveries]
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


# [end]


if __name__ == "__main__":
    import pytest

    installed = "celery_idempotent" in {ep.name for ep in entry_points(group="pytest11")}
    plugin = [] if installed else ["-p", "celery_idempotent.testing.plugin"]
    raise SystemExit(pytest.main([__file__, "-q", "-p", "no:cacheprovider", *plugin]))
