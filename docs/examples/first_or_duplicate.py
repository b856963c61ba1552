"""Who ran, and who was answered with that run's outcome?"""

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("shop")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
mails = []


class Charge(IdempotentTask):
    def on_success(self, retval, task_id, args, kwargs):
        if not self.idempotency.replayed:
            mails.append(task_id)


@app.task(base=Charge, idempotency_key="order:{order_id}")
def charge(order_id):
    return "charged"


first, again = charge.delay(42), charge.delay(42)
record = charge.idempotency_record(42)
assert record.owner_id == first.id  # this call ran
assert record.owner_id != again.id  # this one was answered with its outcome
assert mails == [first.id]
