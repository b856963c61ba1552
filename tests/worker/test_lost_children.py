"""The worker's parent ends what its own dead child held for that message, and nothing else."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import socket
import time
import uuid
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import Celery
from celery.concurrency.base import BasePool
from celery.worker.request import Request
from celery.worker.state import revoked as revoked_tasks

from celery_idempotent import IdempotentTask
from celery_idempotent.core.keys import Owner
from celery_idempotent.core.message import read_request
from celery_idempotent.core.record import Process, Record, State
from celery_idempotent.core.slip import Slip
from celery_idempotent.core.verdicts import Claim, Claimed, Settle
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.ops.why import why
from celery_idempotent.run.heartbeat import heartbeat
from celery_idempotent.run.process import BOOT_ID
from celery_idempotent.settings import environment_of
from celery_idempotent.stores.memory import MemoryStore
from celery_idempotent.worker.request import IdempotentRequest
from celery_idempotent.worker.standing import Standing, standing_of_copy

TASK_ID = "0b9f5c3e-5d0f-4f5e-9d53-0d5a36a3a001"
OWN = Owner(TASK_ID)
CHILD = Process(socket.gethostname(), 4711, BOOT_ID)


@pytest.fixture
def app():
    app = Celery("lost", broker="memory://", backend="cache+memory://")
    app.conf.update(idempotency_store_url=f"memory://{uuid.uuid4().hex}")
    app.task = functools.partial(app.task, shared=False)
    return app


@pytest.fixture
def nesting():
    """How often the message's task was replaced."""
    return 0


@pytest.fixture
def request_of_a_message(app, nesting, monkeypatch):
    """What the parent has of a message that its child has begun."""

    @app.task(base=IdempotentTask)
    def charge(order):
        """Nothing."""

    monkeypatch.setattr(Request, "on_failure", lambda *_: None)
    with app.connection_for_write() as connection:
        charge.apply_async(
            (1,), task_id=TASK_ID, connection=connection, replaced_task_nesting=nesting
        )
        queue = connection.SimpleQueue(app.conf.task_default_queue)
        message = queue.get(timeout=5)
        message.ack()
        queue.close()
    request = IdempotentRequest(message, app=app, task=charge)
    request.worker_pid = CHILD.pid
    return request


def run(request: Any, owner: Owner, process: Process) -> str:
    """Have somebody hold the message's key."""
    key = request.record_name()
    candidate = Record(State.RUNNING, 0, owner=owner.pack(), process=process.pack(), nonce=b"n")
    store = environment_of(request.app).store
    assert isinstance(store.claim(key, Claim(candidate, 30_000, 60_000)), Claimed)
    return key


@pytest.mark.parametrize(
    ("owner", "process", "exc", "freed"),
    [
        pytest.param(OWN, CHILD, WorkerLostError("killed"), True, id="its child is dead"),
        pytest.param(OWN, CHILD, TimeLimitExceeded(1), False, id="its child may live"),
        pytest.param(OWN, CHILD, ValueError(), False, id="its child has told it"),
        pytest.param(Owner("other"), CHILD, WorkerLostError(), False, id="another call"),
        pytest.param(Owner(TASK_ID, 1), CHILD, WorkerLostError(), False, id="what replaced it"),
        pytest.param(OWN, CHILD._replace(pid=4712), WorkerLostError(), False, id="another child"),
        pytest.param(OWN, CHILD._replace(host="h"), WorkerLostError(), False, id="another host"),
        pytest.param(OWN, CHILD._replace(boot="b"), WorkerLostError(), False, id="another boot"),
    ],
)
def test_what_a_lost_child_held_is_free(request_of_a_message, owner, process, exc, freed):
    """Only by a child that is dead for certain, and only what it held for this message."""
    # Given
    key = run(request_of_a_message, owner, process)
    # When
    request_of_a_message.on_failure(SimpleNamespace(exception=exc))
    # Then
    record, now_ms = environment_of(request_of_a_message.app).store.peek(key)
    assert (record.until_ms <= now_ms) is freed


