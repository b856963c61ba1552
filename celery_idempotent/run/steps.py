"""The steps of one run: each is executed once, and can be undone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from celery_idempotent.core.step import (
    CHECKPOINT,
    MAX_NAME,
    Step,
    StepState,
)
from celery_idempotent.core.unfinished import is_awaitable
from celery_idempotent.core.verdicts import Lost
from celery_idempotent.errors import ClaimLost, ConfigurationError, StoreUnavailable
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.run.run import Run
from celery_idempotent.run.shutdown import shutdown

log = logging.getLogger("celery_idempotent")


class StepCodec(Protocol):
    """Turns results into bytes and back, and signatures of compensations into their fields' bytes.

    Raises:
        TypeError: what is to be packed as a signature is none, or can't be kept.
    """

    def pack(self, result: Any) -> bytes: ...

    def unpack(self, packed: bytes) -> Any: ...

    def pack_signature(self, undo: Any) -> bytes: ...

    def unpack_signature(self, packed: bytes) -> Any: ...


class Steps:
    """The steps that this run's key has finished, now or in an earlier run, and its checkpoints.

    Several threads of a body may take steps at once.

    Args:
        stops: whether the run may stop at a checkpoint when its worker shuts down.
    """

    def __init__(self, run: Run, codec: StepCodec, *, stops: bool = False) -> None:
        self._run = run
        self._stops = stops
        self._codec = codec
        # Guards names, orders and the body's transaction; it is not held while a step runs.
        self._lock = threading.Lock()
        self._steps: dict[str, Step] = {}
        # The order that was given out last; another thread may still be recording that step.
        self._given = -1
        self._asked: set[str] = set()
        #: The names of steps that earlier runs have finished.
        self._taken: frozenset[str] = frozenset()
        #: Results that the store does not keep, for this run's compensations.
        self._not_kept: dict[str, Any] = {}

    def take(self, packed: Mapping[str, bytes]) -> None:
        """Take over the steps that earlier runs have finished.

        Raises:
            RecordCorrupt: one can't be read.
        """
        start = self._run.steps_of
        self._steps = {
            name.removeprefix(start): Step.unpack(step)
            for name, step in packed.items()
            if name.startswith(start)
        }
        self._taken = frozenset(
            name
            for name, step in self._steps.items()
            if step.state is StepState.DONE and not name.startswith(CHECKPOINT)
        )

    def tell_unasked(self) -> None:
        """Warn of steps that an earlier run has finished, and that the body never asked for."""
        for name in sorted(self._taken - self._asked):
            log.warning(
                "%s: step %r was finished by an earlier run, and this run did not ask for it: if a "
                "release renamed it, its effect may have happened again under the new name",
                self._run.claimant.key,
                name,
            )

    def do(
        self,
        name: str,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        compensate: Any = None,
    ) -> Any:
        """Call ``fn`` and record its result, or return the result that was recorded.

        Raises:
            ClaimLost: another run has the key: the effect happened, and is not recorded.
            ConfigurationError: ``fn`` is async: nothing happened.
        """
        self._check(name)
        try:
            compensation = b"" if compensate is None else self._codec.pack_signature(compensate)
        except TypeError as exc:
            raise TypeError(f"step {name!r}: {exc}") from exc
        done = self._steps.get(name)
        if done is not None and done.state is StepState.DONE:
            return self._codec.unpack(done.outcome)
        if self._run.lease.lost is not None:
            raise ClaimLost(f"step {name!r} was not begun: this run has lost its key")
        result = fn(*args, **kwargs)
        if is_awaitable(result):
            raise ConfigurationError(
                f"step {name!r} returned an awaitable, and nothing awaits it: give it a "
                "plain function, such as one that returns asyncio.run(...)"
            )
        try:
            self._done(name, result, compensation)
        except BaseException:
            # A soft time limit, which comes only once, came before the record: the step is done.
            if self._steps.get(name) is done:
                self._done(name, result, compensation)
            raise
        return result

    def _done(self, name: str, result: Any, compensation: bytes) -> None:
        step = Step(StepState.DONE, self._next_order(), self._codec.pack(result), compensation)
        if compensation and not step.is_kept:
            self._not_kept[name] = result
        self.record(name, step)

    def _next_order(self) -> int:
        with self._lock:
            last = max((step.order for step in self._steps.values()), default=-1)
            self._given = 1 + max(last, self._given)
            return self._given

    def record(self, name: str, step: Step) -> None:
        """Write a step; where the store is away, in the background, since its effect happened.

        Raises:
            ClaimLost: another run has the key.
        """
        stored, what = self._run.steps_of + name, f"step {name!r}"
        packed = step.pack()
        store, lease = self._run.claimant.terms.store, self._run.lease
        with self._lock:
            self._steps[name] = step
            renewal = lease.renewal()
            lease.record = lease.record._replace(has_steps=True)
            is_inside = self._run.transaction.is_open
            if is_inside:
                self._run.transaction.step(renewal, stored, packed)
        if is_inside:
            self._check_held(what)
            return

        def write() -> None:
            answer = store.step(renewal, stored, packed)
            if isinstance(answer, Lost):
                lease.lose(answer.record)

        try:
            write()
        except BaseException as exc:
            # The store is away, or a soft time limit came: the step is done all the same.
            log.error("could not record %s of %s, trying again: %s", what, lease.key, exc)
            run = self._run
            run.owed.append(write)
            heartbeat.later(
                lambda: run.pay(write),
                f"{what} of {lease.key}",
                run.claimant.terms.keep_ms / 1000,
            )
            if not isinstance(exc, StoreUnavailable):
                raise
        self._check_held(what)

    def _check_held(self, what: str) -> None:
        if self._run.lease.lost is not None:
            raise ClaimLost(
                f"{what} is not recorded: another delivery has taken over, or the key was "
                "forgotten; stop"
            )

    def cursor(self, name: str) -> Any:
        """Return the cursor that was recorded last, or ``None``."""
        step = self._steps.get(CHECKPOINT + name)
        return None if step is None else self._codec.unpack(step.outcome)

    def reach(self, name: str, cursor: Any) -> None:
        """Record a cursor, and in a session commit what the body wrote so far with it.

        Where the store is away, the cursor is not recorded: the next one will be.

        Raises:
            ClaimLost: another run has the key: the cursor is not recorded.
            NotCommitted, Exception: as :meth:`.Transaction.commit_step`.
            ValueError: the cursor is ``None``, or can't be kept.
        """
        if cursor is None:
            raise ValueError("a cursor of None means: from the beginning; give an id or a position")
        what, stored = CHECKPOINT + name, self._run.steps_of + CHECKPOINT + name
        outcome = self._codec.pack(cursor)
        run, lease = self._run, self._run.lease
        with self._lock:
            step = Step(StepState.DONE, self._order_of(what), outcome)
            if not step.is_kept:
                raise ValueError(
                    f"the cursor {cursor!r:.80} can't be kept: use an id or a position, which the "
                    "result serializer takes"
                )
            self._steps[what] = step
            is_inside = lease.lost is None and run.transaction.is_open
            if lease.lost is None:
                renewal = lease.renewal()
                lease.record = lease.record._replace(has_steps=True)
            if is_inside:
                run.transaction.checkpoint(renewal, stored, step.pack())
        if lease.lost is None and not is_inside:
            try:
                answer = run.claimant.terms.store.step(renewal, stored, step.pack())
            except StoreUnavailable as exc:
                log.warning("could not record how far %s has come: %s", lease.key, exc)
                return
            if isinstance(answer, Lost):
                lease.lose(answer.record)
        self._check_held(f"checkpoint {cursor!r:.80}")

    def _order_of(self, checkpoint: str) -> int:
        """Return a checkpoint's place: behind all that was recorded before its latest cursor.

        0 is no place: an older release wrote it.
        """
        others = (it.order for name, it in self._steps.items() if name != checkpoint)
        last = max(0, self._given, *others)
        before = self._steps.get(checkpoint)
        return before.order if before is not None and before.order > last else last + 1

    @property
    def may_stop(self) -> bool:
        """Whether the run is to stop at a checkpoint, since its worker shuts down."""
        return self._stops and shutdown.is_announced()

    @property
    def are_kept(self) -> bool:
        """Whether a step of this run, or of an earlier one, is kept with the key."""
        return bool(self._steps)

    def to_compensate(self) -> Iterator[tuple[str, Step]]:
        """Yield the finished steps that have a compensation, the last one first."""
        with self._lock:
            waiting = [
                (name, step)
                for name, step in self._steps.items()
                if step.state is StepState.DONE and step.compensation
            ]
        yield from sorted(waiting, key=lambda item: -item[1].order)

    def can_undo(self, name: str, step: Step) -> bool:
        """Whether a step's compensation has the result that it needs."""
        return name in self._not_kept or step.can_be_undone

    def result_of(self, name: str, step: Step) -> Any:
        """Return the result of a finished step."""
        return self._not_kept[name] if name in self._not_kept else self._codec.unpack(step.outcome)

    def compensation_of(self, step: Step) -> Any:
        """Return the fields of the signature that undoes a step."""
        return self._codec.unpack_signature(step.compensation)

    def _check(self, name: str) -> None:
        if not isinstance(name, str) or not name or len(name) > MAX_NAME:
            raise ValueError(f"a step's name is text of 1 to {MAX_NAME} characters, not {name!r}")
        if name.startswith(CHECKPOINT):
            raise ValueError(f"a step's name can't begin with {CHECKPOINT}, as {name!r} does")
        with self._lock:
            was_asked = name in self._asked
            self._asked.add(name)
        if was_asked:
            raise ValueError(
                f"step {name!r} was asked for before in this run, and would give that result: in a "
                f"loop, number the steps: f'{name}-{{i}}'"
            )
