"""shop/celery.py: the app of the workers and the web processes."""

import os
import uuid

from celery import Celery

from celery_idempotent import IdempotentTask

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@app.task(base=IdempotentTask, idempotency_key="order:{order_id}")
def charge(order_id):
    return {"order": order_id, "receipt": uuid.uuid4().hex}
