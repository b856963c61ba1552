"""``celery inspect idempotency`` and ``celery control idempotency_forget``, in a running worker."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from typing import Any, Final

from celery.utils.log import get_logger
from celery.worker import state as worker_state

from celery_idempotent.core.record import Process, Record, State
from celery_idempotent.errors import IdempotencyError
from celery_idempotent.ops import settle
from celery_idempotent.ops.lookup import look_up
from celery_idempotent.run.process import BOOT_ID
from celery_idempotent.settings import Environment, environment_of
from celery_idempotent.worker.waiters import Waiter, waiting_messages

log = get_logger("celery_idempotent")

#: A claim as young as that may have been made since the command was sent.
_YOUNG_S: Final = 10.0


def holdings(app: Any) -> list[dict[str, Any]] | dict[str, str]:
    """Give the claims of this worker's tasks, and the messages that it holds; or an error."""
    try:
        return [
            *claims(environment_of(app), worker_state.active_requests),
            *waiting(waiting_messages()),
        ]
    except IdempotencyError as exc:
        return {"error": str(exc)}


def claims(environment: Environment, active: Iterable[Any]) -> list[dict[str, Any]]:
    """Give the live claims of a worker: what its requests run, as far as the store agrees.

    Runs are in the processes of the pool, and a claim is only what the store says that it is. So
    the keys are those of the requests that the worker has handed to its pool, and the rest is the
    store's: whose the key is, since when, and for how long.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    asked = {}
    for request in list(active):
        name = _name_of(request)
        if name is not None:
            asked[name] = request
    store = environment.store
    records = store.get_many(list(asked))
    now_ms = store.now_ms()
    held = []
    for (name, request), record in zip(asked.items(), records, strict=True):
        if isinstance(record, Record) and _is_run_of(record, request):
            process = Process.unpack(record.process)
            held.append(
                {
                    "key": name,
                    "task": request.name,
                    "task_id": request.id,
                    "age": round(max(0.0, now_ms / 1000 - record.token / 1e6), 3),
                    "lease_left": round((record.until_ms - now_ms) / 1000, 3),
                    "token": record.token,
                    "attempt": record.retries + 1,
                    "interruptions": record.interruptions,
                    "pid": None if process is None else process.pid,
                }
            )
    return sorted(held, key=lambda claim: -claim["age"])


def waiting(messages: Iterable[Waiter]) -> list[dict[str, Any]]:
    """Give the messages that a worker holds until a key is free or answered, oldest first."""
    now = time.monotonic()
    held = [
        {
            "waits_for": one.key,
            "task": one.request.name,
            "task_id": one.request.id,
            "waiting": round(now - one.since, 3),
        }
        for one in messages
    ]
    return sorted(held, key=lambda one: -one["waiting"])


def _name_of(request: Any) -> str | None:
    name_of = getattr(request, "record_name", None)
    if name_of is None:
        return None  # no task of ours
    try:
        name: str | None = name_of()
    except Exception:
        log.debug("task %s has no key that can be told", request.id, exc_info=True)
        return None
    return name


def _is_run_of(record: Record, request: Any) -> bool:
    """Whether this worker's run of that request holds the key."""
    if record.state not in (State.RUNNING, State.COMPENSATING):
        return False
    process = Process.unpack(record.process)
    mine = process is not None and (process.host, process.boot) == (socket.gethostname(), BOOT_ID)
    return mine and (record.owner_id == request.id or record.state is State.COMPENSATING)


def forget(app: Any, key: str, token: int | None = None) -> dict[str, str]:
    """Free a key; with ``token`` only if that is still its token. Says what it did, or why not."""
    try:
        return _forget(app, environment_of(app), key, token)
    except IdempotencyError as exc:
        return {"error": str(exc)}


def _forget(app: Any, environment: Environment, key: str, token: int | None) -> dict[str, str]:
    found = look_up(app, environment, key)
    if not found:
        return {"error": f"no record has the key {key}"}
    if len(found) > 1:
        return {"error": f"{key} may mean {', '.join(view.name for view in found)}: name one"}
    view = found[0]
    if view.owner_id is None and view.is_free:
        return {"ok": f"{view.name} is free"}
    # Every worker gets the command. One that gets it late must not free what was claimed since.
    if token is not None and view.token != token:
        return {"error": f"{view.name} has token {view.token} now, and not {token}: left as it is"}
    age = environment.store.now_ms() / 1000 - view.token / 1e6
    if token is None and age < _YOUNG_S:
        return {
            "error": f"{view.name} was claimed {max(0.0, age):.1f} s ago by {view.owner_id}, maybe "
            f"since it was forgotten: left as it is; with its token, {view.token}, it is freed"
        }
    settle.forget(environment, view, "celery control idempotency_forget")
    return {"ok": f"{view.name} is free"}
