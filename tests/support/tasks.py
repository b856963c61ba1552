"""The Celery app and the tasks that the integration tests use, made from plain settings."""

from __future__ import annotations

import os
import sys
import time
import uuid
from typing import Any

from celery import Celery
from celery.exceptions import Ignore, Reject
from kombu import Exchange, Queue
from kombu.common import Broadcast

from celery_idempotent import IdempotentTask
from tests.support import canvas, faults
from tests.support.ledger import Ledger

Settings = dict[str, Any]

#: Where a worker process finds its settings, as JSON.
SETTINGS_VARIABLE = "CELERY_IDEMPOTENT_TEST_SETTINGS"


def make_app(settings: Settings) -> Celery:
    """An app with all tasks; ``test_ledger`` names the ledger, ``test_options`` task options."""
    if settings.get("test_canvas"):
        return canvas.make_app(settings)
    app = Celery("shop")
    app.conf.update(settings)
    if settings.get("test_broadcast"):
        here = Queue(settings["task_default_queue"])
        app.conf.task_queues = (here, Broadcast(settings["test_broadcast"]))
    if settings.get("test_quorum"):
        app.conf.task_queues = tuple(map(_quorum_queue, settings["test_quorum"]))
    ledger = Ledger(settings["test_ledger"])
    options: dict[str, dict[str, Any]] = settings.get("test_options", {})
    _define_idempotent(app, ledger, options)
    _define_plain(app, ledger, options)
    if settings.get("test_bookings"):
        # Imported here: SQLAlchemy takes as long to import as all else, in each of the processes.
        from tests.support import bookings

        bookings.define(app, ledger)
    if settings.get("test_exports"):
        from tests.support import exports

        exports.define(app, ledger)
    if settings.get("test_changing"):
        from tests.support import changing

        changing.define(app, ledger)
    if settings.get("test_repairs"):
        from tests.support import repairs

        repairs.define(app, ledger)
    if settings.get("test_faults"):
        faults.define(app, ledger)
    if settings.get("test_passing_by"):
        _define_passed_by(app, ledger)
    if settings.get("test_locks"):
        from tests.support import locks

        locks.define(app, ledger)
    return app


def _define_passed_by(app: Celery, ledger: Ledger) -> None:
    """A task whose class has its body run by a helper, past the guard."""

    def run(task: Any, args: Any) -> Any:
        return task.run(*args)

    class PassingBy(IdempotentTask):
        abstract = True

        def __call__(self, *args: Any) -> Any:
            return run(self, args)

    @app.task(name="shop.passed_by", shared=False, base=PassingBy, idempotency_key="o:{order}")
    def passed_by(order: Any) -> None:
        """Be run."""
        ledger.write("start", key=order)


def _quorum_queue(name: str) -> Queue:
    """A queue for which Celery has the broker delay messages: on a topic exchange, and no other."""
    exchange = Exchange(f"{name}-topic", type="topic")
    return Queue(name, exchange, name, queue_arguments={"x-queue-type": "quorum"})


