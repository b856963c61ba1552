"""Settle an unknown outcome by a person's word, and free keys, so that the journal knows of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from kombu.utils.uuid import uuid

from celery_idempotent.core.keys import CallKey, record_key
from celery_idempotent.core.message import OWN, own_header
from celery_idempotent.core.options import Options
from celery_idempotent.core.record import Label, Record, State
from celery_idempotent.core.step import Step
from celery_idempotent.core.verdicts import Resolve
from celery_idempotent.delivery.results import encode_failure, encode_result
from celery_idempotent.errors import IdempotencyError, StoreError
from celery_idempotent.ops import records
from celery_idempotent.ops.views import RecordView, parse_name
from celery_idempotent.publishing import published
from celery_idempotent.settings import Environment, TaskSetup

__all__ = ["NotUnknown", "forget", "has_compensations", "resolve"]

_HOW: Final = {State.SUCCEEDED: "succeeded", State.FAILED: "failed", State.RELEASED: "to be rerun"}


#: What a task may say of where its messages go.
_ROUTING: Final = ("queue", "exchange", "routing_key", "priority", "serializer")


class NotUnknown(IdempotencyError):
    """The record is not, or no longer, in the state *unknown*: there is nothing to settle."""


def forget(environment: Environment, view: RecordView, via: str) -> bool:
    """Free a key, so that its next call runs; whether there was a record.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    store, prefix = environment.store, environment.prefix
    done = records.forget(store, prefix, view.name, environment.horizon)
    if done:
        environment.journal.write("forgotten", view.name, view.task, None, via=via)
    return done


def has_compensations(environment: Environment, name: str) -> bool:
    """Whether a record has finished steps that can be undone.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    for packed in environment.store.steps(name).values():
        try:
            step = Step.unpack(packed)
        except StoreError:
            continue
        if step.can_be_undone:
            return True
    return False


def resolve(
    app: Any, environment: Environment, view: RecordView, how: State, answer: Any, via: str
) -> str | None:
    """Say how a run ended whose outcome is unknown.

    Args:
        how: ``SUCCEEDED``: ``answer`` is its result. ``FAILED``: its finished steps are undone,
            then the key is free; ``answer`` is the message of the failure. ``RELEASED``: the next
            call with the key runs.
        via: what the journal says of who did it.

    Returns:
        The id of the message that was published to undo finished steps; ``None``: there are none.

    Raises:
        NotUnknown: it is in another state.
        StoreUnavailable: the store does not answer.
    """
    name = view.name
    record = environment.store.get(name)
    if record is None or record.state is not State.UNKNOWN:
        raise _not_unknown(view, record)
    task = app.tasks.get(view.task)
    setup = getattr(task, "_idempotency", None)
    options = setup.options if isinstance(setup, TaskSetup) else Options()
    backend = app.backend if task is None else task.backend
    outcome, ttl_s = b"", environment.horizon
    if how is State.SUCCEEDED:
        outcome = encode_result(backend, answer, options.max_result_size)
        ttl_s = options.ttl
    elif how is State.FAILED:
        failure = IdempotencyError(f"resolved as failed: {answer}")
        outcome = encode_failure(backend, failure, options.max_result_size)
    compensate = how is State.FAILED and has_compensations(environment, name)
    if compensate:
        ttl_s = max(options.ttl, environment.horizon)
    state = how
    if how is State.SUCCEEDED and not options.ttl:
        state, ttl_s = State.FAILED, environment.horizon  # free, with this outcome
    clears_steps = how is not State.RELEASED and not (options.ttl or compensate)
    event = Resolve(state, outcome, int(ttl_s * 1000), compensate, clears_steps)
    if not environment.store.resolve(name, event):
        raise _not_unknown(view, environment.store.get(name))
    environment.journal.write("resolved", name, view.task, None, how=_HOW[how], via=via)
    return _publish_compensation(app, environment, view, record) if compensate else None


def _not_unknown(view: RecordView, record: Record | None) -> NotUnknown:
    state = "gone" if record is None else str(record.state)
    return NotUnknown(
        f"{view.key} of {view.task} is {state}: only what is unknown can be resolved; forget frees "
        "a key in any state"
    )


def _publish_compensation(
    app: Any, environment: Environment, view: RecordView, record: Record
) -> str:
    """Publish a message that undoes the finished steps, and never runs the body."""
    parts = parse_name(environment.prefix, view.name)
    assert parts is not None
    label = Label.of(record).readable
    call_key = CallKey(*parts, label=label, fingerprint=b"", checked=False)
    if record_key(environment.prefix, call_key) != view.name:
        raise IdempotencyError(
            f"{view.name} is resolved, but no message can be made for it: its steps are undone by "
            "the next call with this key"
        )
    task_id: str = uuid()
    header = own_header(task_id, call_key, replace(published(), compensates_only=True))
    task = app.tasks.get(view.task)
    options = {name: getattr(task, name, None) for name in _ROUTING}
    given = {name: value for name, value in options.items() if value is not None}
    app.send_task(view.task, task_id=task_id, headers={OWN: header}, **given)
    return task_id