def test_the_log_says_of_a_lost_child_only_what_is_known(request_of_a_message, caplog):
    """Whether the key is free is decided by the next delivery: the task's options say so."""
    # Given
    caplog.set_level("INFO", "celery_idempotent")
    run(request_of_a_message, OWN, CHILD)
    # When
    request_of_a_message.on_failure(SimpleNamespace(exception=WorkerLostError("killed")))
    # Then
    assert "lost its process 4711: its lease is ended" in caplog.text
    assert "idempotency_on_interrupted" in caplog.text


def test_what_a_lost_child_has_run_is_listed(request_of_a_message, monkeypatch):
    """Where the store lists what is under way: the child may not have come to that."""
    # Given
    listed: list[str] = []

    def append(journal, events, most, runs):
        listed.extend(key for key, _ in runs.begun)

    monkeypatch.setattr(
        MemoryStore, "run_lists", SimpleNamespace(append_with_runs=append), raising=False
    )
    key = run(request_of_a_message, OWN, CHILD)
    # When
    request_of_a_message.on_failure(SimpleNamespace(exception=WorkerLostError("killed")))
    # Then
    assert listed == [key]


@pytest.mark.parametrize("nesting", [1])
def test_what_replaced_a_task_is_another_call(request_of_a_message):
    """It has the task id of the one that it replaced, and not its key."""
    # Given
    key = run(request_of_a_message, OWN, CHILD)
    # When
    request_of_a_message.on_failure(SimpleNamespace(exception=WorkerLostError()))
    # Then
    record, now_ms = environment_of(request_of_a_message.app).store.peek(key)
    assert record.until_ms > now_ms


def test_a_message_that_no_child_has_begun_frees_nothing(request_of_a_message):
    """The parent knows no process of it."""
    # Given
    key = run(request_of_a_message, OWN, CHILD)
    request_of_a_message.worker_pid = None
    # When
    request_of_a_message.on_failure(SimpleNamespace(exception=WorkerLostError()))
    # Then
    record, now_ms = environment_of(request_of_a_message.app).store.peek(key)
    assert record.until_ms > now_ms


def test_a_lost_child_sends_no_callbacks(request_of_a_message):
    """It was sending those of a duplicate: the next copy does, at once."""
    # Given
    store, key = environment_of(request_of_a_message.app).store, request_of_a_message.record_name()
    own = OWN.slip_key(key)
    other = Record(State.RUNNING, 0, owner=Owner("other").pack(), nonce=b"n")
    token = store.claim(key, Claim(other, 30_000, 60_000)).token
    done = other._replace(state=State.SUCCEEDED, token=token, nonce=b"", outcome=b"\x01\x011")
    store.settle(key, Settle(done, 0, 60_000))
    duplicate = Record(State.RUNNING, 0, owner=OWN.pack(), process=CHILD.pack(), nonce=b"m")
    store.claim(key, Claim(duplicate, 30_000, 60_000, callbacks=True, slip_key=own))
    assert store.slip(own).sending_ms
    # When
    request_of_a_message.on_failure(SimpleNamespace(exception=WorkerLostError()))
    # Then
    assert store.slip(own).sending_ms == 0


@pytest.mark.parametrize("answer", [None, "FAILURE"])
@pytest.mark.parametrize("begun", [False, True])
def test_a_copy_that_is_discarded_hides_no_answer(
    app: Celery, request_of_a_message: Any, answer: str | None, begun: bool
) -> None:
    """It has expired, or was revoked; a call that was revoked while it ran is so in any case."""
    # Given
    if answer:
        app.backend.store_result(TASK_ID, ValueError("declined"), answer)
    # When
    if not begun:
        request_of_a_message.worker_pid = None
    request_of_a_message._announce_revoked("expired", False, None, True)
    # Then
    stays = answer is not None and not begun
    assert app.backend.get_state(TASK_ID) == (answer if stays else "REVOKED")


LATER_MS = 30_000


