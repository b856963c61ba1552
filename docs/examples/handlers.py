"""A mail for each order, and not for each duplicate."""

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("shop", broker="redis://localhost/0")
app.conf.idempotency_store_url = "redis://localhost/1"
mails = []


class MailingTask(IdempotentTask):
    abstract = True

    def on_success(self, retval, task_id, args, kwargs):
        if not self.idempotency.replayed:
            mails.append(retval)


@app.task(base=MailingTask, idempotency_key="order:{order_id}")
def charge(order_id):
    return f"order {order_id} is charged"


# [end]
if __name__ == "__main__":
    from celery_idempotent.testing import deliver

    app.conf.idempotency_store_url = "memory://"
    answers = [deliver(charge, (42,)).get() for _ in range(3)]
    assert answers == ["order 42 is charged"] * 3
    assert mails == ["order 42 is charged"]
