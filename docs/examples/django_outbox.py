"""A call that is sent if a transaction commits, and only then."""

import django
from celery import Celery
from django.conf import settings
from django.core.management import call_command
from django.db import connection, models, transaction

from celery_idempotent import IdempotentTask

settings.configure(
    INSTALLED_APPS=["celery_idempotent.django"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": "shop.db",
        }
    },
)
django.setup()
from celery_idempotent.django import outbox  # noqa: E402  (it has models: after setup())

call_command("migrate", verbosity=0)
app = Celery("shop", broker="memory://")
app.conf.update(task_always_eager=True, idempotency_store_url="django://")


class Account(models.Model):
    name = models.CharField(max_length=50)
    balance = models.IntegerField(default=0)

    class Meta:
        app_label = "shop"


with connection.schema_editor() as editor:
    editor.create_model(Account)
Account.objects.create(name="ann")


@app.task(base=IdempotentTask, idempotency_key="payment:{payment_id}")
def deposit(payment_id, amount):
    Account.objects.filter(name="ann").update(balance=models.F("balance") + amount)


def pay(payment_id, amount):
    with transaction.atomic():
        Account.objects.get_or_create(name="bob")
        outbox.publish(deposit.s(payment_id, amount))  # sent if this commits, and only then


# [end]

pay(3, 50)
assert Account.objects.get(name="ann").balance == 0
outbox.Relay(app).once()  # what `manage.py idempotency relay` does
assert Account.objects.get(name="ann").balance == 50
