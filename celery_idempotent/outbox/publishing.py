"""Writes the call of a task into the application's transaction: ``outbox.publish()``."""

from __future__ import annotations

import inspect
from typing import Any

from celery_idempotent.errors import missing_extra
from celery_idempotent.outbox.message import PendingCall
from celery_idempotent.outbox.rows import flavour_for
from celery_idempotent.outbox.schema import outbox

try:
    from sqlalchemy import Insert, insert
    from sqlalchemy.dialects import mysql, postgresql, sqlite
    from sqlalchemy.exc import InvalidRequestError
except ImportError as exc:
    raise missing_extra(exc, "the outbox needs", "sql") from exc


def publish(session: Any, signature: Any) -> Any:
    """Publish a task's call if, and only if, this transaction commits.

    Args:
        session: an SQLAlchemy ``Session`` or ``Connection`` on the database that has the outbox's
            table, in a transaction. With an ``AsyncSession``:
            ``await session.run_sync(outbox.publish, task.s(1))``.
        signature: ``task.s(...)``, with the options of its ``.set(...)``: queue, countdown, eta,
            expires, priority, headers, link, ``idempotency_key``, ... A countdown begins now.

    Returns:
        The call's ``AsyncResult``. Its id is the message's task id.

    Raises:
        ConfigurationError: a call can't have this ``idempotency_*`` option, or it has no effect.
        KeyDerivationError: its key can't be derived; nothing is written.
        TypeError: it is not the signature of one task, its arguments don't fit the task or can't be
            written as JSON, or the session is an async one; nothing is written.
        InvalidRequestError: the connection commits each statement by itself; nothing is written.
    """
    _refuse_async(session)
    call = PendingCall.of(signature)
    text = call.to_json()
    is_connection = hasattr(session, "dialect")
    bind = {"clause": insert(outbox)}
    connection = session if is_connection else session.connection(bind_arguments=bind)
    _refuse_autocommit(connection)
    flavour = flavour_for(connection.dialect.name)
    values = {
        "task_id": call.task_id,
        "task": call.task,
        "message": text,
        "created_us": flavour.now_us,
    }
    if call.is_of_request:
        connection.execute(_unless_it_waits(flavour.driver, values))
    else:
        connection.execute(insert(outbox).values(values))
    return call.published(signature.app)


def _unless_it_waits(driver: str, values: dict[str, Any]) -> Insert:
    """Return a statement that writes a row, unless the same call is there already."""
    if driver.startswith("mysql"):
        once = mysql.insert(outbox).values(values)
        return once.on_duplicate_key_update(task_id=once.inserted.task_id)
    dialect = postgresql if driver.startswith("postgresql") else sqlite
    statement: Any = dialect.insert(outbox).values(values)
    written: Insert = statement.on_conflict_do_nothing(index_elements=["task_id"])
    return written


def _refuse_async(session: Any) -> None:
    if inspect.iscoroutinefunction(getattr(session, "execute", None)):
        raise TypeError(
            f"outbox.publish() can't write with a {type(session).__name__}, which has to be "
            "awaited: write  await session.run_sync(outbox.publish, task.s(...))"
        )


def _refuse_autocommit(connection: Any) -> None:
    level = connection.get_execution_options().get("isolation_level")
    if level is None:
        # What create_engine() was given.
        level = getattr(connection.dialect, "_on_connect_isolation_level", None)
    raw = connection.connection.dbapi_connection
    of_driver = getattr(raw, "get_autocommit", lambda: getattr(raw, "autocommit", None))
    if level != "AUTOCOMMIT" and of_driver() is not True:
        return
    raise InvalidRequestError(
        "outbox.publish() needs a transaction, and this connection is set to AUTOCOMMIT: the call "
        "would be sent though your data was rolled back. Use a session or a connection without "
        'isolation_level="AUTOCOMMIT", or publish with task.delay()'
    )
