"""The fencing token keeps a run that lost its key from overwriting the one that took over."""

import sqlite3

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("shop")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
database = sqlite3.connect(":memory:")
database.execute("CREATE TABLE orders (id PRIMARY KEY, status, token DEFAULT 0)")
database.execute("INSERT INTO orders (id, status) VALUES (42, 'new')")


@app.task(base=IdempotentTask, bind=True, idempotency_key="order:{order_id}")
def settle(self, order_id, status):
    token = self.idempotency.token  # higher than that of every earlier run of this key
    with database:
        database.execute(
            "UPDATE orders SET status = ?, token = ? WHERE id = ? AND token < ?",
            (status, token, order_id, token),
        )


# [end]


settle.delay(42, "paid").get()
(status, token), *_ = database.execute("SELECT status, token FROM orders")
assert status == "paid"
stale = database.execute("UPDATE orders SET status = 'late' WHERE id = 42 AND token < ?", (token,))
assert stale.rowcount == 0
