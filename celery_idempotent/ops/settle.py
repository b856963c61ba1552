"""Settle an unknown outcome by a person's word, and free keys, so that the journal knows of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kombu.utils.uuid import uuid

from celery_idempotent.core.keys import CallKey, record_key
from celery_idempotent.core.message import OWN, WaitState, own_header
from celery_idempotent.core.options import Options
from celery_idempotent.core.record import Label, Record, State
from celery_idempotent.core.step import Step
from celery_idempotent.core.verdicts import Resolve
from celery_idempotent.delivery.results import encode_failure, encode_result
from celery_idempotent.errors import IdempotencyError, StoreError
from celery_idempotent.http.messages import NAMESPACE, pack_result
from celery_idempotent.ops import records
from celery_idempotent.ops.views import QUEUED, RecordView, parse_name
from celery_idempotent.publishing import publication
from celery_idempotent.settings import Environment, TaskSetup

_HOW: Final = {State.SUCCEEDED: "succeeded", State.FAILED: "failed", State.RELEASED: "to be rerun"}


#: What a task may say of where its messages go.
_ROUTING: Final = ("queue", "exchange", "routing_key", "priority", "serializer")


class NotUnknown(IdempotencyError):
    """The record is not, or no longer, in the state *unknown*: there is nothing to settle."""


def forget(environment: Environment, view: RecordView, via: str) -> bool:
    """Free a key, so that its next call runs; whether there was anything to forget.

    ``False``: the key was free already, and nothing is kept of its last run.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    store, prefix = environment.store, environment.prefix
    if _has_nothing(environment, view.name):
        return False
    done = records.forget(store, prefix, view.name, environment.horizon)
    if done:
        environment.journal.write("forgotten", view.name, view.task, None, via=via)
    return done


def read_result(text: str) -> Any:
    """Read the result that a person gives, which every duplicate is answered with from then on.

    Raises:
        ValueError: it is no JSON. An empty text is none either: it may have been forgotten.
    """
    if not text.strip():
        raise ValueError("Say what the result is, as JSON: null where the task returns nothing")
    try:
        return json.loads(text)
    except ValueError as exc:
        raise ValueError(
            f'{text!r} is no JSON ({exc}); a text stands in quotes, as in "done"'
        ) from exc


def _has_nothing(environment: Environment, name: str) -> bool:
    """Whether a key's record says only that it is free, and no queued call has it either."""
    (record,) = environment.store.get_many([name])
    if not isinstance(record, Record) or record.state is not State.RELEASED:
        return False
    if record.owner or record.outcome or record.has_steps:
        return False
    return environment.store.reservation(name) is None


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
    name, record = view.name, refuse_what_is_known(environment, view)
    task = app.tasks.get(view.task)
    setup = getattr(task, "_idempotency", None)
    options = setup.options if isinstance(setup, TaskSetup) else Options()
    backend = app.backend if task is None else task.backend
    outcome, ttl_s = b"", environment.horizon
    if how is State.SUCCEEDED:
        if view.namespace == NAMESPACE:
            outcome = pack_result(answer, options.max_result_size)
        else:
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
    if not compensate:
        return None
    task_id = publish(app, environment, view, record, compensates_only=True)
    if task_id is None:
        raise IdempotencyError(
            f"the key {view.name} is resolved, but no message can be made for it: its steps are "
            "undone by the next call with this key"
        )
    return task_id


def refuse_what_is_known(environment: Environment, view: RecordView) -> Record:
    """Return a record whose outcome is unknown.

    Raises:
        NotUnknown: it is in another state.
        StoreUnavailable: the store does not answer.
    """
    record = environment.store.get(view.name)
    if record is None or record.state is not State.UNKNOWN:
        raise _not_unknown(view, record)
    return record


def _not_unknown(view: RecordView, record: Record | None) -> NotUnknown:
    missing = QUEUED if view.state == QUEUED else "gone"
    state = missing if record is None else str(record.state)
    return NotUnknown(
        f"the key {view.key} of {view.task} is {state}: only what is unknown can be resolved; "
        "forget frees a key in any state"
    )


def publish(
    app: Any,
    environment: Environment,
    view: RecordView,
    record: Record,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    compensates_only: bool = False,
    resumes: tuple[int, str] | None = None,
) -> str | None:
    """Publish a message for a record, which has its key whatever its arguments are.

    Args:
        compensates_only: it undoes the finished steps, and never runs the body.
        resumes: see :attr:`.WaitState.resumes`.

    Returns:
        Its task id; ``None``: no message can be made for a record of this name.
    """
    parts = parse_name(environment.prefix, view.name)
    assert parts is not None
    label = Label.of(record).readable
    # Later duplicates are compared with the arguments of the call that began it.
    fingerprint = b"" if compensates_only else record.fingerprint
    call_key = CallKey(*parts, label=label, fingerprint=fingerprint, checked=False)
    if record_key(environment.prefix, call_key) != view.name:
        return None
    task_id: str = uuid()
    waits = WaitState(publication=publication(), compensates_only=compensates_only, resumes=resumes)
    header = own_header(task_id, call_key, waits)
    task = app.tasks.get(view.task)
    options = {name: getattr(task, name, None) for name in _ROUTING}
    given = {name: value for name, value in options.items() if value is not None}
    given.update({"args": list(args), "kwargs": dict(kwargs)} if kwargs is not None else {})
    app.send_task(view.task, task_id=task_id, headers={OWN: header}, **given)
    return task_id
