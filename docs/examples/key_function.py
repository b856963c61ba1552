"""A key made by a function. None means that this call is not deduplicated."""

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("shop")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")


def once_a_day_unless_forced(report, day, forced=False):
    return None if forced else f"{report}:{day}"


@app.task(base=IdempotentTask, idempotency_key=once_a_day_unless_forced)
def build(report, day, forced=False):
    return f"{report} of {day} is built"


assert build.idempotency_key_for("sales", "2030-01-31") == "sales:2030-01-31"
assert build.idempotency_key_for("sales", "2030-01-31", forced=True) is None
# [end]

assert build.delay("sales", "2030-01-31").get() == "sales of 2030-01-31 is built"
