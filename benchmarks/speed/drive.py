"""One message's whole way in one process: published, taken off the queue, run, acknowledged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.utils.imports import symbol_by_name

__all__ = ["BODY_RESULT", "Line"]

#: What every body gives: 64 bytes as JSON.
BODY_RESULT = "x" * 62


class Line:
    """An app with a queue in memory, and Celery's own ``Request`` to execute what is in it.

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
        #: Called by the body, to look at what is there while it runs.
        self.during: Callable[[], object] | None = None
        #: Does what the library left for later, so that its time isn't another contestant's.
        self.settle: Callable[[], object] = lambda: None
        self._connection = self.app.connection_for_read()
        self._channel = self._connection.channel()
        self._queue = self.app.amqp.queues[f"speed-{name}"](self._channel)
        self._queue.declare()

    def task(self, body: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Register the task of this app: a no-op, or what a library made of one."""
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
        """Execute the next message as a worker's process does; what the call came to."""
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
        """Give back the connection."""
        self._connection.release()
