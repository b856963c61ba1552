"""A task in steps: what was done is not done again, and is undone where the task fails for good."""

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("travel")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
done = []
seats_left = [False, True]


class Agency:
    """Stands for what the steps call."""

    def book_hotel(self, trip_id):
        done.append("book hotel")
        return f"hotel-{trip_id}"

    def cancel_hotel(self, booking):
        done.append(f"cancel {booking}")

    def book_flight(self, trip_id):
        if not seats_left.pop(0):
            raise SoldOut(trip_id)
        done.append("book flight")
        return f"flight-{trip_id}"


class SoldOut(Exception):
    """No seats."""


agency = Agency()


@app.task
def cancel_hotel(booking):
    agency.cancel_hotel(booking)


@app.task(base=IdempotentTask, bind=True, idempotency_key="trip:{trip_id}")
def book(self, trip_id):
    step = self.idempotency.step
    hotel = step("hotel", agency.book_hotel, trip_id, compensate=cancel_hotel.s())
    flight = step("flight", agency.book_flight, trip_id)
    return [hotel, flight]


# [end]

assert isinstance(book.delay(7).result, SoldOut)
assert done == ["book hotel", "cancel hotel-7"]
assert book.delay(7).get() == ["hotel-7", "flight-7"]
assert done == ["book hotel", "cancel hotel-7", "book hotel", "book flight"]
