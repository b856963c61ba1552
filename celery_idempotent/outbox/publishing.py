"""What an application calls: it writes a task's call into the transaction that is under way."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert

from celery_idempotent.outbox.message import Message
from celery_idempotent.outbox.rows import flavour_for
from celery_idempotent.outbox.schema import outbox

__all__ = ["publish"]


def publish(session: Any, signature: Any) -> Any:
    """Publish a task's call if this transaction commits, and only then.

    Args:
        session: an SQLAlchemy ``Session`` or ``Connection`` on the database that has the outbox's
            table. With an ``AsyncSession``:
            ``await session.run_sync(lambda s: outbox.publish(s, task.s(1)))``.
        signature: ``task.s(...)``, with what ``.set(...)`` gave it: queue, countdown, eta,
            expires, priority, headers, link, ``idempotency_key``, ... A countdown counts from now.

    Returns:
        The call's ``AsyncResult``. Its id is the message's task id.

    Raises:
        ConfigurationError: an ``idempotency_*`` option is none of a call's, or has no effect here.
        KeyDerivationError: its key can't be derived; nothing is written.
        TypeError: it is no signature of one task, its arguments don't fit the task, or they are
            not JSON; nothing is written.
    """
    message = Message.of(signature)
    text = message.to_json()
    is_connection = hasattr(session, "dialect")
    dialect = session.dialect if is_connection else session.get_bind().dialect
    session.execute(
        insert(outbox).values(
            task_id=message.task_id,
            task=message.task,
            message=text,
            created_us=flavour_for(dialect.name).now_us,
        )
    )
    result = signature.app.AsyncResult(message.task_id)
    parent = signature.app.current_worker_task
    if parent is not None and message.options.get("add_to_parent", True):
        parent.add_trail(result)
    return result
