"""Orders, payments, and the accounts that charges go to."""

from django.db import models


class Order(models.Model):
    item = models.CharField(max_length=100)

    def __str__(self):
        return self.item


class Payment(models.Model):
    order_id = models.IntegerField()
    amount = models.IntegerField()

    def __str__(self):
        return f"{self.amount} for order {self.order_id}"


class Account(models.Model):
    """A balance that is incremented: a second run would make it wrong, and can't happen here."""

    order_id = models.IntegerField(unique=True)
    charges = models.IntegerField(default=0)
    charged = models.IntegerField(default=0)

    def __str__(self):
        return f"{self.charged} in {self.charges} charges"
