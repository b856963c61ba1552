"""Records in the project's database: a body's writes and its completion are one transaction."""

import django
from celery import Celery
from django.conf import settings
from django.core.management import call_command
from django.db import connection, models

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
def deposit(payment_id, amount, fails=False):
    Account.objects.filter(name="ann").update(balance=models.F("balance") + amount)
    if fails:
        raise ValueError("the payment was declined")  # and the balance is as it was


# [end]

deposit.delay(1, 100).get()
deposit.delay(1, 100).get()  # a duplicate
assert deposit.delay(2, 100, fails=True).failed()
assert Account.objects.get(name="ann").balance == 100