def _define_idempotent(app: Celery, ledger: Ledger, options: dict[str, dict[str, Any]]) -> None:
    def task(name: str, **defaults: Any) -> Any:
        chosen = {"bind": True, "base": IdempotentTask, **defaults, **options.get(name, {})}
        return app.task(name=name, shared=False, **chosen)

    def began(self: Any, key: Any) -> None:
        ledger.write(
            "start",
            name=self.name,
            key=key,
            id=self.request.id,
            retries=self.request.retries,
            token=self.idempotency.token,
            attempt=self.idempotency.attempt,
            interrupted=self.idempotency.interrupted,
        )

    def charged(self: Any, order: Any, amount: Any) -> dict[str, Any]:
        ledger.write("effect", name=self.name, key=order, id=self.request.id)
        return {"order": order, "amount": amount, "receipt": uuid.uuid4().hex}

    @task("shop.charge", idempotency_key="order:{order}")
    def charge(self: Any, order: Any, amount: int = 100, gate: str | None = None) -> Any:
        """Start, wait at the gate if there is one, charge, end."""
        began(self, order)
        try:
            if gate is not None:
                ledger.hold(gate)
            return charged(self, order, amount)
        finally:
            ledger.write("end", name=self.name, key=order, id=self.request.id)

    @task("shop.charge_autoretry", autoretry_for=(Exception,), default_retry_delay=0, max_retries=2)
    def charge_autoretry(self: Any, order: Any, amount: int = 100, fails: int = 0) -> Any:
        """Fail so many times, then charge."""
        began(self, order)
        if self.request.retries < fails:
            raise ConnectionError(f"attempt {self.request.retries} of order {order}")
        return charged(self, order, amount)

    @task("shop.charge_flaky", idempotency_key="order:{order}", max_retries=5)
    def charge_flaky(
        self: Any, order: Any, fails: int, countdown: float = 1, headers: Any = None
    ) -> Any:
        """Ask for a retry so many times, then charge."""
        began(self, order)
        if self.request.retries < fails:
            options = {} if headers is None else {"headers": headers}
            raise self.retry(countdown=countdown, **options)
        return charged(self, order, 100)

    @task("shop.charge_later", idempotency_key="order:{order}")
    def charge_later(self: Any, order: Any) -> Any:
        """Ask for a retry, and go on; charge in the next attempt."""
        began(self, order)
        if self.request.retries:
            return charged(self, order, 100)
        self.retry(countdown=1, throw=False)
        return None

    @task("shop.charge_pages", idempotency_key="order:{order}")
    def charge_pages(self: Any, order: Any, gate: str, last: bool = False) -> Any:
        """Go on with another message, and end at the gate; charge in that."""
        began(self, order)
        if last:
            return charged(self, order, 100)
        try:
            raise self.replace(self.s(order, gate, last=True))
        finally:
            ledger.hold(gate)

    @task("shop.never_works", idempotency_key="order:{order}", max_retries=2)
    def never_works(self: Any, order: Any, gate: str, countdown: float = 1) -> Any:
        """Wait at the gate of this attempt, then ask for one more try, for ever."""
        began(self, order)
        ledger.hold(f"{gate}-{self.request.retries}")
        ledger.write("end", name=self.name, key=order, id=self.request.id)
        raise self.retry(exc=ValueError("it never works"), countdown=countdown)

    @task("shop.charge_or_fail", idempotency_key="order:{order}")
    def charge_or_fail(self: Any, order: Any, works_after: str) -> Any:
        """Fail for good until the gate is open; charge from then on."""
        began(self, order)
        if not ledger.is_open(works_after):
            raise ValueError(f"order {order} was declined")
        return charged(self, order, 100)

    @task("shop.fails_at_gate", idempotency_key="order:{order}")
    def fails_at_gate(self: Any, order: Any, gate: str) -> Any:
        """Wait at the gate, then fail for good."""
        began(self, order)
        ledger.hold(gate)
        raise ValueError(f"order {order} was declined")

    @task("shop.first_fails", idempotency_key="order:{order}")
    def first_fails(self: Any, order: Any, gate: str) -> Any:
        """Wait at the gate; the run that began first fails then, every other charges."""
        mine = ledger.count("start", name=self.name, key=order)
        began(self, order)
        ledger.hold(gate)
        if mine == 0:
            raise ValueError(f"order {order} was declined")
        return charged(self, order, 100)

    @task("shop.charge_two_gates", idempotency_key="order:{order}")
    def charge_two_gates(self: Any, order: Any, first: str, second: str) -> Any:
        """Wait at the first gate in the run that began first, at the second in every other."""
        mine = ledger.count("start", name=self.name, key=order)
        began(self, order)
        ledger.hold(first if mine == 0 else second)
        return charged(self, order, 100)

    @task("shop.leave", idempotency_key="order:{order}")
    def leave(self: Any, order: Any, how: str, gate: str | None = None) -> Any:
        """The first time leave as told, without charging; charge every other time."""
        began(self, order)
        if gate is not None:
            ledger.hold(gate)
        if ledger.count("start", name=self.name, key=order) > 1:
            return charged(self, order, 100)
        if how == "ignore":
            raise Ignore
        if how == "exit":
            sys.exit(3)
        if how == "reject":
            raise Reject("not today", requeue=False)
        assert how == "replace"
        raise self.replace(app.tasks["shop.tail"].si(f"replaced {order}"))

    @task("shop.kills_its_process", idempotency_key="order:{order}")
    def kills_its_process(self: Any, order: Any) -> None:
        """Take its pool process down, each time."""
        began(self, order)
        os.kill(os.getpid(), 9)

    @task("shop.busy", idempotency_key="order:{order}")
    def busy(self: Any, order: Any, gate: str) -> Any:
        """Like charge, but takes a soft time limit for an occasion to end as a failure."""
        began(self, order)
        while not ledger.is_open(gate):
            time.sleep(0.02)
        return charged(self, order, 100)

    @task("shop.hand_back", idempotency_key="order:{order}")
    def hand_back(self: Any, order: Any, before: str, after: str) -> Any:
        """Wait at a gate, free the key, wait at another gate, charge."""
        began(self, order)
        ledger.hold(before)
        self.idempotency.release()
        ledger.write("released", name=self.name, key=order, id=self.request.id)
        ledger.hold(after)
        self.idempotency.check()
        return charged(self, order, 100)

    @task("shop.calls_charge", idempotency_key="outer:{order}")
    def calls_charge(self: Any, order: Any) -> Any:
        """Call another idempotent task in the body, as a plain function."""
        began(self, f"outer {order}")
        return app.tasks["shop.charge"](order)

    @task("shop.book", idempotency_key="order:{order}", idempotency_on_interrupted="unknown")
    def book(self: Any, order: Any, gate: str) -> Any:
        """Charge as a step that can be undone, wait at the gate, end."""
        began(self, order)
        refund = app.tasks["shop.refund"]
        receipt = self.idempotency.step("charge", charged, self, order, 100, compensate=refund.s())
        ledger.hold(gate)
        return receipt

    @task("shop.echo", idempotency_key="echo:{name}")
    def echo(self: Any, name: str, answer: Any) -> Any:
        """Return what was given."""
        began(self, name)
        return answer


