"""The seam in the worker's parent process: it frees what a dead child of the pool held."""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import Terminated, WorkerLostError
from celery.utils.log import get_logger
from celery.worker.control import Panel
from celery.worker.request import Request
from celery.worker.state import revoked as revoked_tasks

from celery_idempotent.core.message import owner_of
from celery_idempotent.core.record import Process, State
from celery_idempotent.core.verdicts import Recorded, Settle
from celery_idempotent.delivery.celery_events import Dropped, follow_up, name_key, say_whether_sent
from celery_idempotent.delivery.waiting import say_whether_held
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.run.process import BOOT_ID
from celery_idempotent.settings import environment_of
from celery_idempotent.worker.waiters import are_held, waiters_of

__all__ = ["IdempotentRequest", "watch_revokes"]

log = get_logger("celery_idempotent")

#: How long it may take an attempt to end once its retry is published, in seconds.
_ENDS_WITHIN_S = 60.0


def watch_revokes() -> None:
    """Free the key of a call at once when the call is revoked in its back-off.

    Celery only remembers the task id, and checks it when the message is due.
    """
    revoke = Panel.data["revoke"]
    if hasattr(revoke, "frees_keys"):
        return

    @functools.wraps(revoke)
    def revoke_and_free(state: Any, *args: Any, **kwargs: Any) -> Any:
        answer = revoke(state, *args, **kwargs)
        for request in _held_until_due(state.consumer):
            if request.id in revoked_tasks:
                request.free_key()
                waiters_of(state.consumer).discard(request)
        return answer

    revoke_and_free.frees_keys = True  # type: ignore[attr-defined]
    Panel.data["revoke"] = revoke_and_free


def _held_until_due(consumer: Any) -> list[IdempotentRequest]:
    entries = [waiting.entry for waiting in list(consumer.timer.schedule.queue)]
    first = [entry.args[0] for entry in entries if entry.args]
    return [it for it in first if isinstance(it, IdempotentRequest)]


class IdempotentRequest(Request):
    """A request of an :class:`.IdempotentTask`, in the parent."""

    #: Set while it is the first of those that waited for a key: called when it is over.
    leads: Callable[[IdempotentRequest], None] | None = None

    @property
    def request_dict(self) -> Any:
        """As Celery's, which reads this when it hands the message to the pool."""
        say_whether_sent(self._request_dict, self._eventer)
        say_whether_held(self._request_dict, are_held())
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

    def acknowledge(self) -> Any:
        """As Celery's; those that wait for the same key hear that it is over."""
        answer = super().acknowledge()
        self._is_over()
        return answer

    def reject(self, requeue: bool = False) -> Any:
        """As Celery's; those that wait for the same key hear that it is over."""
        answer = super().reject(requeue=requeue)
        self._is_over()
        return answer

    def _is_over(self) -> None:
        leads, self.leads = self.leads, None
        if leads is not None:
            leads(self)

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
        answer = super().on_failure(exc_info, *args, **kwargs)
        if isinstance(exc, Dropped):
            for kind, fields in exc.events():
                self.send_event(kind, **fields)
        return answer

    def revoked(self) -> bool:
        """As Celery's; a call that is discarded in its back-off keeps no key.

        Celery asks this before each execution: the call was revoked, or it has expired.
        """
        was_known = self._already_revoked
        revoked = bool(super().revoked())
        if revoked and not was_known:
            self.free_key()
        return revoked

    def free_key(self) -> None:
        """Free the key that waits for this message, which nobody is going to run."""
        try:
            if not self._free_key():
                what = f"task {self.id} is discarded before its retry"
                heartbeat.later(self._free_key_later, what, _ENDS_WITHIN_S, must=False)
        except Exception as problem:
            # It is free when the retry is overdue; the parent has other tasks to care for.
            log.warning("could not free the key of discarded task %s: %s", self.id, problem)

    def _free_key_later(self) -> None:
        if not self._free_key():
            raise StoreUnavailable("its last attempt has not ended yet")

    def record_name(self) -> str | None:
        """Return the name of its call's record; ``None``: the call has no key."""
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

    def _free_key(self) -> bool:
        """Free the key; ``False``: Celery has published the retry, but its attempt is not over."""
        key = self.record_name()
        if key is None:
            return True
        environment = environment_of(self._app)
        record = environment.store.get(key)
        if record is None or record.owner != owner_of(self._context).pack():
            return True
        attempt = self._context.retries or 0
        if record.state is not State.RETRYING or attempt < record.retries:
            return record.state is not State.RUNNING or attempt <= record.retries
        free = record._replace(state=State.RELEASED, until_ms=0)
        answer = environment.store.settle(key, Settle(free, 0, int(environment.horizon * 1000)))
        if isinstance(answer, Recorded):
            log.info("task %s is discarded before its retry: its key is free", self.id)
            environment.journal.write(
                "released", key, self.task.name, self.id, node=self.hostname, why="discarded"
            )
        return True

    def _end_lease(self) -> None:
        if not self.worker_pid:
            return
        environment = environment_of(self._app)
        key = self.record_name()
        if key is None:
            return
        process = Process(socket.gethostname(), self.worker_pid, BOOT_ID).pack()
        owner = owner_of(self._context)
        if environment.store.end_lease(key, owner.pack(), process, owner.slip_key(key)):
            log.info("task %s lost its process %s: its key is free", self.id, self.worker_pid)
            environment.journal.write(
                "process lost",
                key,
                self.task.name,
                self.id,
                node=self.hostname,
                pid=self.worker_pid,
            )
