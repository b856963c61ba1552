"""The worker's parent ends what its own dead child held for that message, and nothing else."""

from __future__ import annotations

import functools
import socket
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import Celery
from celery.worker.request import Request

from celery_idempotent import IdempotentTask
from celery_idempotent.core.record import Owner, Process, Record, State
from celery_idempotent.core.verdicts import Claim, Claimed, Settle
from celery_idempotent.run.process import BOOT_ID
from celery_idempotent.settings import environment_of
from celery_idempotent.worker.request import IdempotentRequest

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
