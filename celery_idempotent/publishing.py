"""A call before it is published: it gets its key, or is attached to its first call."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import blake2b
from threading import Lock
from types import EllipsisType
from typing import Any
from urllib.parse import quote
from uuid import UUID

from celery.states import READY_STATES, REVOKED
from celery.utils.log import get_logger

from celery_idempotent.core.keys import MAX_EXPLICIT, MESSAGE_ID, CallKey, record_key
from celery_idempotent.core.message import (
    EXPLICIT,
    OWN,
    WaitState,
    explicit_key,
    own_header,
    own_of,
    without_explicit,
)
from celery_idempotent.core.record import Label, State
from celery_idempotent.errors import KeyDerivationError, StoreError
from celery_idempotent.settings import TaskSetup, environment_of

__all__ = ["first_call", "id_of_call", "published", "use_idempotency_key", "with_key"]

log = get_logger("celery_idempotent")


class _Context:
    """A key for all calls that are published within it, and how often each was."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._lock = Lock()
        self._calls: Counter[str] = Counter()

    def number_of(self, call: str) -> int:
        """Return 0 for the first of several equal calls, 1 for the second."""
        with self._lock:
            self._calls[call] += 1
            return self._calls[call] - 1


def published() -> WaitState:
    """Make what tells a call that is published now from every other publication."""
    return WaitState(publication=os.urandom(8).hex())


_context: ContextVar[_Context | None] = ContextVar("idempotency_context", default=None)


@contextmanager
def use_idempotency_key(key: str) -> Iterator[None]:
    """Derive the key of every call that is published within from ``key``.

    ::

        with use_idempotency_key(request.headers["Idempotency-Key"]):
            charge.delay(42, 100)
            send_receipt.delay(42)

    Each call's key is ``key`` joined with the task's name and the key that the call would have
    had, so that one request may publish several; a call's own explicit key wins. Put the caller's
    identity into ``key`` (``f"{user.id}/{key}"``), or callers share their outcomes.

    Raises:
        KeyDerivationError: it is no text, empty, or over 1024 characters.
    """
    if not isinstance(key, str) or not key.strip() or len(key) > MAX_EXPLICIT:
        raise KeyDerivationError(
            f"use_idempotency_key() takes text of 1 to {MAX_EXPLICIT} characters"
        )
    token = _context.set(_Context(key))
    try:
        yield
    finally:
        _context.reset(token)


def id_of_call(
    task: Any,
    setup: TaskSetup | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    explicit: str | EllipsisType | None,
) -> str | None:
    """Return the task id of a call whose key is its id (``MESSAGE_ID``), published in a context.

    The same calls in a context with the same key have the same ids, so that a request which is
    carried out again publishes the same messages. ``None``: any id will do, or the arguments have
    no canonical form.
    """
    context = _context.get()
    if context is None or setup is None or explicit is not ...:
        return None
    if setup.options.key is not MESSAGE_ID:
        return None
    try:
        told_by = setup.scheme.tell_apart(args, kwargs, task=task)
    except (TypeError, KeyDerivationError):
        return None  # it is said where the key is derived
    if told_by is None:
        return None
    call = f"{quote(context.key, safe='')}|{quote(task.name, safe='')}|{told_by}"
    text = f"{call}|{context.number_of(call)}"
    return str(UUID(bytes=blake2b(text.encode(), digest_size=16).digest()))


def with_key(
    task: Any,
    setup: TaskSetup | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    task_id: str,
    explicit: str | EllipsisType | None,
    headers: Mapping[str, Any] | None,
) -> tuple[Mapping[str, Any] | None, CallKey | None]:
    """Return the headers of a message with its key in them, and the key that was derived.

    A message that is published again keeps the key it has: none is returned for it.

    Args:
        explicit: the call's ``idempotency_key``; ``None``: it is not deduplicated; ``...``: it
            brings none.

    Raises:
        KeyDerivationError: no key can be derived.
    """
    if explicit is None:
        return {**(headers or {}), OWN: own_header(task_id, None)}, None
    given = None if explicit is ... else explicit
    if setup is None or setup.options.mode == "off":
        return (headers if given is None else _named(headers, given)), None
    if given is None and own_of(headers, task_id) is not None:
        return headers, None
    context = _context.get() if given is None else None
    if headers and given is None and context is None:
        given = explicit_key(headers)
    try:
        call_key = setup.scheme.derive(args, kwargs, task_id=task_id, explicit=given, task=task)
    except TypeError:
        if task.typing and setup.options.mode != "shadow":
            raise
        return headers, None  # typing=False: Celery has such a call fail in the worker
    except KeyDerivationError as exc:
        if setup.options.mode != "shadow":
            raise
        log.warning("shadow: this call would not be published: %s", exc)
        return {**(headers or {}), OWN: own_header(task_id, None, published())}, None
    if context is not None and call_key is not None:
        joined = f"{quote(context.key, safe='')}|{quote(task.name, safe='')}|{call_key.key}"
        key, label = setup.scheme.identity(joined)
        call_key = call_key._replace(key=key, label=label)
    made: dict[str, Any] = {OWN: own_header(task_id, call_key, published())}
    if given is not None:
        headers = _named(headers, given)
    return ({**headers, **made} if headers else made), call_key


def _named(headers: Mapping[str, Any] | None, key: str) -> dict[str, Any]:
    return {**without_explicit(headers), EXPLICIT: key}


def first_call(task: Any, setup: TaskSetup | None, call_key: CallKey) -> str | None:
    """Return the task id of the call that ``idempotency_on_enqueue`` attaches this one to.

    This only reads: two calls that race both publish, and the worker deduplicates. A call is
    attached to where it runs under a live lease, waits for a retry that isn't overdue, or is done
    with its result still in the result backend; and it had the same arguments, if they are checked.
    It is not where its result may never come: it was revoked, may expire, or keeps no result.
    Shadow mode suppresses nothing, so it never attaches.
    """
    if setup is None or setup.options.on_enqueue != "attach" or setup.options.mode != "enforce":
        return None
    environment = environment_of(task.app)
    try:
        record, now_ms = environment.store.peek(record_key(environment.prefix, call_key))
    except StoreError as exc:
        log.warning("%s is published: its key can't be looked up: %s", task.name, exc)
        return None
    if record is None or (call_key.checked and record.fingerprint != call_key.fingerprint):
        return None
    first = record.owner_id
    if first is None:
        return None
    if record.state in (State.RUNNING, State.RETRYING):
        if now_ms >= record.until_ms or Label.of(record).is_alone:
            return None
        return None if _state_of(task, first) in (None, REVOKED) else first
    done = record.state in (State.SUCCEEDED, State.FAILED)
    return first if done and _state_of(task, first) in READY_STATES - {REVOKED} else None


def _state_of(task: Any, task_id: str) -> str | None:
    try:
        state: str = task.AsyncResult(task_id).state
    except Exception:
        return None  # no result backend, or it is away
    return state
