"""A call before it is published: it gets its key, and has it reserved, or attaches to another."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import blake2b
from threading import Lock
from types import EllipsisType
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

from celery.states import PROPAGATE_STATES, READY_STATES, REVOKED
from celery.utils.log import get_logger

from celery_idempotent.core.keys import MAX_EXPLICIT, MESSAGE_ID, CallKey, Owner, record_key
from celery_idempotent.core.message import (
    EXPLICIT,
    OWN,
    explicit_key,
    own_header,
    own_of,
    without_explicit,
)
from celery_idempotent.core.record import State
from celery_idempotent.core.reservation import Reservation
from celery_idempotent.core.verdicts import Reserve, Reserved
from celery_idempotent.due import ms_until
from celery_idempotent.errors import IdempotencyInProgress, KeyDerivationError, StoreError
from celery_idempotent.run.journal import Subject
from celery_idempotent.run.telling import Telling
from celery_idempotent.settings import TaskSetup, environment_of
from celery_idempotent.stores.base import Store

log = get_logger("celery_idempotent")

#: For how long a reservation is held that is not confirmed, in milliseconds.
_HOLD_MS: Final = 10_000
#: How many calls that are over may be in the way before the key is reserved in any case: that of
#: the record, that of a reservation, and one that came in between.
_MOST_OVER: Final = 3


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


def publication() -> str:
    """Make what tells a call that is published now from every other publication."""
    return os.urandom(8).hex()


def new_header(task_id: str, call_key: CallKey | None) -> dict[str, Any]:
    """Make our header for a call that is published now."""
    header = own_header(task_id, call_key)
    header["pub"] = publication()
    return header


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
    if setup.options.key is not MESSAGE_ID or setup.options.mode == "off":
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
    in_context = given is None
    if headers and given is None:
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
        return {**(headers or {}), OWN: new_header(task_id, None)}, None
    if in_context:
        call_key = joined_with_context(task, setup, call_key)
    made: dict[str, Any] = {OWN: new_header(task_id, call_key)}
    if given is not None:
        headers = _named(headers, given)
    return ({**headers, **made} if headers else made), call_key


def joined_with_context(task: Any, setup: TaskSetup, call_key: CallKey | None) -> CallKey | None:
    """Return the key that a call without an explicit one has where it is made here and now.

    Args:
        call_key: the key that it would have outside of any context.
    """
    context = _context.get()
    if context is None or call_key is None:
        return call_key
    joined = f"{quote(context.key, safe='')}|{quote(task.name, safe='')}|{call_key.key}"
    key, label = setup.scheme.identity(joined)
    return call_key._replace(key=key, label=label)


def _named(headers: Mapping[str, Any] | None, key: str) -> dict[str, Any]:
    return {**without_explicit(headers), EXPLICIT: key}


def publish_reserved(
    task: Any,
    setup: TaskSetup,
    call_key: CallKey,
    task_id: str,
    options: Mapping[str, Any],
    publish: Callable[[], Any],
    *,
    attaches: bool,
    raises: bool = True,
) -> Any:
    """Publish a call whose key is reserved for it, unless an earlier call takes its place.

    The key is reserved with one command before the message is published, for a moment, and with
    one after it until the message must have come. Only then it stops other calls, so that a
    producer that dies in between has lost none. Every call that could be published is carried out:
    the worker deduplicates, whatever is reserved.

    Args:
        options: those of the call, as ``apply_async`` takes them.
        publish: publishes the message.
        attaches: whether an earlier call may take its place.
        raises: whether there is somebody who can be told by an error that this one is refused.

    Returns:
        Celery's result of this call, or of the one that takes its place.

    Raises:
        IdempotencyInProgress: ``idempotency_on_enqueue`` is ``"raise"``, and that one is not done.
    """
    environment = environment_of(task.app)
    key, owner = record_key(environment.prefix, call_key), Owner(task_id).pack()
    reservation = Reservation(
        owner,
        due_ms=ms_until(options.get("countdown") or options.get("eta")) or 0,
        expires_ms=_expires_ms(task, options),
        keeps_result=not (
            task.ignore_result if options.get("ignore_result") is None else options["ignore_result"]
        ),
        fingerprint=call_key.fingerprint,
    )
    in_turn = setup.options.after_wait != "answer"
    ask = Reserve(reservation, _HOLD_MS, attaches, call_key.checked and not in_turn)
    try:
        first = _reserve(task, environment.store, key, ask)
    except StoreError as exc:
        log.warning("%s is published unreserved: %s", task.name, exc)
        return publish()
    if first is not None:
        return _instead(task, setup, call_key, key, *first, raises=raises)
    try:
        result = publish()
    except BaseException:
        _told(task, lambda: environment.store.unreserve(key, owner))
        raise
    ttl_ms = int(setup.options.queued_ttl * 1000)
    _told(task, lambda: environment.store.confirm(key, owner, ttl_ms))
    return result


def _reserve(task: Any, store: Store, key: str, ask: Reserve) -> tuple[str, State | None] | None:
    """Reserve a key; return the task id and state of the call that has it already, if one does.

    Raises:
        StoreError: it can't be reserved.
    """
    for _ in range(_MOST_OVER):
        answer = store.reserve(key, ask)
        if isinstance(answer, Reserved):
            return None
        first = Owner.unpack(answer.owner)
        if first is not None and _will_answer(task, first.task_id, answer.state):
            return first.task_id, answer.state
        ask = ask._replace(over=(*ask.over, answer.owner))
    store.reserve(key, ask._replace(attaches=False))
    return None


def _will_answer(task: Any, first: str, state: State | None) -> bool:
    """Whether the call with the task id ``first`` has a result, or is to have one.

    The result backend says so: the call may have been revoked, or have expired.
    """
    try:
        shown = str(task.backend.get_state(first))
    except Exception:
        return False  # no result backend, or it is away
    if state is None:
        return shown not in READY_STATES  # else it was not carried out under its key
    if state in (State.RUNNING, State.RETRYING):
        # Its worker may have killed the run, at a time limit for example, and stored a failure.
        return shown not in PROPAGATE_STATES
    return shown in READY_STATES and shown != REVOKED


def _instead(
    task: Any,
    setup: TaskSetup,
    call_key: CallKey,
    key: str,
    first: str,
    state: State | None,
    *,
    raises: bool,
) -> Any:
    """Return the result of the call that is in this one's place, or refuse this one."""
    environment, result = environment_of(task.app), task.AsyncResult(first)
    done = state in (State.SUCCEEDED, State.FAILED)
    refused = setup.options.on_enqueue == "raise" and not done
    telling = Telling(
        environment.journal,
        Subject(key, task.name, None, call_key.label),
        call_key.readable,
        task,
    )
    found = "queued" if state is None else str(state)
    telling.tell("stopped", original=first, found=found, refused=refused)
    if not (refused and raises):
        return result
    raise IdempotencyInProgress.of(
        f"{call_key.namespace}:{call_key.readable} {_FOUND[state]} by task {first}: this call was "
        "not published",
        first,
        result,
    )


#: What is said of the call in whose place another one is refused.
_FOUND: Final = {
    None: "is queued",
    State.RUNNING: "is being run",
    State.RETRYING: "waits for a retry",
}


def _told(task: Any, tell: Callable[[], None]) -> None:
    """Tell the store what became of a reservation; if it is away, the reservation expires."""
    try:
        tell()
    except StoreError as exc:
        log.warning("what became of a reserved call of %s was not recorded: %s", task.name, exc)


def _expires_ms(task: Any, options: Mapping[str, Any]) -> int:
    expires = options.get("expires", task.expires)
    after = None if expires is None else ms_until(expires)
    return 0 if after is None else max(1, after)
