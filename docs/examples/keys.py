"""What makes two calls the same: each kind of idempotency_key."""

from datetime import date

from celery import Celery

from celery_idempotent import MESSAGE_ID, IdempotentTask

app = Celery("shop", task_cls=IdempotentTask)
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")


# [all arguments]
@app.task
def resize(path, width, height=100):
    return f"{path} at {width} x {height}"


assert resize.idempotency_key_for("a.png", 200) == resize.idempotency_key_for(
    width=200, path="a.png", height=100
)
assert resize.idempotency_key_for("a.png", 200) != resize.idempotency_key_for("a.png", "200")
assert resize.idempotency_key_for("a.png", 200).startswith("~")  # a digest: no argument is shown


# [names]
@app.task(idempotency_key=("order.id", "currency"))
def invoice(order, currency, requested_at=None):
    return f"invoice for {order['id']}"


assert invoice.idempotency_key_for({"id": 7}, "EUR", "10:00") == "order.id=7,currency=EUR"


# [template]
@app.task(idempotency_key="order:{order_id}")
def charge(order_id, amount):
    return amount


assert charge.idempotency_key_for(42, 100) == "order:42"
assert charge.idempotency_key_for("42", 100) == "order:'42'"  # a text, not a number: another key
assert charge.idempotency_key_for("A-17", 100) == "order:A-17"


# [function]
def once_a_day_unless_forced(report, forced=False):
    return None if forced else f"{report}:{date.today():%Y-%m-%d}"


@app.task(idempotency_key=once_a_day_unless_forced)
def build(report, forced=False):
    return f"{report} is built"


assert build.idempotency_key_for("sales") == f"sales:{date.today():%Y-%m-%d}"
assert build.idempotency_key_for("sales", forced=True) is None  # this call is not deduplicated


# [message id]
@app.task(idempotency_key=MESSAGE_ID)
def tick():
    return "once for each message"


tick.delay()
tick.delay()  # another message: it runs
# [end]

assert resize.delay("a.png", 200).get() == "a.png at 200 x 100"
assert invoice.delay({"id": 7}, "EUR").get() == "invoice for 7"
assert build.delay("sales").get() == "sales is built"
