"""Before, with celery-heimdall: a customer's report is built once an hour."""

from celery import Celery
from celery_heimdall import HeimdallTask

app = Celery("reports", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")


def report_of(args, kwargs):
    return f"report:{args[0]}"


@app.task(
    base=HeimdallTask,
    heimdall={
        "unique": True,
        "key": report_of,
        "unique_timeout": 3600,
        "unique_wait_for_expiry": True,
    },
)
def build_report(customer_id, asked_by):
    return f"the report of customer {customer_id}"


def button_pressed(customer_id, user):
    return build_report.delay(customer_id, user).id
