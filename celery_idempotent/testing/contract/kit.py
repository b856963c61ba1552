"""What the store contract is written with: messages, their claims, and how their runs end."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from celery_idempotent.core.keys import Owner
from celery_idempotent.core.record import Label, Process, Record, State
from celery_idempotent.core.slip import Slip
from celery_idempotent.core.verdicts import (
    Claim,
    Claimed,
    ClaimVerdict,
    Lost,
    Note,
    Recorded,
    Renewal,
    Settle,
    Unknown,
)
from celery_idempotent.errors import StoreError
from celery_idempotent.stores.base import Store

T = TypeVar("T")

#: The key that nearly every test is about.
KEY: Final = "idempotent:{shop.charge:order:42}"
LEASE_MS: Final = 30_000
#: How long an unfinished record lives.
KEEP_MS: Final = 3_600_000
#: How long a finished one lives.
TTL_MS: Final = 86_400_000
#: How long a released one, and a note, live.
HORIZON_MS: Final = 7_200_000

RESULT: Final = b"\x01\x01" + b'"charged"'
OTHER_RESULT: Final = b"\x01\x01" + b'"charged again"'
FAILURE: Final = b"\x02\x01" + b'{"exc_type": "CardDeclined"}'


def replace(it: T, **changes: Any) -> T:
    """Give a copy with some fields changed, as ``copy.replace`` of Python 3.13 does."""
    if isinstance(it, tuple):
        return it._replace(**changes)  # type: ignore[attr-defined,no-any-return]
    return dataclasses.replace(it, **changes)  # type: ignore[type-var]


class StoreClock(Protocol):
    """The clock of the store under test, in the test's hand."""

    def now_us(self) -> int:
        """The store's time in microseconds since 1970."""

    def advance(self, ms: int) -> None:
        """Move the store's time; negative: back. What lives in the store ages with it."""


@dataclass(frozen=True)
class Message:
    """A message as a worker sees it; a copy that is delivered again is an equal one."""

    task_id: str
    retries: int = 0
    nesting: int = 0
    fingerprint: bytes = b"fingerprint of a"
    label: str = "order:42"
    publication: bytes = b"published once"
    deaths: int = 0
    #: Of its callbacks; it counts where the claim says that there are some.
    digest: bytes = b"callback"

    @property
    def owner(self) -> bytes:
        return Owner(self.task_id, self.nesting).pack()

    @property
    def slip_key(self) -> str:
        return Owner(self.task_id, self.nesting).slip_key(KEY)

    @property
    def slip(self) -> Slip:
        """What tells this message from others of its owner."""
        return Slip(
            retries=self.retries,
            deaths=self.deaths,
            publication=self.publication,
            digests=self.digest,
        )

    def retried(self, times: int = 1) -> Message:
        return replace(self, retries=self.retries + times)

    def candidate(self, nonce: bytes | None = None) -> Record:
        """The record that a claim of this message asks for; each call has a nonce of its own."""
        return Record(
            State.RUNNING,
            0,
            retries=self.retries,
            owner=self.owner,
            process=PROCESS,
            nonce=os.urandom(8) if nonce is None else nonce and nonce.ljust(8, b".")[:8],
            fingerprint=self.fingerprint,
            label=self.label,
        )


PROCESS: Final = Process("worker-1", 4711, "boot-a").pack()
OTHER_PROCESS: Final = Process("worker-1", 4711, "boot-b").pack()

#: The owner in nearly every test, another call with equal arguments, and one with other arguments.
FIRST: Final = Message("0b9f5c3e-5d0f-4f5e-9d53-0d5a36a3a001")
SECOND: Final = Message("0b9f5c3e-5d0f-4f5e-9d53-0d5a36a3a002")
THIRD: Final = Message("a task id that is no UUID")
STRANGER: Final = replace(SECOND, fingerprint=b"fingerprint of b")


