"""Where a worker process kills itself, as a test has told it to; and the tasks of the fault tests.

The points are put around the store's and the result backend's methods, in the worker of a test
only. The library has no hook of its own for it, so it costs nobody anything.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import time
import uuid
from typing import Any

from celery import Celery
from celery import signals as celery_signals

from celery_idempotent import ClaimLost, IdempotentTask, signals
from celery_idempotent.core.record import Process, State
from celery_idempotent.core.step import Step, StepState
from celery_idempotent.core.verdicts import Claimed
from celery_idempotent.run import process
from celery_idempotent.stores.redis.store import RedisStore
from celery_idempotent.worker import request
from tests.support.ledger import Ledger

#: Where and what to kill, the first time that a process comes there: ``"recorded@machine"``.
KILL_VARIABLE = "CELERY_IDEMPOTENT_TEST_KILL"
#: Has a process told to end, as a cold shutdown does, when it publishes the body of a chord.
ENDED_VARIABLE = "CELERY_IDEMPOTENT_TEST_ENDED"
#: The host name and the pid that the processes of a worker have, as in a container: ``"web:8"``.
CONTAINER_VARIABLE = "CELERY_IDEMPOTENT_TEST_CONTAINER"

#: The instants at which a process can be killed, in the order in which a run comes to them.
POINTS = ("before the claim", "claimed", "effect made", "recorded", "answered", "noting", "noted")


def kill_at(point: str, victim: str = "process") -> dict[str, str]:
    """The environment of a worker that dies at a point: a pool process, or all of the machine."""
    return {KILL_VARIABLE: f"{point}@{victim}"}


def install(app: Celery, ledger: Ledger) -> None:
    """Put the point that the environment names into this process, and note what is lost."""

    @signals.claim_lost.connect(weak=False)
    def _lost(event: Any = None, **_: Any) -> None:
        ledger.write("lost")

    if os.environ.get(ENDED_VARIABLE):

        @celery_signals.before_task_publish.connect(sender="shop.body", weak=False)
        def _end(**_: Any) -> None:
            if not ledger.count("told to end"):
                ledger.write("told to end")
                signal.raise_signal(signal.SIGTERM)

    host, _, pid = os.environ.get(CONTAINER_VARIABLE, "").partition(":")
    if host:
        _contain(ledger, host, int(pid))
    wanted, _, victim = os.environ.get(KILL_VARIABLE, "").partition("@")
    if wanted:
        _install(app, lambda point: _die(ledger, point, wanted, victim))


def _contain(ledger: Ledger, host: str, pid: int) -> None:
    """Give each process the same names, to itself and to its parent; what else it is, it stays."""

    def named(_host: str, _pid: int, boot: str) -> Process:
        ledger.write("named", host=host, number=pid, boot=boot)
        return Process(host, pid, boot)

    for module in (process, request):
        module.Process = named  # type: ignore[attr-defined]


def _die(ledger: Ledger, point: str, wanted: str, victim: str) -> None:
    if point != wanted or ledger.count("killed"):
        return
    ledger.write("killed", point=point)
    if victim == "machine":
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _install(app: Celery, at: Any) -> None:
    def around(cls: type, name: str, before: Any, after: Any) -> None:
        real = getattr(cls, name)

        @functools.wraps(real)
        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            at(before(*args, **kwargs))
            answer = real(self, *args, **kwargs)
            at(after(answer, *args, **kwargs))
            return answer

        setattr(cls, name, wrapped)

    ends = {State.SUCCEEDED: ("effect made", "recorded"), State.RETRYING: ("retrying", "retried")}

    def ending(place: int, event: Any) -> str:
        return ends.get(event.record.state, ("", ""))[place]

    def step(name: str, packed: bytes) -> str:
        undone = Step.unpack(packed).state is StepState.COMPENSATED
        return f"{'undone' if undone else 'step'} {name}"

    around(
        RedisStore,
        "claim",
        lambda *_: "before the claim",
        lambda answer, *_: "claimed" if isinstance(answer, Claimed) else "",
    )
    around(
        RedisStore,
        "settle",
        lambda key, event: ending(0, event),
        lambda answer, key, event: ending(1, event),
    )
    around(RedisStore, "note", lambda *_: "noting", lambda *_: "noted")
    around(
        RedisStore,
        "step",
        lambda one, name, packed: "",
        lambda answer, one, name, packed: step(name, packed),
    )
    around(
        type(app.backend),
        "store_result",
        lambda *_, **__: "",
        lambda *_, request=None, **__: (
            "answered" if getattr(request, "task", None) == "shop.pay" else ""
        ),
    )


def define(app: Celery, ledger: Ledger) -> None:
    """Define the tasks."""

    def task(name: str, **options: Any) -> Any:
        return app.task(
            name=name,
            **{"bind": True, "base": IdempotentTask, "shared": False, "max_retries": 3, **options},
            idempotency_key="order:{order}",
        )

    def began(self: Any, order: Any) -> int:
        """Note the start, and say how many runs began before."""
        mine = ledger.count("start", key=order)
        ledger.write(
            "start",
            key=order,
            id=self.request.id,
            retries=self.request.retries,
            token=self.idempotency.token,
            interrupted=self.idempotency.interrupted,
            downstream=self.idempotency.key_for("bank"),
            clock=time.time(),
        )
        return mine

    def paid(self: Any, order: Any) -> dict[str, Any]:
        ledger.write("effect", key=order, id=self.request.id)
        return {"order": order, "receipt": uuid.uuid4().hex}

    @task("shop.pay")
    def pay(self: Any, order: Any, gate: str | None = None, retries: int = 0) -> Any:
        """Start, wait at the gate if there is one, retry so many times, then pay."""
        began(self, order)
        if gate is not None:
            ledger.hold(gate)
        if self.request.retries < retries:
            raise self.retry(countdown=0)
        return paid(self, order)

    def invoiced(self: Any, order: Any, gate: str, currency: str | None = None) -> Any:
        key = self.idempotency.key
        interrupted = self.idempotency.interrupted
        ledger.write("start", key=order, name=key, currency=currency, interrupted=interrupted)
        ledger.hold(gate)
        return paid(self, order)

    # All arguments are the key. The next release of the shop has one more, with a default.
    if app.conf.get("test_release", 1) == 1:

        def invoice(self: Any, order: Any, gate: str) -> Any:
            """Wait at the gate, then pay."""
            return invoiced(self, order, gate)
    else:

        def invoice(self: Any, order: Any, gate: str, currency: str = "EUR") -> Any:
            """The same, in a currency."""
            return invoiced(self, order, gate, currency)

    app.task(invoice, name="shop.invoice", bind=True, base=IdempotentTask, shared=False)

    @task("shop.first_retries")
    def first_retries(self: Any, order: Any, gate: str) -> Any:
        """Wait at the gate; the run that began first asks for a retry then, every other pays."""
        mine = began(self, order)
        ledger.hold(gate)
        if mine == 0:
            raise self.retry(countdown=0)
        return paid(self, order)

    @task("shop.asks")
    def asks(self: Any, order: Any, gate: str) -> Any:
        """Wait at the gate, and pay only if the key is still this run's."""
        began(self, order)
        ledger.hold(gate)
        try:
            self.idempotency.check()
        except ClaimLost:
            ledger.write("refused", key=order, token=self.idempotency.token)
            raise
        return paid(self, order)

    @task("shop.stall")
    def stall(self: Any, order: Any, pipe: str) -> Any:
        """The run that began first holds the GIL, as a bad C extension does.

        It does so until somebody opens the named pipe to write into it.
        """
        if began(self, order) == 0:
            ctypes.PyDLL(None).open(pipe.encode(), os.O_RDONLY)
        return paid(self, order)

    @task("shop.ship")
    def ship(self: Any, order: Any, fails: bool = False) -> Any:
        """Three steps that can be undone; fail after them if asked to."""
        began(self, order)
        undo = app.tasks["shop.undo"]

        def do(step: str) -> str:
            ledger.write("step", step=step, token=self.idempotency.token)
            return step

        done = [
            self.idempotency.step(step, do, step, compensate=undo.s())
            for step in ("charge", "pack", "send")
        ]
        if fails:
            raise ValueError(f"order {order} came back")
        return done

    @app.task(name="shop.undo", shared=False)
    def undo(step: str) -> None:
        """What undoes a step."""
        ledger.write("undo", step=step)
