"""One act on one side: its faults, and the evidence in the ledger and the answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from celery import chord
from celery.result import AsyncResult

from examples.demo.ledger import Entry
from examples.demo.stage import IDEMPOTENT, DemoFailed, Stage

__all__ = ["LABELS", "Evidence", "Scene"]

LABELS = {"plain": "plain Celery", "idempotent": "IdempotentTask"}

#: It ends a demo that hangs; on a quiet machine no act takes a third of it.
_PATIENCE_SECONDS = 30.0
_LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Evidence:
    """The evidence of one act on one side, from the ledger and from ``AsyncResult.get()``.

    Attributes:
        orders: the order of each call.
        answers: the answer to each call: a payment, an exception, or None while it waits.
        total: the answer of a chord's body.
        entries: the ledger's lines of this act.
    """

    orders: tuple[str, ...] = ()
    answers: tuple[Any, ...] = ()
    total: Any = None
    entries: tuple[Entry, ...] = field(default=(), repr=False)

    @property
    def calls(self) -> int:
        """How often a caller asked for a charge."""
        return len(self.orders)

    @property
    def charges(self) -> int:
        """How often money moved."""
        return self.count("charged")

    @property
    def answered(self) -> int:
        """How many callers got a payment as their answer."""
        return sum(isinstance(answer, dict) for answer in self.answers)

    @property
    def attempts(self) -> int:
        """How often the task's body began."""
        return self.count("began")

    @property
    def redeliveries(self) -> int:
        """How often a message reached a task that the broker had delivered before."""
        return sum(entry.event == "delivered" and entry.redelivered for entry in self.entries)

    @property
    def overlaps(self) -> int:
        """How often a body began while another one was busy with the same order."""
        busy: list[Entry] = []
        found = 0
        for entry in self.entries:
            if entry.event == "began":
                found += any(other.order == entry.order for other in busy)
                busy.append(entry)
            elif entry.event in ("charged", "declined"):
                # A pool child runs one body at a time.
                busy = [other for other in busy if other.pid != entry.pid]
            elif entry.event == "killed":
                busy = [other for other in busy if other.worker != entry.worker]
        return found

    def count(self, event: str) -> int:
        """Return how many lines there are of this event."""
        return sum(entry.event == event for entry in self.entries)

    def receipts(self, order: str) -> set[str]:
        """Return the receipts that the callers of one order got."""
        given = [answer for answer in self.answers if isinstance(answer, dict)]
        return {answer["receipt"] for answer in given if answer["order"] == order}

    def charged(self, order: str) -> list[str]:
        """Return the receipts of one order in the ledger, one for each movement of money."""
        return [
            entry.receipt
            for entry in self.entries
            if entry.event == "charged" and entry.order == order
        ]


