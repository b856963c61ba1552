"""Publishes, takes, runs and acknowledges messages in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.utils.imports import symbol_by_name

__all__ = ["BODY_RESULT", "Line"]

#: The result of every body: 64 bytes as JSON.
BODY_RESULT = "x" * 62


class Line:
    """An app with a queue in memory, whose messages Celery's own ``Request`` executes.

    Broker and result backend are in this process, so that the only round trips are those of the
    library under test. Each app has a queue of its own: kombu's memory is the whole process's.
    """

    def __init__(self, name: str) -> None:
        self.app = Celery(name, broker="memory://", backend="cache+memory://", set_as_current=False)
        self.app.conf.update(
            task_default_queue=f"speed-{name}", broker_connection_retry_on_startup=True
        )
        #: How often the body ran.
        self.runs = 0
        #: Called by the body, to look at the store while it runs.
        self.during: Callable[[], object] | None = None
        #: Does the library's deferred work, so that it does not count for another contestant.
        self.settle: Callable[[], object] = lambda: None
        self._connection = self.app.connection_for_read()
        self._channel = self._connection.channel()
        self._queue = self.app.amqp.queues[f"speed-{name}"](self._channel)
        self._queue.declare()

    def task(self, body: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Register the task of this app: a no-op, or a library's version of it."""
        return self.app.task(name="bench.charge", shared=False, **options)(body or self.body)

    @property
    def body(self) -> Callable[..., str]:
        """The no-op of every contestant."""

        def charge(order_id: str, amount: int) -> str:
            self.runs += 1
            if self.during is not None:
                self.during()
            return BODY_RESULT

        return charge

    def execute(self) -> Any:
        """Execute the next message as a worker's process does; return the outcome of the call."""
        message = self._queue.get()
        task = self.app.tasks["bench.charge"]
        request = symbol_by_name(task.Request)(
            message,
            app=self.app,
            task=task,
            hostname="bench",
            on_ack=message.ack_log_error,
            on_reject=message.reject_log_error,
        )
        return request.execute()

    def is_empty(self) -> bool:
        """Whether nothing is queued."""
        return self._queue.get(no_ack=True) is None

    def close(self) -> None:
        """Close the connection."""
        self._connection.release()
