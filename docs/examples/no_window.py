"""Never two at once, and again later: a sync of one account."""

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("sync")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
syncs = []


@app.task(base=IdempotentTask, idempotency_key="account:{account_id}", idempotency_ttl=0)
def sync(account_id):
    syncs.append(account_id)
    return len(syncs)


assert sync.delay(7).get() == 1
assert sync.delay(7).get() == 2  # the first sync has ended, and so this one runs
