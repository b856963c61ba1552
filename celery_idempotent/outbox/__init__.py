"""Tasks that are published if, and only if, the transaction they belong to commits.

::

    with Session(engine) as session, session.begin():
        session.add(order)
        outbox.publish(session, charge.s(order.id, order.amount))

The call is written as a row in the same transaction; ``celery -A app idempotency relay`` sends the
rows that are committed. Each row's UUID is the task id of its message: a row that is sent twice, by
a relay that was killed between sending and deleting it, is one call of an ``IdempotentTask``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_idempotent.outbox.broker import BrokerAway
    from celery_idempotent.outbox.publishing import publish
    from celery_idempotent.outbox.rows import Relay, backlog
    from celery_idempotent.outbox.schema import create_schema, metadata
    from celery_idempotent.outbox.waiting import Backlog, DatabaseAway

__all__ = [
    "Backlog",
    "BrokerAway",
    "DatabaseAway",
    "Relay",
    "backlog",
    "create_schema",
    "metadata",
    "publish",
]

_HOMES = {
    "Backlog": "waiting",
    "BrokerAway": "broker",
    "DatabaseAway": "waiting",
    "Relay": "rows",
    "backlog": "rows",
    "create_schema": "schema",
    "metadata": "schema",
    "publish": "publishing",
}


def __getattr__(name: str) -> Any:
    # Imported late: Django's outbox uses this package, and does not need SQLAlchemy.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
