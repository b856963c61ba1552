"""The tasks of the workers."""

from celery import shared_task
from django.db.models import F

from celery_idempotent import IdempotentTask
from shop.models import Account


@shared_task(base=IdempotentTask)
def charge(order_id, amount):
    # In transaction.atomic(), together with the record of this call: all or nothing.
    Account.objects.get_or_create(order_id=order_id)
    Account.objects.filter(order_id=order_id).update(
        charges=F("charges") + 1, charged=F("charged") + amount
    )