@pytest.mark.parametrize(
    ("held", "slip", "discarded", "stored"),
    [
        pytest.param((State.RUNNING, LATER_MS), None, False, False, id="its run is under way"),
        pytest.param((State.COMPENSATING, LATER_MS), None, False, False, id="it is being undone"),
        pytest.param((State.RUNNING, -1), None, True, True, id="its run is dead"),
        pytest.param((State.RETRYING, LATER_MS), None, True, True, id="it waits for its retry"),
        pytest.param(None, Slip(sending_ms=1 << 50), False, False, id="a copy answers it"),
        pytest.param(None, Slip(answered=True), True, False, id="it is answered"),
        pytest.param(None, None, True, True, id="it has not begun"),
    ],
)
def test_a_copy_is_discarded_only_where_no_run_of_its_call_is_under_way(
    app: Celery,
    ended: Any,
    held: tuple[State, int] | None,
    slip: Slip | None,
    discarded: bool,
    stored: bool,
) -> None:
    """It would say that the call is revoked; on Redis it would take the run's message along."""
    # Given
    store = environment_of(app).store
    _, owner, message, _ = read_request(ended._context)
    record = held and Record(
        held[0], 7, until_ms=store.now_ms() + held[1], owner=owner.pack(), process=CHILD.pack()
    )
    left = slip and slip._replace(publication=message.publication)
    store.peek = lambda _: (record or None, store.now_ms())
    store.slip = lambda _: left or None
    ended.worker_pid, ended.time_start = None, None
    revoked_tasks.add(TASK_ID)
    # When
    try:
        assert ended.revoked() is discarded
    finally:
        revoked_tasks.discard(TASK_ID)
    # Then
    assert (app.backend.get_state(TASK_ID) == "REVOKED") is stored
    assert ended.fate == (["acknowledged"] if discarded else [])


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_call_that_has_begun_in_time_goes_on_after_a_crash(ended: Any, goes_on: bool) -> None:
    """Its message has only expired since then: what it began is not left as it is."""
    # Given
    run(ended, OWN, CHILD)
    ends(ended, "killed")
    # When it is asked, then
    standing = standing_of_copy(ended, goes_on=goes_on)
    assert standing is (Standing.COPIED if goes_on else Standing.HOLDS)


def test_a_later_attempt_of_a_running_call_is_no_copy(app: Celery, ended: Any) -> None:
    """The run has published it already: it is revoked like any other."""
    # Given
    run(ended, OWN, CHILD)
    ended._context.retries = 1
    # When it is asked, then
    assert standing_of_copy(ended) is Standing.HOLDS


@pytest.mark.parametrize("by_command", [False, True])
def test_what_a_command_has_revoked_is_told_with_name_and_arguments(
    app: Celery, request_of_a_message: Any, by_command: bool
) -> None:
    """The command knows only the id. Another REVOKED stays, and says why, as of a dropped call."""
    # Given
    app.conf.result_extended = True
    app.backend.mark_as_revoked(TASK_ID, "the reason")
    request_of_a_message.worker_pid = None
    if by_command:
        revoked_tasks.add(TASK_ID)
    # When
    request_of_a_message._announce_revoked("revoked", False, None, False)
    revoked_tasks.discard(TASK_ID)
    # Then
    app.backend._cache.clear()
    stored = app.backend.get_task_meta(TASK_ID)
    assert str(stored["result"]) == ("revoked" if by_command else "the reason")
    assert bool(stored.get("name")) is by_command


