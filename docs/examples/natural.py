"""Effects that need no key: an assignment, a conditional write, a row with a name."""

import sqlite3

from celery import Celery

app = Celery("shop")
app.conf.task_always_eager = True
db = sqlite3.connect(":memory:", isolation_level=None)
db.execute("CREATE TABLE orders (id PRIMARY KEY, status, shipped_on)")
db.execute("CREATE TABLE invoices (order_id PRIMARY KEY, amount)")
db.execute("INSERT INTO orders (id, status) VALUES (42, 'paid')")


@app.task
def ship(order_id, day):
    # Set, don't add: twice is once.
    db.execute("UPDATE orders SET shipped_on = ? WHERE id = ?", (day, order_id))
    # Only from the state that it may come from: a late copy changes nothing.
    db.execute("UPDATE orders SET status = 'shipped' WHERE id = ? AND status = 'paid'", (order_id,))
    # The row is named by what it is for: there can't be two.
    db.execute("INSERT INTO invoices VALUES (?, 100) ON CONFLICT DO NOTHING", (order_id,))


# [end]

ship.delay(42, "2030-01-01")
db.execute("UPDATE orders SET status = 'returned' WHERE id = 42")
ship.delay(42, "2030-01-01")
assert db.execute("SELECT * FROM orders").fetchall() == [(42, "returned", "2030-01-01")]
assert db.execute("SELECT * FROM invoices").fetchall() == [(42, 100)]
