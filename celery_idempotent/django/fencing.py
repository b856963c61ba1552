"""Refuses the writes of a run that lost its key, by the fencing token on querysets."""

from __future__ import annotations

from typing import Any

from django.db import transaction

from celery_idempotent.errors import ClaimLost
from celery_idempotent.run.context import RunContext

__all__ = ["fenced_update"]


def fenced_update(
    queryset: Any, idempotency: RunContext, *, token_field: str = "token", **values: Any
) -> int:
    """Update rows with ``queryset.update(**values)``, unless a later run has written them.

    ::

        rows = Order.objects.filter(pk=order_id)
        fenced_update(rows, self.idempotency, status="paid")

    Use it for assignments in a database that is not the store's own. An increment needs the store
    ``django://``, whose transaction can roll it back.

    Args:
        idempotency: ``self.idempotency`` of the run.
        token_field: the rows' field for the token, a ``BigIntegerField(default=0)``.

    Returns:
        How many rows were updated.

    Raises:
        ClaimLost: a later run has written one of the rows, or this run holds no claim: roll back.
    """
    token = idempotency.token
    if token is None:
        raise ClaimLost("this run holds no claim, so it has no token to write with")
    not_later = {f"{token_field}__lte": token}
    updated: int = queryset.filter(**not_later).update(**{token_field: token, **values})
    later = queryset.filter(**{f"{token_field}__gt": token})
    # With a lock, because an older snapshot would not show the later run's write. Outside of a
    # transaction there is neither a snapshot nor a lock.
    locked = later.select_for_update()
    if transaction.get_connection(locked.db).in_atomic_block:
        later = locked
    if later.values_list("pk")[:1]:
        raise ClaimLost(
            "a later run has written one of these rows, so this run has lost its key: roll back"
        )
    return updated
