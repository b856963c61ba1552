"""Whether periodic tasks have a new key at every tick."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Final

from celery.beat import BeatLazyFunc
from celery.schedules import crontab, maybe_schedule

from celery_idempotent.core.keys import MESSAGE_ID
from celery_idempotent.core.message import explicit_key
from celery_idempotent.errors import KeyDerivationError
from celery_idempotent.ops.doctor.findings import ERROR, HINT, Finding, Patient, Task, seconds

#: So many ticks of a crontab are looked at.
_TICKS: Final = 10


def check_beat(patient: Patient) -> Iterator[Finding]:
    """Check ``beat_schedule``; what a database holds instead is not seen."""
    tasks = {task.name: task for task in patient.tasks}
    for name, entry in (patient.app.conf.beat_schedule or {}).items():
        fields: Mapping[str, Any] = entry if isinstance(entry, Mapping) else vars(entry)
        task = tasks.get(str(fields.get("task")))
        if task is None or task.options.mode != "enforce" or _key_changes(task, fields):
            continue
        interval = shortest_interval(fields.get("schedule"), patient.app)
        # The window runs from the completion, which is after the tick.
        if interval is None or interval > task.options.ttl:
            continue
        if _is_by_function(task, fields):
            yield Finding(
                "key-by-function",
                HINT,
                f"the key of the periodic task {name!r} ({task.name}) is made by a function",
                f"It ticks every {seconds(interval)}, and its outcome answers for "
                f"{seconds(task.options.ttl)}: if the key does not change from tick to tick, the "
                "ticks in that time are duplicates, and don't run.",
                "If so, let each tick be a call of its own (idempotency_key = MESSAGE_ID), or set",
                "idempotency_ttl = 0",
            )
            continue
        yield Finding(
            "frozen-key",
            ERROR,
            f"the periodic task {name!r} ({task.name}) has the same key at every tick",
            f"It ticks every {seconds(interval)}, and its outcome answers for "
            f"{seconds(task.options.ttl)}: all ticks in that time are duplicates, and don't run.",
            "Let each tick be a call of its own, or the key tell the time",
            "idempotency_key = MESSAGE_ID",
        )


def _key_changes(task: Task, entry: Mapping[str, Any]) -> bool:
    """Whether two ticks have two keys; ``True`` as well where that can't be told."""
    options = entry.get("options") or {}
    explicit = options.get("idempotency_key", ...)
    if explicit is None:
        return True  # its calls are not deduplicated
    if explicit is ...:
        try:
            explicit = explicit_key(options.get("headers"))
        except KeyDerivationError:
            return True
    if callable(task.options.namespace):
        return True
    if explicit is not None:
        return isinstance(explicit, BeatLazyFunc)
    if task.options.key is MESSAGE_ID:
        return True
    given = [*(entry.get("args") or ()), *(entry.get("kwargs") or {}).values()]
    return any(isinstance(value, BeatLazyFunc) for value in given)


def _is_by_function(task: Task, entry: Mapping[str, Any]) -> bool:
    """Whether a function makes the key of a tick: nobody knows what it returns."""
    options = entry.get("options") or {}
    is_explicit = "idempotency_key" in options or explicit_key(options.get("headers")) is not None
    return callable(task.options.key) and not is_explicit


def shortest_interval(schedule: Any, app: Any) -> float | None:
    """Give the shortest time between two ticks, in seconds; ``None``: it can't be told."""
    try:
        schedule = maybe_schedule(schedule, app=app)
        if isinstance(schedule, crontab):
            return _shortest_of_crontab(schedule)
        every = schedule.run_every
    except Exception:
        return None  # a schedule of the user's own: it may compute anything
    return every.total_seconds() if isinstance(every, timedelta) else None


def _shortest_of_crontab(schedule: crontab) -> float:
    ticks = [schedule.maybe_make_aware(datetime(2001, 1, 1))]
    # Where a tick was on another day than now, some versions look for the next one tomorrow.
    schedule = copy(schedule)
    schedule.nowfun = lambda: ticks[-1]
    for _ in range(_TICKS):
        last, delta, _ = schedule.remaining_delta(ticks[-1])
        ticks.append(last + delta)
    # The first one is no tick, but the time from which they are looked for.
    gaps: list[timedelta] = [later - earlier for earlier, later in pairwise(ticks[1:])]
    return min(gaps).total_seconds()
