"""Every way in which a run of a task can be cut off, played in this process."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from celery_idempotent.core.record import Record
from celery_idempotent.settings import everywhere
from celery_idempotent.stores.base import Store
from celery_idempotent.task import IdempotentTask
from celery_idempotent.testing.deliveries import Message, message_of, results_of
from celery_idempotent.testing.memory import MovableStore
from celery_idempotent.testing.mortal import Killed, Script, mortal

UNDISTURBED: Final = "undisturbed"
BEFORE_THE_ACK: Final = "with everything done, before the ack"
_MOST_DELIVERIES: Final = 50
#: Nobody has so many steps; a task that loops without end does.
_MOST_POINTS: Final = 1000


@dataclass(frozen=True, repr=False)
class Crash:
    """A call whose worker died at one point, and that was delivered again until it had ended."""

    #: Where it died, in words; ``"undisturbed"`` for the run that went through.
    point: str
    #: How the call ended for its caller, as in Celery: SUCCESS or FAILURE.
    state: str
    #: What the caller got: the result, or the exception.
    result: Any
    #: What happened, in order: ``run``, ``step 'hotel'``, ``killed``, ``run``, ``succeeded``.
    ledger: tuple[str, ...]
    #: What the task published besides: its callbacks, and what its body sent.
    published: tuple[Message, ...] = ()
    #: The record that is left.
    record: Record | None = field(default=None)

    @property
    def runs(self) -> int:
        """How often the body ran, or began to."""
        return self.ledger.count("run")

    def __str__(self) -> str:
        where = self.point if self.point == UNDISTURBED else f"killed {self.point}"
        return f"{where}: {', '.join(self.ledger)}; {self.state}: {self.result!r}"

    __repr__ = __str__


def crash_points(
    task: Any,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    fresh: Callable[[], object] = lambda: None,
    store: Callable[[], Store] = MovableStore,
    **options: Any,
) -> Iterator[Crash]:
    """Run a task once for each point at which its worker can die, and then its redelivery.

    ::

        for crash in crash_points(charge, (42, 100), fresh=bank.reset):
            assert len(bank.charges) == 1, crash

    First it runs undisturbed. Then, for each point that it came by, everything begins anew: it
    runs up to there, dies, and is delivered again until it has ended. The points: before the body;
    after each step, before and after that is recorded; after ``check()``; after the body (or its
    failure, or ``self.retry()``), before and after that is recorded; before the ack. Retries and
    waits are followed; no time passes for them.

    Args:
        task: an ``IdempotentTask``; it must do the same in each run.
        args, kwargs: what it is called with.
        fresh: puts what the task has effects on back to the beginning; called before each run.
        store: makes the store of each run; one in memory by default. Give one where the task uses
            ``self.idempotency.session``.
        options: as for ``apply_async``.

    Yields:
        What each came to, as soon as it has: assert on it, and on what the effects left.

    Raises:
        AssertionError: the task did not do the same again, or never ended.
    """
    if not isinstance(task, IdempotentTask):
        raise TypeError(f"crash_points() takes an IdempotentTask, not {task!r}")

    def play(point: str, script: Script, *, acked: bool = True) -> Crash:
        fresh()
        results_of(task.app).clear()
        message = message_of(task, args, kwargs, **options)
        return _Play(task, message, store(), script).to_its_end(point, acked=acked)

    undisturbed = Script()
    yield play(UNDISTURBED, undisturbed)
    assert len(undisturbed.points) <= _MOST_POINTS, f"{task.name} does too much for one test"
    for number, point in enumerate(undisturbed.points):
        script = Script(dies_at=number)
        crash = play(point, script)
        assert script.points[number : number + 1] == [point], (
            f"{task.name} went another way when it was to die {point}: crash_points() needs a task "
            "that does the same in each run: put back with fresh= what it depends on"
        )
        yield crash
    yield play(BEFORE_THE_ACK, Script(), acked=False)


class _Play:
    """One call, from its first delivery to its end."""

    def __init__(self, task: Any, message: Message, store: Store, script: Script) -> None:
        self._task = task
        self._message = message
        self._store = store
        self._script = script
        self._published: list[Message] = []

    def to_its_end(self, point: str, *, acked: bool) -> Crash:
        """Deliver all that there is of the call, also what it puts back, until nothing is left."""
        waiting = deque([(self._message, False)])
        if not acked:
            waiting.append((self._message, True))
        for _ in range(_MOST_DELIVERIES):
            if not waiting:
                break
            message, redelivered = waiting.popleft()
            self._let_pass(message.countdown)
            published: list[Message] = []
            if not self._survives(message, published, redelivered):
                # The broker delivers what was never acknowledged.
                waiting.appendleft((message, True))
            for sent in published:
                if sent.task_id == self._message.task_id:
                    waiting.append((sent, False))
                else:
                    self._published.append(sent)
        else:
            raise AssertionError(
                f"{self._task.name} has not ended after {_MOST_DELIVERIES} deliveries (killed "
                f"{point}): {', '.join(self._script.ledger)}"
            )
        result = self._task.app.AsyncResult(
            self._message.task_id, backend=results_of(self._task.app)
        )
        with everywhere(self._store):
            try:
                record = self._task.idempotency_record(*self._message.args, **self._message.kwargs)
            except Exception:
                record = None  # its key isn't in its arguments
        return Crash(
            point,
            result.state,
            result.result,
            tuple(self._script.ledger),
            tuple(self._published),
            record,
        )

    def _survives(self, message: Message, published: list[Message], redelivered: bool) -> bool:
        process = mortal(self._store, self._script)
        try:
            with everywhere(process), _without_last_words(process):
                message.deliver_into(published, redelivered=redelivered)
        except Killed:
            self._end_leases(process)
            return False
        assert not process.dead, f"{self._task.name} lived on: what did it catch?"
        return True

    def _end_leases(self, process: Any) -> None:
        setup = self._task._setup()
        if isinstance(self._store, MovableStore):
            self._store.advance(setup.options.lease)
        elif process.claimed is not None:
            key, ask = process.claimed
            self._store.end_lease(key, ask.candidate.owner, ask.candidate.process)

    def _let_pass(self, seconds: float) -> None:
        if isinstance(self._store, MovableStore):
            self._store.advance(seconds)


@contextmanager
def _without_last_words(process: Any) -> Iterator[None]:
    """Keep out of the log what a dead process could not have written."""
    log = logging.getLogger("celery_idempotent")

    def alive(_: logging.LogRecord) -> bool:
        return not process.dead

    log.addFilter(alive)
    try:
        yield
    finally:
        log.removeFilter(alive)