def _define_plain(app: Celery, ledger: Ledger, options: dict[str, dict[str, Any]]) -> None:
    """Tasks without the library: callbacks that could fire twice, and what plain Celery does."""

    def task(name: str, **defaults: Any) -> Any:
        chosen = {"bind": True, "ignore_result": False, **defaults, **options.get(name, {})}
        return app.task(name=name, shared=False, **chosen)

    @task("shop.tail")
    def tail(self: Any, *values: Any) -> Any:
        """A callback: note what came and pass it on."""
        ledger.write("tail", id=self.request.id, values=values)
        return values[0] if values else None

    @task("shop.refund")
    def refund(self: Any, receipt: Any) -> None:
        """What undoes a charge."""
        ledger.write("refund", id=self.request.id, order=receipt["order"])

    @task("shop.body")
    def body(self: Any, parts: Any) -> Any:
        """A chord's body: note the parts and pass them on."""
        ledger.write("body", id=self.request.id, parts=parts)
        return parts

    @task("shop.errback")
    def errback(self: Any, failed_id: str) -> None:
        """An errback in the form that gets the failed task's id."""
        ledger.write("errback", id=self.request.id, failed=failed_id)

    @task("shop.plain_charge", acks_late=True)
    def plain_charge(self: Any, order: Any, gate: str) -> Any:
        """What charge would be in plain Celery."""
        ledger.write("start", name=self.name, key=order, id=self.request.id)
        try:
            ledger.hold(gate)
            ledger.write("effect", name=self.name, key=order, id=self.request.id)
            return {"order": order, "receipt": uuid.uuid4().hex}
        finally:
            ledger.write("end", name=self.name, key=order, id=self.request.id)
