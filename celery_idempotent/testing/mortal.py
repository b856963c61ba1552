"""A process that can die: the store as one delivery sees it, cut off at a chosen point.

What has reached the store by then is there, and what the dying process still says does not reach
it: that is all that a ``SIGKILL`` leaves of a process.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

from celery_idempotent.core.record import State
from celery_idempotent.core.step import Step, StepState, name_of
from celery_idempotent.core.verdicts import (
    Claim,
    Claimed,
    ClaimVerdict,
    Lost,
    Note,
    Recorded,
    Renewal,
    Settle,
)
from celery_idempotent.errors import StoreError
from celery_idempotent.stores.base import Store

_ENDINGS: Final = {
    State.SUCCEEDED: ("after the body, before its result is recorded", "with the result recorded"),
    State.RETRYING: ("after self.retry(), before that is recorded", "with the retry recorded"),
    State.COMPENSATING: ("after the failure, before it is recorded", "before it is undone"),
}
_FAILED: Final = ("after the failure, before it is recorded", "with the failure recorded")
_VERDICTS: Final = {"Claimed": "run", "Replay": "answered again", "Busy": "busy"}


class Killed(BaseException):
    """Stands for ``SIGKILL``: no ``except Exception`` sees it."""


class Script:
    """What is to happen in one play, and what has happened.

    Args:
        dies_at: the number of the point at which the process dies; ``None``: it doesn't.
    """

    def __init__(self, dies_at: int | None = None) -> None:
        self.dies_at = dies_at
        #: The points that were passed, in order.
        self.points: list[str] = []
        #: What the store was told, in order.
        self.ledger: list[str] = []

    def arrive(self, point: str) -> bool:
        """Come to a point; whether the process dies here."""
        dies = len(self.points) == self.dies_at
        self.points.append(point)
        if dies:
            self.ledger.append("killed")
        return dies


class _Mortal:
    """A store as a process sees it that may die."""

    def __init__(self, store: Store, script: Script) -> None:
        self._store = store
        self._script = script
        self._thread = threading.get_ident()
        #: The claim that it was granted, and for which key.
        self.claimed: tuple[str, Claim] | None = None
        self.dead = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _arrive(self, point: str) -> None:
        if self._script.arrive(point):
            self.dead = True
            raise Killed(point)

    @property
    def _is_body(self) -> bool:
        # The heartbeat tells the store things too, from a thread of its own.
        return threading.get_ident() == self._thread

    def claim(self, key: str, ask: Claim) -> ClaimVerdict:
        verdict = self._store.claim(key, ask)
        name = type(verdict).__name__
        going_on = isinstance(verdict, Claimed) and verdict.failed is not None
        self._script.ledger.append("undoing" if going_on else _VERDICTS.get(name, name.lower()))
        if isinstance(verdict, Claimed):
            self.claimed = key, ask
            self._arrive("before the undoing goes on" if going_on else "before the body")
        return verdict

    def settle(self, key: str, event: Settle) -> Recorded | Lost:
        if self.dead:
            return self._last_words(event)
        if not self._is_body:
            return self._store.settle(key, event)
        before, after = _ENDINGS.get(event.record.state, _FAILED)
        self._arrive(before)
        answer = self._store.settle(key, event)
        self._script.ledger.append(str(event.record.state))
        self._arrive(after)
        return answer

    def _last_words(self, event: Settle) -> Recorded:
        if self._is_body and event.record.state not in (State.RUNNING, State.COMPENSATING):
            raise Killed("the body went on after its death: what did it catch?")
        return Recorded(event.record.token)

    def step(self, one: Renewal, name: str, packed: bytes) -> Recorded | Lost:
        return self.passing(name, packed, lambda: self._store.step(one, name, packed))

    def passing(self, name: str, packed: bytes, tell: Any) -> Recorded | Lost:
        """Tell of a step, and come by the points before and after that."""
        if self.dead:
            if self._is_body:
                raise Killed(f"{name_of(name)} was begun after the process had died")
            return Recorded(0)
        undone = Step.unpack(packed).state is StepState.COMPENSATED
        what = f"{'undone ' if undone else ''}{name_of(name)}"
        before = f"undoing {name_of(name)}" if undone else what
        self._arrive(f"after {before}, before that is recorded")
        answer: Recorded | Lost = tell()
        self._script.ledger.append(what)
        self._arrive(f"with {what} recorded")
        return answer

    def renew(self, renewals: Sequence[Renewal]) -> list[Recorded | Lost | StoreError]:
        if self.dead:
            return [Recorded(one.held.token) for one in renewals]
        answers = self._store.renew(renewals)
        if self._is_body:
            self._arrive("after check()")
        return answers

    def note(self, key: str, event: Note) -> None:
        if self.dead:
            return
        self._store.note(key, event)
        if self._is_body and event.slip.digests:
            self._script.ledger.append("callbacks sent")

    def abandon(self, key: str, given_up: Any, ttl_ms: int) -> None:
        if not self.dead:
            self._store.abandon(key, given_up, ttl_ms)


class _MortalTransactional(_Mortal):
    """The same, of a store with transactions."""

    @property
    def transactions(self) -> _MortalTransactional:
        return self

    def begin(self) -> Any:
        if self.dead:
            raise Killed("a transaction was begun after the process had died")
        return _MortalTransaction(self, self._store.transactions.begin())  # type: ignore[union-attr]

    def committing(self, event: Settle, commit: Any, rollback: Any) -> Any:
        """Commit, and come by the points before and after that; the dead commit nothing."""
        try:
            if self.dead:
                raise Killed("a transaction was committed after the process had died")
            self._arrive("after the body, before the commit")
        except Killed:
            rollback()
            raise
        answer = commit()
        self._script.ledger.append(f"{event.record.state}, committed")
        self._arrive("with all of it committed")
        return answer


class _MortalTransaction:
    """A transaction of a process that may die: the database then rolls it back."""

    def __init__(self, owner: _MortalTransactional, real: Any) -> None:
        self._owner = owner
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def step(self, one: Renewal, name: str, packed: bytes) -> Recorded | Lost:
        return self._owner.passing(name, packed, lambda: self._real.step(one, name, packed))

    def commit_step(self, one: Renewal, name: str, packed: bytes) -> Recorded | Lost:
        try:
            return self._owner.passing(
                name, packed, lambda: self._real.commit_step(one, name, packed)
            )
        except Killed:
            self._real.rollback()
            raise

    def commit(self, key: str, event: Settle) -> Any:
        return self._owner.committing(
            event, lambda: self._real.commit(key, event), self._real.rollback
        )


def mortal(store: Store, script: Script) -> Any:
    """Give a store as one delivery sees it, by a script that says when that dies."""
    kind = _Mortal if store.transactions is None else _MortalTransactional
    return kind(store, script)