class Scene:
    """Plays an act: calls tasks, watches the ledger, kills workers, and collects the answers.

    Attributes:
        side: "plain" or "idempotent".
        doing: what it does or waits for at the moment, for the audience.
        failure: why it could not be played to its end.
    """

    def __init__(self, stage: Stage, side: str, act_name: str, say: Callable[[str], None]) -> None:
        self.side = side
        self.doing = ""
        self.failure: str | None = None
        self._stage = stage
        self._act_name = act_name
        self._say = say
        self._orders: list[str] = []
        # Ids, not results: see Stage.close.
        self._calls: list[str] = []
        self._answers: dict[int, Any] = {}
        self._total_call: str | None = None
        self._total: Any = None
        self._final: Evidence | None = None
        # An act ends when nothing more happens, so that all new lines of this side are this act's.
        self._first_entry = len(stage.ledger.of(side))

    @property
    def evidence(self) -> Evidence:
        """Return the evidence so far."""
        if self._final is not None:
            return self._final
        orders = tuple(self._orders)
        return Evidence(
            orders,
            tuple(self._answers.get(number) for number in range(len(orders))),
            self._total,
            tuple(self._stage.ledger.of(self.side)[self._first_entry :]),
        )

    @property
    def done(self) -> bool:
        """Whether it is over and its figures are final."""
        return self._final is not None

    def end(self) -> None:
        """Fix the figures: later lines of this side belong to the next act."""
        self._final = self.evidence

    def say(self, what: str) -> None:
        """Show the audience what it does now."""
        self.doing = what
        self._say(what)

    def order(self, name: str = "1") -> str:
        """Return an order that no other act pays."""
        return f"{self._act_name}-{name}"

    def call(
        self, order: str, amount: int = 100, *, spelled_out: bool = False, **more: Any
    ) -> None:
        """Call the charge task; two ways of writing one call are the same call."""
        if spelled_out:
            call_id = self._task.delay(amount=amount, order_id=order, **more).id
        else:
            call_id = self._task.delay(order, amount, **more).id
        self._orders.append(order)
        self._calls.append(call_id)

    def pay(self, task: str, order: str, **more: Any) -> None:
        """Call a payment task by its name."""
        self._orders.append(order)
        self._calls.append(self._stage.shop.app.send_task(task, (order,), more).id)

    def kill_in_mid_payment(self, orders: list[str]) -> None:
        """SIGKILL in turn the workers that have just paid these orders and not answered yet."""
        moved = [self.wait_for("moved", order=order) for order in orders]
        for entry in {entry.worker: entry for entry in moved}.values():
            self._stage.kill_worker_of(entry)
        if self.count_of("moved") > len(orders):
            raise DemoFailed("the kill came too late: an attempt had ended already")

    def count_of(self, event: str) -> int:
        """Return how many lines there are of this event so far."""
        return self.evidence.count(event)

    def read_the_bank(self) -> None:
        """Copy the payments in the last act's databases to the ledger, one line each."""
        for payment in self._stage.payments(self.side):
            self._stage.ledger.write(
                Entry("charged", side=self.side, order=payment.order, receipt=payment.receipt)
            )

    def call_chord(self, orders: list[str], amount: int = 100, **more: Any) -> None:
        """Call one charge for each order, and the total of all of them."""
        header = [self._task.s(order, amount, **more) for order in orders]
        body = self._stage.shop.total.s().set(queue=self.side)
        result = chord(header)(body)
        self._total_call = result.id
        self._orders.extend(orders)
        self._calls.extend(part.id for part in result.parent.results)

    def wait_for(self, event: str, **like: Any) -> Entry:
        """Wait until the ledger has such a line."""
        found: list[Entry] = []

        def looked() -> bool:
            for entry in self.evidence.entries:
                if entry.event == event and all(getattr(entry, k) == v for k, v in like.items()):
                    found.append(entry)
            return bool(found)

        self._wait(looked, f"no line {event!r} {like or ''} in the ledger")
        return found[0]

    def wait_for_answer(self, number: int) -> None:
        """Wait for the answer to one call."""
        self._answers[number] = self._answer_of(self._calls[number], f"call {number + 1}")

    def kill_worker_of(self, entry: Entry) -> None:
        """SIGKILL the worker that wrote this line, and make sure that its charge was unfinished."""
        self._stage.kill_worker_of(entry)
        late = [e for e in self.evidence.entries if e.event == "charged" and e.pid == entry.pid]
        if late:
            raise DemoFailed("the kill came too late: the charge was done already")

    def finish(self) -> None:
        """Collect the answers, and wait until nothing more can happen."""
        for number in range(len(self._calls)):
            if number not in self._answers:
                self.wait_for_answer(number)
        if self._total_call is not None:
            self._total = self._answer_of(self._total_call, "the chord's body")
        self.doing = "waiting until nothing is queued or running"
        quiet = 0

        def calm() -> bool:
            # Twice in a row, because a message is nowhere for a moment after it left its queue.
            nonlocal quiet
            quiet = quiet + 1 if self._stage.quiet(self.side) else 0
            return quiet >= 3 and self._stage.ready(self.side)

        self._wait(calm, "messages were still queued or running")

    @property
    def _task(self) -> Any:
        shop = self._stage.shop
        return shop.charge if self.side == IDEMPOTENT else shop.plain_charge

    def _answer_of(self, call_id: str, whose: str) -> Any:
        result = AsyncResult(call_id, app=self._stage.shop.app)
        self._wait(result.ready, f"no answer to {whose}")
        try:
            return result.get(timeout=_PATIENCE_SECONDS)
        except Exception as exc:
            return exc

    def _wait(self, happened: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not happened():
            if time.monotonic() > deadline:
                raise DemoFailed(f"{otherwise} within {_PATIENCE_SECONDS:.0f} s")
            if self._stage.stopping.wait(_LOOK_SECONDS):
                raise DemoFailed("interrupted")
