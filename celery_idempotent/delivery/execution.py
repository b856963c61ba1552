"""What the worker does with a key that was granted: run the body, or undo what a body did."""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from inspect import signature
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from celery.canvas import maybe_signature
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from celery.utils.log import get_logger

from celery_idempotent import observers, signals
from celery_idempotent.core.options import RERUN, UNKNOWN
from celery_idempotent.core.record import State
from celery_idempotent.core.step import Step, StepState
from celery_idempotent.core.transitions import Lost, Recorded
from celery_idempotent.core.unfinished import is_awaitable
from celery_idempotent.delivery.results import Codec, encode_failure, encode_result, replay
from celery_idempotent.delivery.waiting import is_answered, say_retry
from celery_idempotent.errors import (
    ClaimLost,
    ConfigurationError,
    IdempotencyInProgress,
    OutcomeUnknown,
)
from celery_idempotent.run.claim import ClaimAttempt
from celery_idempotent.run.claimant import Ending
from celery_idempotent.run.journal import UnsentEntry
from celery_idempotent.run.run import Run
from celery_idempotent.run.steps import Steps
from celery_idempotent.stores.transactions import NotCommitted
from celery_idempotent.task_checks import refuse_unfinished

if TYPE_CHECKING:
    from celery_idempotent.delivery.guard import Delivery

__all__ = ["Execution"]

log = get_logger("celery_idempotent")

_FIRST_PAUSE_S: Final = 2.0


