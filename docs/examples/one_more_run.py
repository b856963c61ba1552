"""What changes during a run is seen by one more run, however many calls are made meanwhile."""

from celery import Celery
from redis import Redis

from celery_idempotent import IdempotentTask

app = Celery("search")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
marks = Redis.from_url("redis://localhost:6379/2")
indexed = []


def build_index(shop_id):
    indexed.append(shop_id)


@app.task(
    base=IdempotentTask,
    idempotency_key="index:{shop_id}",
    idempotency_ttl=0,
    idempotency_after_wait="run",  # one at a time, and each in its turn
)
def index(shop_id):
    if marks.getdel(f"changed:{shop_id}"):  # before anything is read
        build_index(shop_id)


def shop_changed(shop_id):
    marks.set(f"changed:{shop_id}", 1)  # before the call
    index.delay(shop_id)


shop_changed(7)
assert indexed == [7]
# [end]

from celery_idempotent.testing import deliver, memory_store  # noqa: E402

waiting = []


def change_meanwhile(shop_id):
    indexed.append(shop_id)
    if len(indexed) == 2:  # five changes while it runs
        for _ in range(5):
            marks.set(f"changed:{shop_id}", 1)
            waiting.extend(deliver(index, (shop_id,)).published)


globals()["build_index"] = change_meanwhile
with memory_store():
    marks.set("changed:7", 1)
    deliver(index, (7,))
    assert len(waiting) == 5
    for message in waiting:
        assert message.deliver().state == "SUCCESS"
assert indexed == [7, 7, 7]  # the call before, the run, and one more
