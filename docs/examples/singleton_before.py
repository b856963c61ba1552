"""Before, with celery-singleton: who asks for the same report gets the same result."""

from celery import Celery
from celery_singleton import Singleton

app = Celery("reports", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")
app.conf.singleton_backend_url = "redis://localhost:6379/2"


@app.task(base=Singleton, unique_on=["customer_id"], lock_expiry=3600)
def build_report(customer_id, asked_by):
    return f"the report of customer {customer_id}"


def button_pressed(customer_id, user):
    return build_report.delay(customer_id, user).id
