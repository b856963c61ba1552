"""A search index is brought up to date after the last change, however many changes there were."""

from celery import Celery

from celery_idempotent import IdempotentTask
from celery_idempotent.testing.deliveries import message_of

app = Celery("shop")
app.conf.update(idempotency_store_url="memory://")
indexed, changes = [], []


@app.task(
    base=IdempotentTask,
    idempotency_key="product:{product_id}",
    idempotency_ttl=0,
    idempotency_after_wait="last",
)
def reindex(product_id, version):
    indexed.append(version)
    while changes:  # what others do meanwhile
        changes.pop(0)()
    return version


# [end]

waiting = []


def change(version):
    def call():
        waiting.extend(message_of(reindex, (7, version)).deliver().published)

    return call


changes += [change(2), change(3), change(4)]
message_of(reindex, (7, 1)).deliver()
results = []
while waiting:
    delivered = waiting.pop(0).deliver()
    if delivered.state == "RETRY":
        waiting.extend(delivered.published)
    else:
        results.append(delivered.get())

assert indexed == [1, 4]
assert results == [4, 4, 4]
