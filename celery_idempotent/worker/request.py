"""The seam in the worker's parent process: it frees what a dead child of the pool held."""

from __future__ import annotations

import functools
import math
import socket
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, TypeVar

from billiard.common import human_status
from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.concurrency.base import BasePool
from celery.states import REVOKED
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from celery.worker.control import Panel
from celery.worker.request import Request
from celery.worker.state import revoked as revoked_tasks
from celery.worker.state import revoked_stamps, task_ready

from celery_idempotent.core.message import owner_of
from celery_idempotent.core.record import Process, State
from celery_idempotent.core.verdicts import Recorded, Settle
from celery_idempotent.delivery.body import keep_body
from celery_idempotent.delivery.callbacks import AFTER_TRACE, AfterTrace, silence
from celery_idempotent.delivery.celery_events import SENT, Dropped, are_sent, follow_up, name_key
from celery_idempotent.delivery.waiting import HELD, is_answered
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.run.process import BOOT_ID
from celery_idempotent.settings import environment_of
from celery_idempotent.worker.standing import (
    Standing,
    keep_answer,
    nothing,
    standing_of,
    standing_of_copy,
)
from celery_idempotent.worker.waiters import are_held, waiters_of

log = get_logger("celery_idempotent")

T = TypeVar("T")

#: The commands that revoke calls.
_REVOKING: Final = ("revoke", "revoke_by_stamped_headers", "terminate")
#: What a body raises to leave its process; billiard hands that on since 4.3.
_LEAVING: Final = (SystemExit, KeyboardInterrupt)
#: Ends of which Celery tells in this process.
_TOLD_HERE: Final = (TimeLimitExceeded, WorkerLostError, Terminated)
#: How long it may take an attempt to end once its retry is published, in seconds.
_ENDS_WITHIN_S = 60.0
#: For how long the result backend is told that a call is discarded, in seconds.
_TELLS_WITHIN_S: Final = 3600.0


def watch_revokes() -> None:
    """Free the key of a call at once when the call is revoked in its back-off.

    Celery only remembers the task id, or the stamp, and checks it when the message is due.
    """
    for name in _REVOKING:
        if not hasattr(Panel.data[name], "frees_keys"):
            Panel.data[name] = _freeing_keys(Panel.data[name])


