"""The seam in the worker's parent process: it frees what a dead child of the pool held."""

from __future__ import annotations

import socket
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import Terminated, WorkerLostError
from celery.utils.log import get_logger
from celery.worker.request import Request

from celery_idempotent.calls import owner_of
from celery_idempotent.core.record import Process
from celery_idempotent.core.slip import slip_key
from celery_idempotent.events import follow_up, name_key, say_whether_sent
from celery_idempotent.run.runner import BOOT_ID
from celery_idempotent.settings import environment_of

__all__ = ["IdempotentRequest"]

log = get_logger("celery_idempotent")


class IdempotentRequest(Request):
    """A request of an :class:`.IdempotentTask`, in the parent."""

    @property
    def request_dict(self) -> Any:
        """As Celery's, which looks here when it gives the message to the pool."""
        say_whether_sent(self._request_dict, self._eventer)
        return self._request_dict

    def send_event(self, kind: str, **fields: Any) -> None:
        """As Celery's; a task that starts names its key, and a duplicate is said to be one."""
        followed_by = None
        if kind == "task-started":
            name_key(self, fields)
        elif kind == "task-succeeded":
            followed_by = follow_up(fields)
        super().send_event(kind, **fields)
        if followed_by is not None:
            super().send_event(followed_by[0], **followed_by[1])

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """As Celery's, which puts the message back; a lost child's lease is ended before that.

        Never for a hard time limit: the message is put back before the child is dead.
        """
        exc = exc_info.exception
        if isinstance(exc, ExceptionWithTraceback):
            exc = exc.exc
        if isinstance(exc, (WorkerLostError, Terminated)):
            try:
                self._end_lease()
            except Exception as problem:
                # Its lease ends by itself; the parent has other tasks to care for.
                log.warning("could not free the key of lost task %s: %s", self.id, problem)
        return super().on_failure(exc_info, *args, **kwargs)

    def record_name(self) -> str | None:
        """Give the name of its call's record; ``None``: the call has no key."""
        name: str | None = self.task._record_key(self._context, self.args, self.kwargs)
        return name

    def _retry_worker_lost(self, exc: Any, exc_info: Any) -> Any:
        """With ``retry_on_worker_lost``: the message comes back as it is, where it may.

        As a retry it would look as if its run had ended: nobody would be told, or asked, whether
        the effect happened.
        """
        if self.task.reject_on_worker_lost and self.task.acks_late:
            return False
        return super()._retry_worker_lost(exc, exc_info)

    def _end_lease(self) -> None:
        if not self.worker_pid:
            return
        environment = environment_of(self._app)
        key = self.record_name()
        if key is None:
            return
        process = Process(socket.gethostname(), self.worker_pid, BOOT_ID).pack()
        owner = owner_of(self._context)
        if environment.store.end_lease(key, owner.pack(), process, slip_key(key, owner)):
            log.info("task %s lost its process %s: its key is free", self.id, self.worker_pid)
            environment.journal.write(
                "process lost",
                key,
                self.task.name,
                self.id,
                node=self.hostname,
                pid=self.worker_pid,
            )