class Pool:
    """Ends no process."""

    def __init__(self, *, is_green: bool = False) -> None:
        self.is_green = is_green

    def terminate_job(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def ended(request_of_a_message: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A request whose process has begun the body; what becomes of its message is written down."""
    monkeypatch.undo()  # Celery's own on_failure
    request = request_of_a_message
    request.app.backend.forget(TASK_ID)  # the one in memory is that of all tests
    request.fate = []
    request.time_start = 1.0
    request._on_ack = lambda *_: request.fate.append("acknowledged")
    request._on_reject = lambda *args: request.fate.append(f"requeued {args[-1]}")
    return request


def taken_over(request: Any, state: State, owner: Owner = OWN) -> None:
    """Let a copy of the message, or another call, have the key, and be as far as ``state``."""
    key, store = request.record_name(), environment_of(request.app).store
    process = CHILD._replace(pid=4712).pack()
    candidate = Record(State.RUNNING, 0, owner=owner.pack(), process=process, nonce=b"n")
    token = store.claim(key, Claim(candidate, 30_000, 60_000)).token
    if state is not State.RUNNING:
        done = candidate._replace(
            state=state, token=token, nonce=b"", process=b"", outcome=b"\x01\x011"
        )
        store.settle(key, Settle(done, 0, 60_000))


def ends(request: Any, how: str) -> None:
    """End its process as Celery's pool does."""
    if how == "hard limit":
        try:
            raise TimeLimitExceeded(3)
        except TimeLimitExceeded:
            request.on_failure(ExceptionInfo())
        request.on_timeout(False, 3)
    elif how == "greenlet's limit":
        request.on_timeout(False, 3)
    else:
        try:
            raise SystemExit(3) if how == "exit" else WorkerLostError("killed")
        except (SystemExit, WorkerLostError):
            request.on_failure(ExceptionInfo())


LIMITS = ["hard limit", "greenlet's limit"]


@pytest.mark.parametrize("how", LIMITS)
@pytest.mark.parametrize(
    ("state", "owner"),
    [
        pytest.param(State.SUCCEEDED, OWN, id="a copy has answered"),
        pytest.param(State.RUNNING, OWN, id="a copy is going to"),
        pytest.param(State.RUNNING, Owner("other"), id="another call has the key"),
    ],
)
def test_a_time_limit_of_a_run_without_its_key_tells_nothing(
    app: Celery, ended: Any, how: str, state: State, owner: Owner
) -> None:
    """No failure is stored over the answer, and no errback sent; the message waits for it."""
    # Given
    ended._context.errbacks = [app.signature("errback")]
    taken_over(ended, state, owner)
    # When
    ends(ended, how)
    # Then
    assert app.backend.get_state(TASK_ID) == "PENDING"
    assert ended.fate == ["requeued True"]
    assert sent(app) == []


def sent(app: Celery) -> list[str]:
    """The messages that wait for a worker, taken out."""
    with app.connection_for_write() as connection:
        queue = connection.SimpleQueue(app.conf.task_default_queue)
        found = []
        while True:
            try:
                message = queue.get(block=False)
            except queue.Empty:
                queue.close()
                return found
            message.ack()
            found.append(message.headers["task"])


@pytest.mark.parametrize("how", LIMITS)
def test_a_time_limit_of_a_run_with_its_key_is_told_once(app: Celery, ended: Any, how: str) -> None:
    """Celery's parent stores the failure and sends the errbacks twice with a pool of processes."""
    # Given
    run(ended, OWN, CHILD)
    ended._context.errbacks = [app.signature("errback")]
    # When
    ends(ended, how)
    # Then
    assert app.backend.get_state(TASK_ID) == "FAILURE"
    assert ended.fate == ["acknowledged"]
    assert sent(app) == ["errback"]


@pytest.mark.parametrize("state", [State.RUNNING, State.SUCCEEDED])
@pytest.mark.parametrize("late", [True, False])
def test_a_lost_child_that_does_not_come_again_stores_nothing_over_an_answer(
    app: Celery, ended: Any, state: State, late: bool
) -> None:
    """With ``reject_on_worker_lost = False``, or acknowledged early: a copy answers its call."""
    # Given
    ended.task.reject_on_worker_lost = False
    ended.task.acks_late = late
    taken_over(ended, state)
    # When
    ends(ended, "killed")
    # Then
    assert app.backend.get_state(TASK_ID) == "PENDING"


def test_a_message_that_is_acknowledged_early_waits_for_no_other_call(
    app: Celery, ended: Any
) -> None:
    """There is no message left that could: its caller gets the failure."""
    # Given
    ended.task.acks_late = False
    taken_over(ended, State.RUNNING, Owner("other"))
    # When
    ends(ended, "hard limit")
    # Then
    assert app.backend.get_state(TASK_ID) == "FAILURE"


@pytest.mark.parametrize(
    ("known", "fate", "state"),
    [(False, "acknowledged", "FAILURE"), (True, "requeued True", "SUCCESS")],
)
def test_where_the_store_is_away_the_result_backend_may_know(
    app: Celery,
    ended: Any,
    monkeypatch: pytest.MonkeyPatch,
    known: bool,
    fate: str,
    state: str,
) -> None:
    """A message whose call was answered is put back: it waits for the store."""

    # Given
    def away(key: str) -> None:
        raise StoreUnavailable("away")

    monkeypatch.setattr(environment_of(app).store, "get", away)
    if known:
        app.backend.store_result(TASK_ID, 1, "SUCCESS")
    # When
    ends(ended, "hard limit")
    # Then
    assert ended.fate == [fate]
    assert app.backend.get_state(TASK_ID) == state


def test_a_store_that_did_not_answer_just_now_is_not_asked(
    ended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the worker does would stand still, once for each run that meets its limit."""
    # Given a store that would say that a copy has answered
    taken_over(ended, State.SUCCEEDED)
    monkeypatch.setattr(MemoryStore, "failed_at", time.monotonic())
    # When it is asked, then
    assert ended._stands() is Standing.HOLDS


def test_an_answer_that_only_the_result_backend_has_is_not_run_for_again(
    app: Celery, ended: Any
) -> None:
    """The store has forgotten it: put back, the message would run."""
    # Given
    app.backend.store_result(TASK_ID, ValueError("declined"), "FAILURE")
    # When
    ends(ended, "hard limit")
    # Then
    assert ended.fate == ["acknowledged"]
    assert isinstance(app.backend.get_task_meta(TASK_ID)["result"], ValueError)


@pytest.mark.parametrize(("way", "state"), [("terminate", "REVOKED"), ("cancel", "RETRY")])
@pytest.mark.parametrize("answered", [True, False])
def test_a_run_that_its_worker_ends_hides_no_answer(
    app: Celery, ended: Any, answered: bool, way: str, state: str
) -> None:
    """One that has lost its key, and whose call was answered; of every other one Celery tells.

    It is revoked, or its worker's connection is lost, and with it what the worker runs.
    """
    # Given
    if answered:
        taken_over(ended, State.SUCCEEDED)
        app.backend.store_result(TASK_ID, ValueError("declined"), "FAILURE")
    else:
        run(ended, OWN, CHILD)
    # When
    getattr(ended, way)(Pool())
    # Then
    assert app.backend.get_state(TASK_ID) == ("FAILURE" if answered else state)


def told_of(request: Any) -> list[str]:
    """What ``idempotency why`` says of the call."""
    environment = environment_of(request.app)
    account = why(environment, request.id)
    return [] if account is None else [account.summary, *(text for _, text in account.story)]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("hard limit", "it failed with TimeLimitExceeded"),
        ("killed", "it failed with WorkerLostError"),
        ("revoke", "it is revoked"),
    ],
)
def test_the_journal_says_what_a_worker_told_of_a_run_that_it_ended(
    ended: Any, how: str, told: str
) -> None:
    """Its process could tell no more than that it was cut off."""
    # Given
    ended.task.reject_on_worker_lost = False
    run(ended, OWN, CHILD)
    # When
    if how == "revoke":
        ended.terminate(Pool())
    else:
        ends(ended, how)
    # Then
    assert f"told its caller that {told}" in told_of(ended)[0]


@pytest.mark.parametrize("answered", [True, False])
def test_the_journal_names_no_answer_that_the_worker_did_not_give(
    app: Celery, ended: Any, answered: bool
) -> None:
    """The run's own is stored already; or the message comes again."""
    # Given
    run(ended, OWN, CHILD)
    if answered:
        app.backend.store_result(TASK_ID, ValueError("declined"), "FAILURE")
    # When
    ends(ended, "hard limit" if answered else "killed")
    # Then
    assert not [text for text in told_of(ended) if "told its caller" in text]


def slip_of(request: Any) -> Slip | None:
    """What is kept of the call's answer."""
    store = environment_of(request.app).store
    return store.slip(OWN.slip_key(request.record_name()))


@pytest.mark.parametrize("how", [*LIMITS, "killed", "exit"])
def test_a_failure_that_the_worker_tells_is_kept(app: Celery, ended: Any, how: str) -> None:
    """Before it is told, for the copies of the message; and that its errbacks have gone out."""
    # Given
    ended.task.reject_on_worker_lost = False
    ended._context.errbacks = [app.signature("errback")]
    run(ended, OWN, CHILD)
    # When
    ends(ended, how)
    # Then
    slip = slip_of(ended)
    assert slip is not None
    assert (slip.answered, slip.released, slip.sending_ms) == (True, True, 0)
    assert (b"TimeLimitExceeded" if how in LIMITS else b"WorkerLostError") in slip.outcome
    assert slip.digests
    assert app.backend.get_state(TASK_ID) == "FAILURE"


@pytest.mark.parametrize("how", [*LIMITS, "killed"])
def test_a_failure_that_can_not_be_told_now_is_told_by_the_next_delivery(
    app: Celery, ended: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The result backend is away: Celery acknowledges the message, and nobody is ever told."""
    # Given
    ended.task.reject_on_worker_lost = False
    ended._context.errbacks = [app.signature("errback")]
    run(ended, OWN, CHILD)

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(app.backend, "mark_as_failure", away)
    # When
    ends(ended, how)
    # Then its slip has the failure, and nobody waits for its errbacks
    assert ended.fate == ["requeued True"]
    slip = slip_of(ended)
    assert slip is not None
    assert (slip.answered, slip.sending_ms, slip.digests) == (True, 0, b"")
    assert (b"TimeLimitExceeded" if how in LIMITS else b"WorkerLostError") in slip.outcome


@pytest.mark.parametrize("acks_late", [False, True])
def test_the_message_is_acknowledged_once_the_end_is_told(
    app: Celery, ended: Any, monkeypatch: pytest.MonkeyPatch, acks_late: bool
) -> None:
    """Whoever dies in between loses no answer. What was acknowledged early is not put back."""
    # Given
    ended.task.acks_late = acks_late
    run(ended, OWN, CHILD)
    tell = app.backend.mark_as_failure

    def told(*args: Any, **kwargs: Any) -> None:
        ended.fate.append("told")
        if not acks_late:
            raise ConnectionError("away")
        tell(*args, **kwargs)

    monkeypatch.setattr(app.backend, "mark_as_failure", told)
    # When
    with suppress(ConnectionError):
        ends(ended, "greenlet's limit")
    # Then
    assert ended.fate == (["told", "acknowledged"] if acks_late else ["told"])


def test_a_process_without_memory_is_left_to_celery(
    ended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put back, its message would end one worker after another."""
    # Given
    monkeypatch.setattr(ended.task.backend, "mark_as_failure", _no_memory)
    # When, then
    with pytest.raises(MemoryError):
        ends(ended, "hard limit")
    assert ended.fate == []


def _no_memory(*_: Any, **__: Any) -> None:
    raise MemoryError


def test_a_revoke_that_can_not_be_told_now_is_told_later(
    app: Celery, ended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message goes back, and its next delivery is discarded, once the backend takes that."""
    # Given
    run(ended, OWN, CHILD)
    tell, later = app.backend.mark_as_revoked, []

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(app.backend, "mark_as_revoked", away)
    monkeypatch.setattr(heartbeat, "later", lambda do, *_, **__: later.append(do))
    revoked_tasks.add(TASK_ID)
    # When
    try:
        ended.terminate(Pool())
        # Then
        assert ended.fate == ["requeued True"]
        # When it comes again, to a worker whose backend is still away
        again = _as_delivered_again(ended)
        assert again.revoked()
        assert again.fate == []
        (tell_discarded,) = later
        with pytest.raises(StoreUnavailable):
            tell_discarded()
        monkeypatch.setattr(app.backend, "mark_as_revoked", tell)
        tell_discarded()
    finally:
        revoked_tasks.discard(TASK_ID)
    # Then
    assert again.fate == ["acknowledged"]
    assert app.backend.get_state(TASK_ID) == "REVOKED"


def _as_delivered_again(request: Any) -> Any:
    """The request of the same message's next delivery."""
    again = copy.copy(request)
    again.fate, again.acknowledged, again.time_start, again.worker_pid = [], False, None, None
    again._is_told = again._is_left = False
    again._on_ack = lambda *_: again.fate.append("acknowledged")
    return again


@pytest.mark.parametrize(
    ("left", "status"),
    [
        (SystemExit(3), "exitcode 3"),
        (SystemExit(), "exitcode 0"),
        (SystemExit("no"), "exitcode 1"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_a_body_that_leaves_its_process_comes_again(
    app: Celery, ended: Any, left: BaseException, status: str
) -> None:
    """billiard hands that on since 4.3, and Celery before 5.7 fails the call by it."""
    # Given
    run(ended, OWN, CHILD)
    # When
    try:
        raise left
    except BaseException:
        ended.on_failure(ExceptionInfo())
    # Then
    assert ended.fate == ["requeued True"]
    assert app.backend.get_state(TASK_ID) == "PENDING"
    # When it may not come again
    ended.acknowledged = False
    ended.task.reject_on_worker_lost = False
    try:
        raise left
    except BaseException:
        ended.on_failure(ExceptionInfo())
    # Then
    assert status in str(app.backend.get_result(TASK_ID))


@pytest.mark.parametrize("by_itself", [False, True])
def test_a_revoke_that_ends_a_run_is_kept(app: Celery, ended: Any, by_itself: bool) -> None:
    """A worker that has not heard of the revoke runs no copy of the message."""
    # Given
    run(ended, OWN, CHILD)
    kept: list[Slip | None] = []

    def end(*_: object) -> None:
        kept.append(slip_of(ended))

    pool = type("Ending", (BasePool,), {"terminate_job": end})()
    if by_itself:  # as Celery's pool of processes
        pool = BasePool()
        pool.terminate_job = end
    # When
    ended.terminate(pool)
    # Then already when its process gets the signal: that frees the key
    kept.append(slip_of(ended))
    for slip in kept:
        assert slip is not None
        assert (slip.answered, slip.outcome) == (True, b"")
    assert len(kept) == 2


def test_a_revoke_that_a_pool_does_not_know_answers_nothing(ended: Any) -> None:
    """Threads can't be ended: the run goes on, and its end is the call's answer."""
    # Given
    run(ended, OWN, CHILD)
    # When
    with pytest.raises(NotImplementedError):
        ended.terminate(BasePool())
    # Then
    assert slip_of(ended) is None


@pytest.mark.parametrize("is_green", [False, True])
def test_a_greenlet_that_is_cancelled_has_not_returned(ended: Any, is_green: bool) -> None:
    """Celery takes it for a success, and its message would be lost; a process was done in time."""
    # Given
    run(ended, OWN, CHILD)
    # When
    ended.cancel(Pool(is_green=is_green))
    ended.on_success((False, None, None))
    # Then
    assert ended.fate == ([] if is_green else ["acknowledged"])


@pytest.mark.parametrize(
    ("end", "returned", "told"),
    [
        ("cancel", (None, None), ["task-cancelled"]),
        ("terminate", (None, None), ["task-revoked"]),
        ("terminate", ("'late'", 0.1), ["task-succeeded", "task-revoked"]),
        ("", (None, None), ["task-succeeded"]),
    ],
    ids=["it is cut off", "it is revoked", "it ends all the same", "Celery knows its answer"],
)
def test_a_greenlet_that_its_worker_ends_has_not_succeeded(
    ended: Any, end: str, returned: tuple[Any, Any], told: list[str]
) -> None:
    """Celery's events say so, and Flower would show it as done."""
    # Given
    run(ended, OWN, CHILD)
    kinds: list[str] = []
    ended._eventer = SimpleNamespace(
        enabled=True, groups=None, send=lambda kind, **_: kinds.append(kind)
    )
    # When
    pool = Pool(is_green=True)
    # The greenlet ends at once, before Celery tells that it was revoked.
    pool.terminate_job = lambda *_: ended.on_success((False, *returned))
    if end:
        getattr(ended, end)(pool)
    else:
        ended.on_success((False, *returned))
    # Then
    assert kinds == told


def test_a_run_that_a_pool_can_not_end_is_not_cancelled(app: Celery, ended: Any) -> None:
    """It goes on, and its end is the call's answer: Celery's error would end a solo pool's body."""
    # Given
    run(ended, OWN, CHILD)
    # When
    ended.cancel(BasePool())
    # Then
    assert app.backend.get_state(TASK_ID) == "PENDING"
    assert not ended._already_cancelled


@pytest.mark.parametrize("how", LIMITS)
def test_where_the_message_is_put_back_nobody_is_told(app: Celery, ended: Any, how: str) -> None:
    """``acks_on_timeout = False``: its next delivery answers; Celery tells a failure, too."""
    # Given
    ended.task.acks_on_failure_or_timeout = False
    ended.task.acks_on_timeout = False
    ended._context.errbacks = [app.signature("errback")]
    run(ended, OWN, CHILD)
    # When
    ends(ended, how)
    # Then
    assert app.backend.get_state(TASK_ID) == "PENDING"
    assert ended.fate == ["requeued True"]
    assert sent(app) == []
    assert slip_of(ended) is None


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("how", LIMITS)
def test_a_time_limit_in_a_cold_shutdown_loses_no_call(
    app: Celery, ended: Any, monkeypatch: pytest.MonkeyPatch, how: str, cancelled: bool
) -> None:
    """Celery would acknowledge the message, and tell nobody: it comes again instead."""
    # Given
    monkeypatch.setattr("celery.worker.state.should_terminate", 1)
    ended._already_cancelled = cancelled
    ended._context.errbacks = [app.signature("errback")]
    run(ended, OWN, CHILD)
    # When
    ends(ended, how)
    # Then
    assert app.backend.get_state(TASK_ID) == "PENDING"
    assert ended.fate == ["requeued True"]
    assert sent(app) == []
    assert slip_of(ended) is None


@pytest.mark.parametrize("kind", [TimeLimitExceeded, WorkerLostError])
def test_what_a_copy_was_answered_is_told_by_its_child(app: Celery, ended: Any, kind: Any) -> None:
    """Such a failure is no end of that child: it is told once, and nothing is put back."""
    # Given
    ended.task.reject_on_worker_lost = False
    ended._context.errbacks = [app.signature("errback")]
    taken_over(ended, State.RUNNING)
    # When
    try:
        raise kind("kept")
    except kind:
        ended.on_success((True, ExceptionInfo(), 0.0))
    # Then
    assert ended.fate == ["acknowledged"]
    assert app.backend.get_state(TASK_ID) == "PENDING"
    assert sent(app) == []


def test_a_greenlets_body_ran_in_this_process(ended: Any) -> None:
    """What Celery calls its pid is the greenlet's number."""
    # Given
    run(ended, OWN, CHILD._replace(pid=os.getpid()))
    # When it is asked, then
    assert ended._stands() is Standing.HOLDS


def test_a_task_that_is_not_guarded_is_left_to_celery(
    ended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In "shadow" nothing is suppressed."""
    # Given
    taken_over(ended, State.SUCCEEDED)
    setup = ended.task._setup()
    options = SimpleNamespace(mode="shadow")
    monkeypatch.setattr(ended.task, "_setup", lambda: SimpleNamespace(options=options, of=setup))
    # When it is asked, then
    assert ended._stands() is Standing.HOLDS


def test_switched_off_the_store_is_not_asked(ended: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch is for an emergency of the store: the parent would wait for it."""
    # Given
    run(ended, OWN, CHILD)
    setup = ended.task._setup()
    off = dataclasses.replace(setup, options=dataclasses.replace(setup.options, mode="off"))
    monkeypatch.setattr(ended.task, "_setup", lambda: off)
    asked: list[str] = []
    for name in ("get", "peek", "slip", "end_lease", "note", "settle"):
        monkeypatch.setattr(MemoryStore, name, lambda *_, name=name: asked.append(name))
    # When
    ends(ended, "lost")
    ends(ended, "hard limit")
    ended.free_key()
    revoked_tasks.add(TASK_ID)
    ended.revoked()
    revoked_tasks.discard(TASK_ID)
    # Then
    assert not asked


def test_a_run_in_this_process_is_no_other_runs(
    ended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With greenlets a copy of the message may run in the process of the one that is ended."""
    # Given
    key = run(ended, OWN, CHILD)
    monkeypatch.setattr(
        "celery_idempotent.worker.standing.heartbeat",
        SimpleNamespace(leases=lambda: [SimpleNamespace(key=key)]),
    )
    # When it is asked, then
    assert ended._stands() is Standing.COPIED
