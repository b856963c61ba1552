"""The acts: the faults for both sides, and the promises that the idempotent side must keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from examples.demo.scene import Evidence, Scene
from examples.demo.stage import IDEMPOTENT

__all__ = ["ACTS", "Act", "Promise"]


@dataclass(frozen=True)
class Promise:
    """A sentence, and a check whether the evidence confirms it."""

    says: str
    kept: Callable[[Evidence], bool]


@dataclass(frozen=True)
class Act:
    """One fault, which is the same for plain Celery and for IdempotentTask.

    Attributes:
        name: its name for ``--act``.
        title: its title in the table.
        told: a sentence that describes it.
        play: plays it on one side.
        promises: what must hold on the idempotent side.
        fault: shows that the fault took place; without it the promises prove nothing.
    """

    name: str
    title: str
    told: str
    play: Callable[[Scene], None]
    promises: tuple[Promise, ...]
    fault: Promise | None = None

    def broken(self, evidence: Evidence) -> list[Promise]:
        """Return the promises that this evidence does not confirm, the fault first."""
        wanted = (self.fault, *self.promises) if self.fault else self.promises
        return [promise for promise in wanted if not promise.kept(evidence)]


def _one_charge_an_order(evidence: Evidence) -> bool:
    return all(len(evidence.charged(order)) == 1 for order in set(evidence.orders))


def _all_answered_alike(evidence: Evidence) -> bool:
    orders = set(evidence.orders)
    alike = all(evidence.receipts(order) == set(evidence.charged(order)) for order in orders)
    return alike and evidence.answered == evidence.calls


def _one_gateway_key(evidence: Evidence) -> bool:
    keys = {entry.gateway_key for entry in evidence.entries if entry.event == "began"}
    return len(keys) == 1 and "" not in keys


ONE_CHARGE = Promise("each order is charged once", _one_charge_an_order)
ALL_ANSWERED = Promise(
    "every call is answered, and with the receipt of that one charge", _all_answered_alike
)
REDELIVERED = Promise(
    "the broker delivered the message again", lambda evidence: evidence.redeliveries > 0
)


def _at_once(scene: Scene) -> None:
    scene.say("ten equal calls")
    for number in range(10):
        scene.call(scene.order(), spelled_out=number % 2 == 1, bank_seconds=0.5)


def _later(scene: Scene) -> None:
    scene.say("one call")
    scene.call(scene.order())
    scene.wait_for_answer(0)
    scene.say("it is answered; the same call again")
    scene.call(scene.order(), spelled_out=True)


def _back_off(scene: Scene) -> None:
    scene.say("one call, to be declined twice")
    scene.call(scene.order(), declines=2)
    for retries, duplicates in ((0, 2), (1, 3)):
        declined = scene.wait_for("declined", retries=retries)
        scene.wait_for("left", task_id=declined.task_id, retries=retries)
        scene.say(f"declined; {duplicates} equal calls in the back-off")
        for _ in range(duplicates):
            scene.call(scene.order(), declines=2)


def _kill(scene: Scene) -> None:
    scene.call(scene.order(), bank_seconds=2)
    began = scene.wait_for("began")
    scene.kill_worker_of(began)
    scene.say("worker killed in mid-charge; its caller, hearing nothing, calls again")
    scene.call(scene.order(), bank_seconds=2)
    scene.wait_for("delivered", redelivered=True, task_id=began.task_id)
    scene.say("the broker delivered the killed task again")


def _overrun(scene: Scene) -> None:
    scene.say("one call that takes longer than the broker's visibility timeout")
    scene.call(scene.order(), bank_seconds=7)
    scene.wait_for("delivered", redelivered=True)
    scene.say("delivered again, while the first delivery still runs")


def _chord(scene: Scene) -> None:
    scene.say("a chord of four charges, two of them for one order")
    names = ("1", "2", "1", "3")
    scene.call_chord([scene.order(name) for name in names], bank_seconds=0.5)


_MEANS = {
    "keyed": "shop.pay_keyed",
    "session": "vault.pay_in_session",
    "steps": "shop.pay_in_steps",
}


def _cut(scene: Scene) -> None:
    orders = [scene.order(means) for means in _MEANS]
    for order, (means, task) in zip(orders, _MEANS.items(), strict=True):
        if scene.side == IDEMPOTENT:
            scene.pay(task, order)
        else:
            scene.pay("shop.plain_pay", order, mails=means == "steps")
    scene.kill_in_mid_payment(orders)
    scene.say("workers killed when the money had moved, and nobody had written down that it had")
    scene.finish()
    scene.read_the_bank()


ACTS: tuple[Act, ...] = (
    Act(
        name="at-once",
        title="Ten duplicates at once",
        told="Ten equal calls arrive together, half of them spelled in another way.",
        play=_at_once,
        promises=(ONE_CHARGE, ALL_ANSWERED),
    ),
    Act(
        name="later",
        title="A duplicate later",
        told="The same call again, after the first one has been answered.",
        play=_later,
        promises=(ONE_CHARGE, ALL_ANSWERED),
    ),
    Act(
        name="back-off",
        title="Retries, duplicates in the back-off",
        told="The bank declines twice; five equal calls arrive between the attempts.",
        play=_back_off,
        promises=(
            ONE_CHARGE,
            ALL_ANSWERED,
            Promise("the body runs three times, once for each attempt", lambda e: e.attempts == 3),
        ),
    ),
    Act(
        name="kill",
        title="Killed in mid-charge, called again",
        told="SIGKILL hits the worker before the money moves; the caller calls again, and the "
        "broker delivers the killed task again.",
        play=_kill,
        promises=(
            ONE_CHARGE,
            ALL_ANSWERED,
            Promise("every attempt hands the gateway the same key", _one_gateway_key),
        ),
        fault=REDELIVERED,
    ),
    Act(
        name="overrun",
        title="Redelivered while it still runs",
        told="The charge outlasts the broker's visibility timeout, so it is delivered again.",
        play=_overrun,
        promises=(
            ONE_CHARGE,
            ALL_ANSWERED,
            Promise("no two bodies run at the same time", lambda e: e.overlaps == 0),
        ),
        fault=REDELIVERED,
    ),
    Act(
        name="chord",
        title="A duplicate in a chord's header",
        told="Four charges in a chord's header, two of them for the same order.",
        play=_chord,
        promises=(
            ONE_CHARGE,
            ALL_ANSWERED,
            Promise(
                "the chord's body runs once, with every part answered",
                lambda e: e.count("summed") == 1 and e.total == 400,
            ),
        ),
    ),
    Act(
        name="cut",
        title="Killed between effect and record",
        told="SIGKILL hits when the money has moved and that is not written down: what no task "
        "queue can mend by itself. Three means do: an insert under key_for(), a session, steps.",
        play=_cut,
        promises=(
            ONE_CHARGE,
            ALL_ANSWERED,
            Promise(
                "of the steps, only the one that was cut is repeated",
                lambda e: e.count("mailed") == 2,
            ),
        ),
        fault=Promise(
            "the broker delivered each killed message again",
            lambda e: e.redeliveries >= len(set(e.orders)),
        ),
    ),
)
