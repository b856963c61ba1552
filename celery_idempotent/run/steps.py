"""The steps of one run: each is executed once, and can be undone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol

from celery_idempotent.core.step import Step, StepState
from celery_idempotent.core.unfinished import is_awaitable
from celery_idempotent.core.verdicts import Lost
from celery_idempotent.errors import ClaimLost, ConfigurationError, StoreUnavailable
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.run.run import Run

__all__ = ["StepCodec", "Steps"]

log = logging.getLogger("celery_idempotent")

_MAX_NAME: Final = 200


class StepCodec(Protocol):
    """Turns results and signatures into bytes, and bytes into results."""

    def pack(self, result: Any) -> bytes:
        """Pack a result."""

    def unpack(self, packed: bytes) -> Any:
        """Unpack a result."""

    def pack_signature(self, undo: Any) -> bytes:
        """Pack the signature of a compensation.

        Raises:
            TypeError: it is not a signature, or can't be kept.
        """


class Steps:
    """The steps that this run's key has finished, now or in an earlier run."""

    def __init__(self, run: Run, codec: StepCodec) -> None:
        self._run = run
        self._codec = codec
        self._steps: dict[str, Step] = {}
        self._asked: set[str] = set()
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
        compensation = b"" if compensate is None else self._codec.pack_signature(compensate)
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
        order = 1 + max((step.order for step in self._steps.values()), default=-1)
        step = Step(StepState.DONE, order, self._codec.pack(result), compensation)
        if compensation and not step.is_kept:
            self._not_kept[name] = result
        self.record(name, step)

    def record(self, name: str, step: Step) -> None:
        """Write a step; where the store is away, in the background, since its effect happened.

        Raises:
            ClaimLost: another run has the key.
        """
        self._steps[name] = step
        renewal, packed = self._run.lease.renewal(), step.pack()
        store, lease = self._run.claimant.terms.store, self._run.lease
        lease.record = lease.record._replace(has_steps=True)
        if self._run.transaction.is_open:
            self._run.transaction.step(renewal, self._run.steps_of + name, packed)
            self._check_held(name)
            return

        def write() -> None:
            answer = store.step(renewal, self._run.steps_of + name, packed)
            if isinstance(answer, Lost):
                lease.lose(answer.record)

        try:
            write()
        except BaseException as exc:
            # The store is away, or a soft time limit came: the step is done all the same.
            log.error("could not record step %s of %s, trying again: %s", name, lease.key, exc)
            run = self._run
            run.owed.append(write)
            heartbeat.later(
                lambda: run.pay(write),
                f"step {name} of {lease.key}",
                run.claimant.terms.keep_ms / 1000,
            )
            if not isinstance(exc, StoreUnavailable):
                raise
        self._check_held(name)

    def _check_held(self, name: str) -> None:
        if self._run.lease.lost is not None:
            raise ClaimLost(
                f"step {name!r} is not recorded: another delivery has taken over, or the key was "
                "forgotten; stop"
            )

    def to_compensate(self) -> Iterator[tuple[str, Step]]:
        """Yield the finished steps that have a compensation, the last one first."""
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

    def _check(self, name: str) -> None:
        if not isinstance(name, str) or not name or len(name) > _MAX_NAME:
            raise ValueError(f"a step's name is text of 1 to {_MAX_NAME} characters, not {name!r}")
        if name in self._asked:
            raise ValueError(
                f"step {name!r} was asked for before in this run, and would give that result: in a "
                f"loop, number the steps: f'{name}-{{i}}'"
            )
        self._asked.add(name)