def claim(
    store: Store,
    message: Message,
    *,
    nonce: bytes | None = None,
    noted: bool = False,
    awaited: Message | None = None,
    **options: Any,
) -> ClaimVerdict:
    """Let one delivery of a message ask for the key; ``options`` are those of :class:`Claim`.

    Args:
        noted: whether the message carries callbacks.
        awaited: whose run this caller waited for last.
    """
    ask = Claim(
        message.candidate(nonce),
        message=message.slip,
        callbacks=noted,
        **{
            "lease_ms": LEASE_MS,
            "keep_ms": KEEP_MS,
            "slip_key": message.slip_key,
            **options,
        },
    )
    if awaited is not None:
        ask = replace(ask, awaited=awaited.owner, awaited_key=awaited.slip_key)
    return store.claim(KEY, ask)


def note(store: Store, message: Message, token: int = 0, *, sent: bool = True, **slip: Any) -> None:
    """Write down that a message was answered; not ``sent``: only that nobody sends callbacks."""
    slip = {"succeeded": sent, **slip}
    told = replace(message.slip, answered=sent, **slip)
    store.note(KEY, Note(message.slip_key, told, token, HORIZON_MS))


def hold(store: Store, message: Message = FIRST, **options: Any) -> Record:
    """Let a message claim the key, which must be granted; gives the record as its run knows it."""
    nonce = options.pop("nonce", None) or os.urandom(8)
    verdict = claim(store, message, nonce=nonce, **options)
    assert isinstance(verdict, Claimed), verdict
    more = {"origin": verdict.origin, "came": verdict.came, "cut_off": verdict.cut_off}
    return replace(
        message.candidate(nonce),
        token=verdict.token,
        interruptions=verdict.interruptions,
        label=replace(Label.read(message.label), **more).text(),
    )


def settle(
    store: Store,
    held: Record,
    state: State,
    delay_ms: int,
    ttl_ms: int,
    *,
    answers: Message | None = None,
    clears_steps: bool = False,
    drops_steps_of: str = "",
    queued_key: str = "",
    **changes: Any,
) -> Recorded | Lost:
    """Let a run end; ``answers``: the message whose slip is written with it.

    Args:
        queued_key: of the reservation that ends with a release.
    """
    changes = {"process": b"", "nonce": b"", **changes}
    record = replace(held, state=state, **changes)
    owner = Owner.unpack(held.owner)
    key = "" if owner is None else owner.slip_key(KEY)
    event = Settle(record, delay_ms, ttl_ms, slip_key=key, clears_steps=clears_steps)
    event = replace(event, drops_steps_of=drops_steps_of, queued_key=queued_key)
    if answers is not None:
        slip = replace(answers.slip, answered=True, digests=b"", outcome=record.outcome)
        event = replace(event, slip=slip, slip_ttl_ms=HORIZON_MS)
    return store.settle(KEY, event)


def complete(
    store: Store, held: Record, outcome: bytes = RESULT, *, delivery_ms: int = 0
) -> Recorded | Lost:
    """Record the run's result; ``delivery_ms``: keep a delivery lease for that long."""
    process = held.process if delivery_ms else b""
    return settle(
        store, held, State.SUCCEEDED, delivery_ms, TTL_MS, outcome=outcome, process=process
    )


def fail(store: Store, held: Record, *, delivery_ms: int = 0) -> Recorded | Lost:
    """Record the run's failure as the key's outcome."""
    process = held.process if delivery_ms else b""
    return settle(store, held, State.FAILED, delivery_ms, TTL_MS, outcome=FAILURE, process=process)


def retry(store: Store, held: Record, delay_ms: int = 60_000) -> Recorded | Lost:
    """Record that the run's next attempt is due after ``delay_ms``."""
    return settle(
        store, held, State.RETRYING, delay_ms, delay_ms + KEEP_MS, retries=held.retries + 1
    )


def release(store: Store, held: Record, answers: Message | None = None) -> Recorded | Lost:
    """Free the key without an outcome; ``answers``: for good (Ignore, Reject, replace)."""
    return settle(store, held, State.RELEASED, 0, HORIZON_MS, answers=answers)


def release_failed(
    store: Store, held: Record, *, delivery_ms: int = 0, answers: Message | None = None
) -> Recorded | Lost:
    """Free the key for other calls, with the failure for the leftover copies of this one."""
    process = held.process if delivery_ms else b""
    return settle(
        store,
        held,
        State.RELEASED,
        delivery_ms,
        HORIZON_MS,
        answers=answers,
        outcome=FAILURE,
        process=process,
    )


