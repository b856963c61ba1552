"""Run a call again from one of its steps on, after what was wrong with it is mended."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery_idempotent.core.keys import Owner
from celery_idempotent.core.record import Label, Record, State
from celery_idempotent.core.step import cut, name_of
from celery_idempotent.delivery.repair import rewound_ttl_ms
from celery_idempotent.errors import IdempotencyError, StoreError, StoreUnavailable, UnknownStep
from celery_idempotent.ops import settle
from celery_idempotent.ops.views import RecordDetail, RecordView
from celery_idempotent.settings import Environment, TaskSetup

__all__ = [
    "Arguments",
    "NotPublished",
    "NotResumable",
    "Plan",
    "may_be_resumed",
    "plan",
    "resume",
]

log = logging.getLogger("celery_idempotent")


class NotResumable(IdempotencyError):
    """The call can't be run again as the record is now; nothing was changed."""


class NotPublished(IdempotencyError):
    """The message could not be published, and nothing was changed."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a call is published with."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    @classmethod
    def read(cls, args: str, kwargs: str) -> Arguments | None:
        """Read what a person gives in a form; ``None``: nothing was given.

        Raises:
            ValueError: it is no JSON list and object.
        """
        if not args.strip() and not kwargs.strip():
            return None
        try:
            given = cls(json.loads(args or "[]"), json.loads(kwargs or "{}"))
        except ValueError as exc:
            raise ValueError("The arguments are no JSON") from exc
        if not isinstance(given.args, list) or not isinstance(given.kwargs, dict):
            raise ValueError("Arguments are a JSON list, keyword arguments a JSON object")
        return given


@dataclass(frozen=True, slots=True)
class Plan:
    """What is going to be done to a record."""

    view: RecordView
    record: Record
    #: The first step that the next run does again; ``None``: what is recorded stays.
    start: str | None
    #: The names of the steps that stay, and of those that go, in the order of the run.
    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    #: What the call is published with; ``None``: not known, so it is not published.
    arguments: Arguments | None

    def as_dict(self) -> dict[str, Any]:
        """Return what goes into JSON."""
        return {
            "name": self.view.name,
            "kept": self.kept,
            "dropped": self.dropped,
            "publishes": self.arguments is not None,
        }

    @property
    def text(self) -> str:
        """What it is, in words that follow "Resume the call"."""
        return f"from {name_of(self.start)}" if self.start else "behind its finished steps"


def may_be_resumed(detail: RecordDetail) -> bool:
    """Whether a page offers it: nobody holds the key, and there is something to go on with."""
    return detail.lease_left is None and (bool(detail.steps) or detail.view.is_free)


def plan(
    app: Any,
    environment: Environment,
    view: RecordView,
    start: str | None = None,
    arguments: Arguments | None = None,
) -> Plan:
    """Find out what it takes to run a call again, and change nothing.

    Args:
        start: the step from which it is done again; a checkpoint goes by the name of its loop.
            ``None``: all that is recorded stays.
        arguments: what to call the task with; ``None``: what the result backend keeps of the call
            (``result_extended``).

    Raises:
        NotResumable: the record's state, or its task, does not allow it.
        UnknownStep: there is no such step.
        StoreUnavailable: the store does not answer.
    """
    record, now_ms = environment.store.peek(view.name)
    if record is None:
        raise NotResumable(f"the key {view.key} of {view.task} is gone: call the task again")
    task = app.tasks.get(view.task)
    setup = getattr(task, "_idempotency", None)
    if not isinstance(setup, TaskSetup):
        raise NotResumable(f"no task of this app is called {view.task}: only tasks are resumed")
    _check_state(view, record, now_ms, start)
    kept: list[str] = []
    dropped: list[str] = []
    if start is not None:
        if setup.options.after_wait != "answer":
            raise NotResumable(
                f"the calls of {view.task} run in their turn, and each has steps of its own: call "
                "the task again"
            )
        kept, dropped, start = _cut(environment, view, start)
    if arguments is None:
        arguments = _arguments_of(task, record)
    if arguments is None and start is None:
        raise NotResumable(
            f"the arguments of {view.key} are not known: name them with --args and --kwargs, or "
            "call the task again with the same key. The result backend keeps them where "
            "result_extended is set"
        )
    return Plan(view, record, start, tuple(kept), tuple(dropped), arguments)


def _check_state(view: RecordView, record: Record, now_ms: int, start: str | None) -> None:
    what = f"the key {view.key} of {view.task} is {record.state}"
    if now_ms < record.until_ms:
        left_s = (record.until_ms - now_ms) / 1000
        if record.state is State.RETRYING:
            raise NotResumable(f"{what}: its retry is due in {left_s:.3g} s, and goes on with it")
        raise NotResumable(f"{what}, and is held for {left_s:.3g} s more: ask again after that")
    if record.state is State.COMPENSATING and start is not None:
        raise NotResumable(
            f"{what}: its steps are being undone. Without --from, a message is published that goes "
            "on with that"
        )
    if start is not None:
        return
    if record.state is State.UNKNOWN:
        raise NotResumable(f"{what}: resolve it, or name a step from which it is to run again")
    if record.state in (State.SUCCEEDED, State.FAILED):
        raise NotResumable(
            f"{what}, which answers every call: name a step from which it is to run again"
        )


def _cut(
    environment: Environment, view: RecordView, start: str
) -> tuple[list[str], list[str], str]:
    """Return the names of the steps before and from ``start`` on, and its whole name.

    Raises:
        UnknownStep: there is no such step.
        RecordCorrupt: one can't be read.
    """
    found = cut(environment.store.steps(view.name), start)
    if not found.start:
        known = ", ".join(name_of(name) for name in found.kept) or "none is"
        raise UnknownStep(f"no step {start!r} is recorded of {view.key}. Recorded: {known}")
    return found.kept, found.dropped, found.start


def _arguments_of(task: Any, record: Record) -> Arguments | None:
    """Read what the call that the record is about was called with, if the backend keeps it."""
    try:
        owner = Owner.unpack(record.owner or bytes.fromhex(Label.of(record).origin))
        if owner is None:
            return None
        meta = task.backend.get_task_meta(owner.task_id)
    except (StoreError, ValueError):
        return None
    except Exception as exc:
        log.warning("could not ask the result backend for the arguments of a call: %s", exc)
        return None
    args, kwargs = meta.get("args"), meta.get("kwargs")
    # Some backends keep only how they look.
    if not isinstance(args, list | tuple) or not isinstance(kwargs or {}, Mapping):
        return None
    return Arguments(args, kwargs or {})


def resume(app: Any, environment: Environment, it: Plan, via: str) -> str | None:
    """Do what was planned: publish the call, and drop what later steps recorded.

    The message says what is to be dropped, so that whoever takes it does that where this process
    has died before it could. Without a message nothing is changed.

    Args:
        via: what the journal says of who did it.

    Returns:
        The id of the call that was published; ``None``: its arguments are not known. Then only what
        later steps recorded is dropped.

    Raises:
        NotResumable: the record has changed since it was planned.
        NotPublished: the broker does not take the message.
        StoreUnavailable: the store does not answer.
    """
    view, store, token = it.view, environment.store, it.record.token
    options = app.tasks[view.task]._idempotency.options
    task_id = None
    if it.arguments is not None:
        record, now_ms = store.peek(view.name)
        if record is None or record.token != token or now_ms < record.until_ms:
            raise _changed(view)
        args, kwargs = it.arguments.args, it.arguments.kwargs
        resumes = None if it.start is None else (token, it.start)
        try:
            task_id = settle.publish(
                app, environment, view, it.record, args, kwargs, resumes=resumes
            )
            if task_id is None:
                raise ValueError("no message can be made for a record of this name")
        except Exception as exc:
            raise NotPublished(
                f"the call of {view.key} of {view.task} could not be published ({exc}): nothing "
                "was changed, ask again"
            ) from exc
    if it.start is not None:
        ttl_ms = rewound_ttl_ms(options.ttl, environment.horizon)
        try:
            is_done = store.rewind(view.name, token, it.kept, ttl_ms)
        except StoreUnavailable:
            if task_id is None:
                raise
            is_done = False
        if not is_done and task_id is None:
            raise _changed(view)
    step = None if it.start is None else name_of(it.start)
    environment.journal.write(
        "resumed", view.name, view.task, None, step=step, call=task_id, via=via
    )
    return task_id


def _changed(view: RecordView) -> NotResumable:
    return NotResumable(
        f"the key {view.key} of {view.task} has changed since it was looked at, or is held: look "
        "again"
    )
