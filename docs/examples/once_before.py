"""Before, with celery-once: one report of a customer at a time."""

from celery import Celery
from celery_once import AlreadyQueued, QueueOnce

app = Celery("reports", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")
app.conf.ONCE = {
    "backend": "celery_once.backends.Redis",
    "settings": {"url": "redis://localhost:6379/2", "default_timeout": 3600},
}


@app.task(base=QueueOnce, once={"keys": ["customer_id"]})
def build_report(customer_id, asked_by):
    return f"the report of customer {customer_id}"


def button_pressed(customer_id, user):
    try:
        return build_report.delay(customer_id, user).id
    except AlreadyQueued:
        return "it is being built"