def interrupt(store: Store, held: Record) -> Recorded | Lost:
    """End the run's lease at once: it was cut off from outside."""
    return settle(store, held, State.RUNNING, 0, KEEP_MS, process=held.process)


def fail_cut_off(
    store: Store, held: Record, answers: Message, *, sends_ms: int = 0
) -> Recorded | Lost:
    """End the run as one that was cut off, by which its own call fails: a soft time limit.

    Args:
        sends_ms: for how long its errbacks may still be sent.
    """
    record = replace(held, state=State.RUNNING, nonce=b"")
    slip = replace(answers.slip, answered=True, released=True, digests=b"", outcome=FAILURE)
    return store.settle(
        KEY, Settle(record, sends_ms, KEEP_MS, slip, HORIZON_MS, slip_key=answers.slip_key)
    )


def renew(store: Store, held: Record, lease_ms: int = LEASE_MS) -> Recorded | Lost | StoreError:
    (answer,) = store.renew([_renewal(held, lease_ms)])
    return answer


def step(
    store: Store, held: Record, name: str = "charge", packed: bytes = b"42"
) -> Recorded | Lost:
    """Let a run write a step that it has finished."""
    return store.step(_renewal(held, LEASE_MS), name, packed)


def _renewal(held: Record, lease_ms: int) -> Renewal:
    owner = Owner.unpack(held.owner)
    slip = "" if owner is None else owner.slip_key(KEY)
    return Renewal(KEY, held, lease_ms, KEEP_MS, slip)


def compensate(store: Store, held: Record, lease_ms: int = LEASE_MS) -> Recorded | Lost:
    """Record that the body failed for good, and that its steps are being undone."""
    return settle(
        store,
        held,
        State.COMPENSATING,
        lease_ms,
        KEEP_MS,
        outcome=FAILURE,
        process=held.process,
        nonce=held.nonce,
    )


def leave_unknown(store: Store, held: Record) -> Recorded | Lost:
    """Record that nobody can tell whether the run's effect happened."""
    return settle(store, held, State.UNKNOWN, 0, TTL_MS, process=held.process)


def unknown(store: Store) -> Record:
    """Leave an unknown outcome; gives the run that may still be at it."""
    held = hold(store, FIRST)
    interrupt(store, held)
    finds_it = Message(f"a call that asks once, {os.urandom(4).hex()}")
    assert isinstance(claim(store, finds_it, max_interruptions=0), Unknown)
    return held


Ending = Callable[[Store, Record], "Recorded | Lost | StoreError"]

#: Every way in which a run writes to its record by itself.
ENDINGS: Final[dict[str, Ending]] = {
    "complete": complete,
    "fail": fail,
    "retry": retry,
    "release": release,
    "release after a failure": release_failed,
    "interrupt": interrupt,
    "renew": renew,
}

#: Every write that is made by a token.
WRITES: Final[dict[str, Ending]] = {
    **ENDINGS,
    "step": step,
    "compensate": compensate,
    "leave unknown": leave_unknown,
}

#: Those after which the key has an outcome for everybody.
OUTCOMES: Final[dict[str, Ending]] = {"complete": complete, "fail": fail}


def stored(store: Store, key: str = KEY) -> Record:
    """The record, which must be there."""
    record = store.get(key)
    assert record is not None, f"there is no record of {key}"
    return record


def lives_ms(store: Store, key: str = KEY) -> float:
    """How many milliseconds the record still lives."""
    left = store.ttl(key)
    assert left is not None, f"there is no record of {key}"
    return left * 1000


def about(expected_ms: float) -> _About:
    """Equal to a time to live that was set a moment ago: tests run while a real clock goes on."""
    return _About(expected_ms)


class _About:
    def __init__(self, expected_ms: float) -> None:
        self._expected_ms = expected_ms

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, int | float):
            return NotImplemented
        return self._expected_ms - 10_000 < other <= self._expected_ms

    def __hash__(self) -> int:
        return hash(self._expected_ms)

    def __repr__(self) -> str:
        return f"about {self._expected_ms}"
