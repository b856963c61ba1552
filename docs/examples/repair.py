"""A step whose code was wrong: the call is run again from there, and not from its beginning."""

from celery import Celery

from celery_idempotent import IdempotentTask, UnknownStep
from celery_idempotent.ops import resume
from celery_idempotent.ops.lookup import look_up
from celery_idempotent.settings import environment_of
from celery_idempotent.testing import deliver
from celery_idempotent.testing.deliveries import published_by, results_of

app = Celery("shop")
app.conf.update(idempotency_store_url="memory://", result_extended=True)
stock, bills, tax = [], [], {"percent": 190}  # it should be 19


@app.task(base=IdempotentTask, bind=True, idempotency_key="order:{order_id}")
def bill(self, order_id):
    step = self.idempotency.step
    step("reserve", stock.append, order_id)
    price = step("price", lambda: 100 + tax["percent"])
    step("send", bills.append, price)
    return price


# [end]

bill.backend = results_of(app)
assert deliver(bill, (42,)).get() == 290

tax["percent"] = 19  # mended

environment = environment_of(app)
(found,) = look_up(app, environment, "order:42")
plan = resume.plan(app, environment, found, "price")
assert (plan.kept, plan.dropped) == (("reserve",), ("price", "send"))

published = []
with published_by(app, published):
    resume.resume(app, environment, plan, "the example")
(message,) = published
assert message.deliver().get() == 119
assert (stock, bills) == ([42], [290, 119])  # the wrong bill is still there

try:
    resume.plan(app, environment, found, "prize")
except UnknownStep as exc:
    assert "step 'price'" in str(exc)
else:
    raise AssertionError
