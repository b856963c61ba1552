"""What the shop's tasks write."""

from __future__ import annotations

from django.db import models


class Account(models.Model):
    """Money: an increment is what a second run would spoil."""

    name = models.CharField(max_length=50, unique=True)
    balance = models.IntegerField(default=0)
    token = models.BigIntegerField(default=0)

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return self.name
