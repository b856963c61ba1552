"""A trip that can't be booked whole is undone whole, wherever the worker dies meanwhile."""

from celery import Celery

from celery_idempotent import IdempotentTask
from celery_idempotent.testing import crash_points

app = Celery("travel")
booked = set()


class SoldOut(Exception):
    """No seats."""


class Agency:
    """Stands for what the steps call; its bookings have names, so that twice is once."""

    def book(self, what, trip_id):
        if what == "flight":
            raise SoldOut(trip_id)
        booked.add(f"{what}-{trip_id}")
        return f"{what}-{trip_id}"

    def cancel(self, booking):
        booked.discard(booking)


agency = Agency()


@app.task
def cancel(booking):
    agency.cancel(booking)


@app.task(base=IdempotentTask, bind=True, idempotency_key="trip:{trip_id}")
def book(self, trip_id):
    step = self.idempotency.step
    for what in ("hotel", "car", "flight"):
        step(what, agency.book, what, trip_id, compensate=cancel.s())


# [end]

for crash in crash_points(book, (7,), fresh=booked.clear):
    assert isinstance(crash.result, SoldOut), crash
    assert booked == set(), crash
