"""A body that takes its steps in several threads."""

from concurrent.futures import ThreadPoolExecutor

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("notices")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
sent = []


def send(customer_id):
    sent.append(customer_id)


@app.task(base=IdempotentTask, bind=True, idempotency_key="notice:{notice_id}", max_retries=1)
def notify(self, notice_id, customer_ids):
    run = self.idempotency  # in the body, before the threads

    def one(customer_id):
        return run.step(f"send-{customer_id}", send, customer_id)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, customer_ids))
    if self.request.retries == 0:
        raise self.retry(countdown=0)


# [end]

notify.delay(7, [1, 2, 3]).get()
assert sorted(sent) == [1, 2, 3]