def _freeing_keys(revoke: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(revoke)
    def revoke_and_free(state: Any, *args: Any, **kwargs: Any) -> Any:
        # A copy of its message has taken the place of a run there, and left: "task unknown".
        for running in sorted(worker_state.active_requests, key=_began, reverse=True):
            worker_state.requests[running.id] = running
        answer = revoke(state, *args, **kwargs)
        for request in _held_until_due(state.consumer):
            if _is_revoked(request):
                request.free_key()
                waiters_of(state.consumer).discard(request)
        return answer

    revoke_and_free.frees_keys = True  # type: ignore[attr-defined]
    return revoke_and_free


def _can_end(pool: Any) -> bool:
    """Whether a pool ends single jobs; one of processes has the function in itself."""
    return getattr(pool.terminate_job, "__func__", None) is not BasePool.terminate_job


def _began(request: Any) -> float:
    began: float | None = request.time_start
    return began or math.inf


def _is_revoked(request: IdempotentRequest) -> bool:
    """Whether Celery is going to discard a message because of its id, or of one of its stamps."""
    if request.id in revoked_tasks:
        return True
    for name in request.stamped_headers or ():
        stamps, revoked = request.stamps.get(name), revoked_stamps.get(name)
        if stamps is None or revoked is None:
            continue
        if stamps == revoked or any(it in _several(revoked) for it in _several(stamps)):
            return True
    return False


def _has_sqs_delivered(message: Any) -> bool:
    """Whether SQS has delivered a message before: it counts, where other brokers set a flag."""
    received = (message.delivery_info or {}).get("sqs_message") or {}
    count = (received.get("Attributes") or {}).get("ApproximateReceiveCount", "")
    return str(count).isdecimal() and int(count) > 1


def _several(stamps: Any) -> Any:
    return stamps if isinstance(stamps, (list, tuple, set)) else (stamps,)


def _held_until_due(consumer: Any) -> list[IdempotentRequest]:
    entries = [waiting.entry for waiting in list(consumer.timer.schedule.queue)]
    first = [entry.args[0] for entry in entries if entry.args]
    return [it for it in first if isinstance(it, IdempotentRequest)]


def _exception_of(exc_info: Any) -> BaseException:
    exc: BaseException = exc_info.exception
    return exc.exc if isinstance(exc, ExceptionWithTraceback) else exc


def _lost_by(exc: BaseException) -> ExceptionInfo:
    """Say of a body that left its process what is said of each process that is lost."""
    status = type(exc).__name__
    if isinstance(exc, SystemExit):
        code = exc.code if isinstance(exc.code, int) else int(exc.code is not None)
        status = human_status(code)
    try:
        raise WorkerLostError(f"Worker exited prematurely: {status}.")
    except WorkerLostError:
        return ExceptionInfo()


class IdempotentRequest(Request):
    """A request of an :class:`.IdempotentTask`, in the parent."""

    #: Set while it is the first of those that waited for a key: called when it is over.
    leads: Callable[[IdempotentRequest], None] | None = None
    #: Set where the parent told the call's end already, or must not: it stores nothing then.
    _is_told = False
    #: Set where its message was put back for others to answer its call.
    _is_left = False
    #: Set where its greenlet is killed: Celery takes it for one that has returned.
    _is_ended = False
    #: Set where its message has to come again after that.
    _is_cut_off = False
    #: Set while its call's end is told; its message is acknowledged after that.
    _is_telling = False
    _is_to_be_acknowledged = False

    @property
    def request_dict(self) -> Any:
        """As Celery's, which reads this when it hands the message to the pool."""
        info = self._request_dict["delivery_info"]
        info[SENT] = are_sent(self._eventer)
        if _has_sqs_delivered(self._message):
            info["redelivered"] = True
        if are_held():
            info[HELD] = True
        keep_body(self._request_dict, self._message)
        return self._request_dict

    def send_event(self, kind: str, **fields: Any) -> None:
        """As Celery's; a task that starts names its key, and a duplicate is said to be one."""
        followed_by = None
        if kind == "task-started":
            name_key(self, fields)
        elif kind == "task-succeeded":
            killed = fields.get("result") is fields.get("runtime") is None
            if killed and self._is_ended:
                return
            followed_by = follow_up(fields)
        super().send_event(kind, **fields)
        if followed_by is not None:
            super().send_event(followed_by[0], **followed_by[1])

    def acknowledge(self) -> Any:
        """As Celery's; those that wait for the same key hear that it is over.

        Not where its worker has cancelled a greenlet: its message comes again, as a process's does.
        """
        if self._is_telling:
            self._is_to_be_acknowledged = True
            return None
        answer = None if self._is_cut_off else super().acknowledge()
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

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> Any:
        """As Celery's, which puts the message back; a lost child's lease is ended before that.

        Never for a hard time limit: the message is put back before the child is dead.
        """
        exc = _exception_of(exc_info)
        if isinstance(exc, _LEAVING) and not (self._already_cancelled or self._already_revoked):
            # So does Celery since 5.7; before, it failed the call, whatever its options say.
            exc_info = _lost_by(exc)
            exc = _exception_of(exc_info)
        is_over = nothing
        # What a child has told may be what a parent has answered another copy.
        if return_ok and isinstance(exc, WorkerLostError):
            self._say_no_more()  # Celery would tell it once more
        elif not return_ok:
            if isinstance(exc, (WorkerLostError, Terminated)):
                self._try(f"free the key of lost task {self.id}", self._end_lease, None)
            if self._leaves_it_to_others(exc):
                return None
            is_over = self._keep_failure(exc)
        tell = functools.partial(super().on_failure, exc_info, send_failed_event, return_ok)
        if isinstance(exc, _TOLD_HERE) and not return_ok:
            answer = self._tell(tell, is_over)
        else:
            answer = tell()
        if isinstance(exc, Dropped):
            for kind, fields in exc.events():
                self.send_event(kind, **fields)
        if isinstance(exc, TimeLimitExceeded) and not return_ok:
            # Celery calls on_timeout next, which would tell all of it again; or it would tell the
            # failure of a call whose message was put back.
            self._say_no_more()
        return answer

    def _tell(self, tell: Callable[[], T], is_over: Callable[[bool], None]) -> T | None:
        """Have Celery tell the call's end, and acknowledge the message after that.

        Celery acknowledges it first, and where the result backend is away nobody is ever told. Here
        the message is put back then: its next delivery finds the end in the store, and tells it.

        Args:
            is_over: called with whether it was told.
        """
        self._is_telling = True
        try:
            answer = tell()
        except Exception as problem:
            self._is_telling = False
            if self.acknowledged or not self.task.acks_late or isinstance(problem, MemoryError):
                raise
            log.warning(
                "could not tell the end of task %s; its message goes back: %r", self.id, problem
            )
            is_over(False)
            self._leave()
            return None
        self._is_telling = False
        is_over(True)
        if self._is_to_be_acknowledged:
            self.acknowledge()
        return answer

    def _try(self, what: str, act: Callable[[], T], otherwise: T) -> T:
        """Do what its call may need; if it fails, the parent has other tasks to care for."""
        try:
            return act()
        except Exception as problem:
            log.warning("could not %s: %s", what, problem)
            return otherwise

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        """As Celery's; the failure is told once, and by no run that has lost its key.

        A copy of its message, or another call, has answered then, or is about to.
        """
        if soft:
            return super().on_timeout(soft, timeout)
        exc = TimeLimitExceeded(timeout)
        if self._leaves_it_to_others(exc):
            return None
        comes_again = self._comes_again_after(exc)
        if comes_again:
            self._say_no_more()
        is_over = self._keep_failure(exc)
        answer = self._tell(functools.partial(super().on_timeout, soft, timeout), is_over)
        if comes_again:
            self.reject(requeue=True)  # for greenlets Celery does it since 5.7
        return answer

    def _keep_failure(self, exc: BaseException) -> Callable[[bool], None]:
        """Keep a failure that Celery tells in this process, of a run that it has ended.

        Returns:
            To be called with whether it was told, and what hangs on the call has gone out.
        """
        if not isinstance(exc, (TimeLimitExceeded, WorkerLostError)):
            return nothing
        if self._already_cancelled or self._already_revoked:
            return nothing
        return nothing if self._comes_again_after(exc) else self._keep_answer(exc)

    def _keep_answer(self, exc: BaseException | None) -> Callable[[bool], None]:
        if self._is_told:
            return nothing
        what = f"keep what task {self.id} is answered"
        return self._try(what, functools.partial(keep_answer, self, exc), nothing)

    def terminate(self, pool: Any, *args: Any, **kwargs: Any) -> Any:
        """As Celery's; REVOKED is not stored over an answer that another delivery has given.

        What the call is answered is kept before its run is ended: that ends its lease, and a copy
        would take over.
        """
        if self.time_start:
            self._is_ended = bool(pool.is_green)
            if self._stands() in (Standing.ANSWERED, Standing.TOLD):
                self._say_no_more()
            elif _can_end(pool):
                self._keep_answer(None)
        terminate = functools.partial(super().terminate, pool, *args, **kwargs)
        return self._tell(terminate, nothing) if _can_end(pool) else terminate()

    def cancel(self, pool: Any, *args: Any, **kwargs: Any) -> Any:
        """As Celery's, when its connection is lost, or its worker shuts down cold.

        RETRY is not stored over an answer that another delivery has given. A run that the pool
        can't end goes on, and its end is the call's answer.
        """
        if self.time_start and not _can_end(pool):
            return None  # Celery raises here, and in a solo pool that is raised in the body
        self._is_ended = self._is_cut_off = bool(self.time_start and pool.is_green)
        if not self.time_start or self._stands() in (Standing.HOLDS, Standing.OVERTAKEN):
            return super().cancel(pool, *args, **kwargs)
        token = AFTER_TRACE.set(AfterTrace(stores_no_retry=True))
        try:
            return super().cancel(pool, *args, **kwargs)
        finally:
            AFTER_TRACE.reset(token)

    def _comes_again_after(self, exc: BaseException) -> bool:
        """Whether Celery puts the message back, and tells nobody yet."""
        task = self.task
        if isinstance(exc, TimeLimitExceeded):
            both = task.acks_on_failure_or_timeout  # one option for both until Celery 5.7
            return bool(task.acks_late and not getattr(task, "acks_on_timeout", both))
        return bool(task.acks_late and task.reject_on_worker_lost)

    def _leaves_it_to_others(self, exc: BaseException) -> bool:
        """Leave a call whose run was ended from outside, where another delivery answers it.

        The message is put back, and its next delivery gets what holds. On Redis to acknowledge it
        would acknowledge a copy, too.
        """
        if self._is_left:
            return True
        if not isinstance(exc, (TimeLimitExceeded, WorkerLostError)) or self._is_told:
            return False
        if isinstance(exc, WorkerLostError) and self._comes_again_after(exc):
            return False  # nothing is told: the next delivery asks the store itself
        if isinstance(exc, TimeLimitExceeded) and worker_state.should_terminate:
            # In a cold shutdown Celery acknowledges the message, and tells its caller nothing.
            self._leave()
            return True
        if self._already_cancelled or self._already_revoked:
            return False
        standing = self._stands()
        if standing is Standing.HOLDS:
            return False
        if standing is Standing.OVERTAKEN and not self.task.acks_late:
            return False  # no message is left that could wait for the other call
        log.warning(
            "task %s, which had lost its key, was ended by %r: that is told nobody", self.id, exc
        )
        self._leave(told=standing is Standing.TOLD)
        return True

    def _leave(self, *, told: bool = False) -> None:
        self._is_left = True
        self._say_no_more()
        task_ready(self)
        if told:
            self.acknowledge()
        else:
            self.reject(requeue=True)

    def _stands(self) -> Standing:
        what = f"ask whether task {self.id} has its key"
        return self._try(what, functools.partial(standing_of, self), Standing.HOLDS)

    def _say_no_more(self) -> None:
        self._is_told = True
        silence(self._context)

    def revoked(self) -> bool:
        """As Celery's; a call that is discarded in its back-off keeps no key.

        Celery asks this before each execution: the call was revoked, or it has expired. A copy
        waits for the end of its run, which has begun in time: to acknowledge it would acknowledge
        the run's message, too, and to say that it is revoked would be another answer.
        """
        was_known = self._already_revoked
        is_revoked = _is_revoked(self)
        has_expired = self.expires and datetime.now(self.expires.tzinfo) > self.expires
        if not was_known and (is_revoked or has_expired):
            what = f"ask whether task {self.id} is being run"
            ask = functools.partial(standing_of_copy, self, goes_on=not is_revoked)
            standing = self._try(what, ask, Standing.HOLDS)
            if standing is Standing.COPIED:
                return False
            if standing is Standing.ANSWERED:
                self._say_no_more()
        try:
            revoked = bool(super().revoked())
        except Exception as problem:
            # Raised here, it would end the worker's connection to its broker, or the worker.
            log.warning("could not tell that task %s is discarded: %r", self.id, problem)
            what = f"task {self.id} is discarded"
            heartbeat.later(self._tell_discarded, what, _TELLS_WITHIN_S, must=False)
            return True
        if revoked and not was_known:
            self.free_key()
        return revoked

    def _tell_discarded(self) -> None:
        try:
            super().revoked()
        except Exception as problem:
            raise StoreUnavailable(f"the result backend does not take it: {problem}") from problem
        self.free_key()

    @property
    def store_errors(self) -> bool:
        """As Celery's; a copy that is discarded stores no REVOKED over its call's answer."""
        stores = bool(super().store_errors)
        if self._is_told:
            return False
        if not stores or self.worker_pid is not None or not is_answered(self.task, self._context):
            return stores
        # The command that revokes a call stores REVOKED without its name and arguments.
        is_revoked = self.task.backend.get_state(self.id) == REVOKED
        return is_revoked and self.id in revoked_tasks

    def free_key(self) -> None:
        """Free the key that waits for this message, which nobody is going to run."""

        def free() -> None:
            if not self._free_key():
                what = f"task {self.id} is discarded before its retry"
                heartbeat.later(self._free_key_later, what, _ENDS_WITHIN_S, must=False)

        self._try(f"free the key of discarded task {self.id}", free, None)

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
            log.info(
                "task %s lost its process %s: its lease is ended, and the next delivery with its "
                "key decides what follows (idempotency_on_interrupted)",
                self.id,
                self.worker_pid,
            )
            environment.journal.write(
                "process lost",
                key,
                self.task.name,
                self.id,
                node=self.hostname,
                pid=self.worker_pid,
                is_cut_off=True,
            )
