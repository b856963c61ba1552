"""Writes that a run which lost its key can't make: the token, on querysets."""

from __future__ import annotations

from typing import Any

from celery_idempotent.errors import ClaimLost
from celery_idempotent.run.context import RunContext

__all__ = ["fenced_update"]


def fenced_update(
    queryset: Any, idempotency: RunContext, *, token_field: str = "token", **values: Any
) -> int:
    """Update rows unless a later run has: ``queryset.update(**values)``, by the fencing token.

    ::

        rows = Order.objects.filter(pk=order_id)
        fenced_update(rows, self.idempotency, status="paid")

    It is for assignments, on a database that is not the store's own; an increment needs the store
    ``django://``, whose transaction takes it back.

    Args:
        idempotency: ``self.idempotency`` of the run.
        token_field: the rows' field for the token, a ``BigIntegerField(default=0)``.

    Returns:
        How many rows were updated; those that a later run has written are left alone.

    Raises:
        ClaimLost: the run holds no claim, and so has no token.
    """
    token = idempotency.token
    if token is None:
        raise ClaimLost("this run holds no claim, so it has no token to write by")
    not_later = {f"{token_field}__lte": token}
    updated: int = queryset.filter(**not_later).update(**{token_field: token, **values})
    return updated