class Execution:
    """One run of a key, for one delivery.

    Args:
        shadow: it would have run without us, too.
    """

    def __init__(
        self,
        delivery: Delivery,
        run: Run,
        attempt: ClaimAttempt | None = None,
        *,
        shadow: bool = False,
    ) -> None:
        self.delivery = delivery
        self._attempt = attempt
        self.run = run
        self.task = delivery.task
        self.options = delivery.options
        self.steps = Steps(run, Codec(self.task, self.task.app, self.options.max_result_size))
        self._shadow = shadow
        self._is_heard = observers.is_heard("claimed")
        #: Whether it was said how it ended.
        self.told = False
        self._token = 0
        self._began = 0.0

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the body and record its outcome; or go on with a compensation, and fail as it did."""
        delivery, run = self.delivery, self.run
        self.begin()
        if run.failed:
            self._keep_claim()
            return self._compensate(run.failed)
        delivery.say_started(run)
        delivery.show(run, self.steps)
        if run.interruptions:
            delivery.emit_interrupted(run.lease.record, unknown=False)
        try:
            if getattr(delivery.environment.store, "opens_with_body", False):
                run.transaction.open_with_body()
        except NotCommitted as exc:
            self._keep_claim()
            return self._not_committed(exc)
        try:
            self._keep_claim()
            if run.interruptions and self.options.reconcile is not None:
                result = self._reconcile(args, kwargs)
            else:
                result = self.task.run(*args, **kwargs)
            refuse_unfinished(self.task, result)
        except _NobodyKnows as exc:
            return self._unknown(
                exc,
                f"a run of {delivery.name} was cut off, and {exc}: look there, then resolve the "
                "key, or forget it to run it again",
            )
        except BaseException as exc:
            if run.is_elsewhere:
                raise  # a process that the body forked ends, and not the run
            return self._failed(exc)
        if run.is_elsewhere:
            return result
        try:
            verdict = self._succeeded(result)
        except NotCommitted as exc:
            return self._not_committed(exc)
        except Exception as exc:
            if run.transaction.undone or not isinstance(exc, SoftTimeLimitExceeded):
                return self._failed(exc)  # the database refused what the body wrote
            verdict = self._succeeded(result)  # it came once, and too late: the body is done
        if isinstance(verdict, Lost):
            return self._lost(verdict, None, result)
        if self._was_answered(verdict):
            self._leave_answered()
        return delivery.hand_over(result) if delivery.call.callbacks else result

    def _keep_claim(self) -> None:
        """From here on the claim is not undone: it ends as what is done under it does."""
        if self._attempt is not None:
            self._attempt.may_hold = False

    def _succeeded(self, result: Any) -> object:
        outcome = encode_result(self.task.backend, result, self.options.max_result_size)
        return self._end(Ending(State.SUCCEEDED, outcome))

    def _not_committed(self, exc: NotCommitted) -> Any:
        """Have the message come again: the body is done, what it wrote is not, or nobody knows."""
        log.warning("%s has to begin anew: %s", self.delivery.name, exc)
        if exc.sure:
            self._end(Ending(State.RELEASED, answers=False), exc)
        if self.delivery.eager:
            raise exc
        return self.delivery.wait_as_copy(None)

    # --- how a body ends -------------------------------------------------------------------------

    def _failed(self, exc: BaseException) -> Any:
        ending = self.ending_of(exc)
        final = ending.state is State.FAILED or bool(ending.outcome)
        if final and any(self.steps.to_compensate()):
            lease_ms = self.delivery.call.terms.lease_ms
            verdict = self._end(Ending(State.COMPENSATING, ending.outcome, lease_ms), exc)
            if not isinstance(verdict, Lost):
                return self._compensate(ending.outcome, exc)
        else:
            if isinstance(exc, Retry) and self.run.lease.lost is None:
                # Before the key is given up: from then on its next attempt may be answered.
                say_retry(self.task, self.delivery.request, exc.exc, exc)
            verdict = self._end(ending, exc)
        if isinstance(verdict, Lost) and isinstance(exc, Exception):
            return self._lost(verdict, exc)
        if isinstance(exc, Exception) and self._was_answered(verdict):
            self._leave_answered()
        raise exc

    def ending_of(self, exc: BaseException) -> Ending:
        """Give what a body that raised this means for its record."""
        if isinstance(exc, Retry):
            retries = _retries_of(exc, self.delivery.call.retries)
            return Ending(State.RETRYING, b"", _delay_ms(exc.when), retries)
        if isinstance(exc, (Ignore, Reject)):
            return Ending(State.RELEASED, answers=not getattr(exc, "requeue", False))
        unknown = self.options.on_interrupted == "unknown"
        if not isinstance(exc, Exception) or (unknown and isinstance(exc, SoftTimeLimitExceeded)):
            return Ending(State.RUNNING)
        outcome = encode_failure(self.task.backend, exc, self.options.max_result_size)
        return Ending(self._final_state(exc), outcome)

    def _final_state(self, exc: BaseException) -> State:
        stored = self.options.store_failures
        if isinstance(exc, ConfigurationError):
            return State.RELEASED  # it says nothing of the call
        if stored is True or (isinstance(stored, tuple) and isinstance(exc, stored)):
            return State.FAILED
        return State.RELEASED

    def _end(self, ending: Ending, exc: BaseException | None = None) -> object:
        end = self.end_of(ending, exc)
        began = time.perf_counter()
        verdict = self.run.end(ending)
        if observers.observers:
            self.delivery.observe("complete", seconds=time.perf_counter() - began)
        if not isinstance(verdict, Lost):
            self.tell_end(end, unrecorded=verdict is None)
        if verdict is None:
            self.delivery.emit(
                signals.store_unavailable,
                signals.StoreUnavailableEvent,
                None,
                f"could not record that it is {ending.state}",
                "record later",
            )
        return verdict

    def begin(self) -> None:
        """Take up the run, and say so.

        Raises:
            RecordCorrupt: a step that an earlier run finished can't be read.
        """
        if self.run.steps:
            self.steps.take(self.run.steps)
        self._token = self.run.lease.record.token
        self._began = time.monotonic()
        self.delivery.environment.journal.begin(self)
        if self._is_heard:
            self.delivery.observe("claimed", trace=None, **self._claim())

    def claimed(self) -> UnsentEntry:
        """Give what the journal says of its beginning."""
        return self.delivery.event("claimed", self._began, self._claim())

    def _claim(self) -> dict[str, Any]:
        run = self.run
        claim = {
            "token": self._token,
            "attempt": self.delivery.call.retries + 1,
            "interruptions": run.interruptions,
            "compensates": bool(run.failed),
        }
        if self._shadow:
            claim["shadow"] = True
        return claim

    def end_of(self, ending: Ending, exc: BaseException | None = None) -> _End:
        """Give what is to be said of how this run ended; ``exc``: what it raised."""
        now = time.monotonic()
        details: dict[str, Any] = {
            "token": self._token,
            "attempt": self.delivery.call.retries + 1,
            "took": now - self._began,
            "error": None if exc is None else type(exc).__name__,
        }
        if ending.state is State.RETRYING:
            details["delay"] = ending.delay_ms / 1000
        if self._shadow:
            details["shadow"] = True
        what = "interrupted" if ending.state is State.RUNNING else str(ending.state)
        event = self.delivery.event(what, now, details)
        return _End(event, details, observers.is_heard(what))

    def tell_end(self, end: _End, *, unrecorded: bool = False) -> None:
        """Say how this run ended; ``unrecorded``: the store is told later."""
        event, details, is_heard = end
        if unrecorded:
            details["unrecorded"] = True
            event = self.delivery.event(event.what, event.at, details)
        journal = self.delivery.environment.journal
        journal.ended(self)
        journal.put(event)
        self.told = True
        if is_heard:
            self.delivery.observe(event.what, trace=None, **details)

    def let_go(self) -> None:
        """See to it that a run which was cut off is not kept alive, and that it is told of."""
        self.run.let_go()
        if not self.run.is_elsewhere:
            self.delivery.environment.journal.ended(self, silently=True)

    def _was_answered(self, verdict: object) -> bool:
        """Whether a copy of the message has answered the call of this run, which has ended."""
        if isinstance(verdict, Recorded):
            return verdict.answered
        # The store can't say it now, but the result backend may.
        return verdict is None and is_answered(self.task, self.delivery.request)

    def _leave_answered(self) -> NoReturn:
        """Leave a run whose call a copy of its message has answered: that answer stands."""
        delivery = self.delivery
        log.warning(
            "%s: a copy of task %s has answered its call meanwhile: its own end is recorded, and "
            "the answer stays",
            delivery.name,
            delivery.request.id,
        )
        # Not only Ignore: the copy may be unable to send its callbacks, and share our delivery.
        delivery.wait_as_copy(None)

    def _lost(self, lost: Lost, exc: Exception | None, result: Any = None) -> Any:
        """Leave a run whose key is another's now: its caller gets what holds, not what it made."""
        delivery, record = self.delivery, lost.record
        log.warning(
            "%s: task %s lost its key %s to %s: its outcome is refused",
            self.task.name,
            delivery.request.id,
            delivery.name,
            record.owner_id or "nobody (it was forgotten)",
        )
        if record.owner == delivery.call.owner and not delivery.eager:
            if isinstance(exc, Retry) and not (record.is_done or lost.answered):
                raise Ignore("a copy of this message took over")  # its successor is out already
            # Where the call is answered, RETRY may have been stored over that: the copy repeats it.
            delivery.wait_as_copy(None)
        if lost.answered and not delivery.eager:
            self._leave_answered()
        if record.state is State.RELEASED and not record.outcome:
            if exc is not None:
                raise exc
            if self.run.transaction.undone and not delivery.eager:
                delivery.wait_as_copy(None)  # forgotten, and nothing of it happened: it runs again
            return delivery.hand_over(result)
        if isinstance(exc, Retry):
            raise Ignore("another call took over")
        if record.is_done and not delivery.call.callbacks:
            if record.state is State.RELEASED:
                # The record answers its own call only: without a slip, a copy of ours would run.
                delivery.leave_answer(outcome=record.outcome)
            return replay(self.task.backend, record.outcome, delivery.name)
        # With callbacks the note has to be asked: a copy of the message may have sent them.
        if delivery.eager:
            raise IdempotencyInProgress(f"{delivery.name} was taken over by {record.owner_id}")
        return delivery.wait(record, delivery.waits.since_ms, None)

    # --- after an interruption -------------------------------------------------------------------

    def _reconcile(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Ask whether the effect happened, and run the body only if it didn't."""
        ask = self.options.reconcile
        assert ask is not None
        first = (self.task,) if next(iter(signature(ask).parameters), "") == "self" else ()
        try:
            answer = ask(*first, *args, **kwargs)
        except Exception as exc:
            raise _NobodyKnows(f"idempotency_reconcile failed ({exc!r})") from exc
        if is_awaitable(answer):
            raise _NobodyKnows("idempotency_reconcile is async, and was not run")
        if answer is UNKNOWN:
            raise _NobodyKnows("idempotency_reconcile couldn't tell")
        if answer is RERUN:
            return self.task.run(*args, **kwargs)
        return answer

    def _unknown(self, why: BaseException, text: str) -> Any:
        """Leave the outcome to a person, and tell the caller so."""
        verdict = self._end(Ending(State.UNKNOWN))
        if isinstance(verdict, Lost) and isinstance(why, Exception):
            return self._lost(verdict, why)
        self.delivery.emit_interrupted(self.run.lease.record, unknown=True)
        unknown = OutcomeUnknown(text)
        self.delivery.leave_answer(unknown)
        raise unknown from why

    # --- compensation ----------------------------------------------------------------------------

    def _compensate(self, failure: bytes, exc: BaseException | None = None) -> Any:
        """Undo the finished steps in reverse, then fail as the body did."""
        delivery, stuck = self.delivery, []
        try:
            for name, step in self.steps.to_compensate():
                if self.steps.can_undo(name, step):
                    self._undo(name, step)
                else:
                    stuck.append(name)  # the others are undone all the same
        except ClaimLost:
            lost = self.run.lease.lost
            if lost is not None:
                return self._lost(Lost(lost), exc if isinstance(exc, Exception) else None)
            raise
        except BaseException as problem:
            # Its lease ends at once; the next delivery goes on where this one stopped.
            self._end(Ending(State.COMPENSATING, failure))
            if not isinstance(problem, Exception) or delivery.eager:
                raise
            log.exception("%s: a compensation failed, it is tried again", delivery.name)
            pause = _FIRST_PAUSE_S * 4.0 ** min(self.run.interruptions, 5)
            return delivery.wait(self.run.lease.record, delivery.waits.since_ms, None, pause)
        if exc is None:
            try:
                replay(self.task.backend, failure, delivery.name)
            except Exception as stored:
                exc = stored
        assert exc is not None
        if stuck:
            return self._unknown(exc, self._what_is_left(stuck, exc))
        verdict = self._end(Ending(self._final_state(exc), failure), exc)
        if isinstance(verdict, Lost) and isinstance(exc, Exception):
            return self._lost(verdict, exc)
        raise exc

    def _what_is_left(self, stuck: list[str], exc: BaseException) -> str:
        names = ", ".join(map(repr, stuck))
        text = (
            f"{self.delivery.name} failed ({type(exc).__name__}), and what can be undone is "
            f"undone; not undone: {names}, whose compensation takes a result that was not kept. "
            "Undo that by hand, then resolve the key as failed"
        )
        log.error("%s", text)
        return text

    def _undo(self, name: str, step: Step) -> None:
        undo = maybe_signature(json.loads(step.compensation), app=self.task.app)
        if not undo.immutable:
            undo = undo.clone(args=(self.steps.result_of(name, step),))
        if is_awaitable(self.task.app.tasks[undo.task](*undo.args, **undo.kwargs)):
            raise ConfigurationError(f"the compensation {undo.task} is async, and was not run")
        self.steps.record(name, Step(StepState.COMPENSATED, step.order, step.outcome))


class _End(NamedTuple):
    """What is said of a run's end: to the journal, and to whoever observes."""

    event: UnsentEntry
    details: dict[str, Any]
    is_heard: bool


class _NobodyKnows(Exception):
    """It can't be told whether the effect of a run that was cut off happened."""


def _retries_of(exc: Retry, mine: int) -> int:
    """Give which attempt the next message is: a Retry that was made by hand may spend none."""
    coming = None if exc.sig is None else exc.sig.options.get("retries")
    return coming if isinstance(coming, int) and coming >= 0 else mine


def _delay_ms(when: Any) -> int:
    if isinstance(when, datetime):
        now = datetime.now(when.tzinfo or timezone.utc)
        if when.tzinfo is None:
            when = when.replace(tzinfo=timezone.utc)
        return max(0, int((when - now).total_seconds() * 1000))
    if isinstance(when, (int, float)):
        return max(0, int(when * 1000))
    return 0
