"""What this Flower itself knows of tasks, and words for its pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from celery_idempotent.delivery.celery_events import STATE

#: Which of Flower's colours a state has, in the words of its three styles.
_COLOURS: Final = {
    "succeeded": ("success", "success"),
    "failed": ("important", "danger"),
    "unreadable": ("important", "danger"),
    "unknown": ("warning", "warning"),
    "compensating": ("warning", "warning"),
    "retrying": ("warning", "warning"),
    "running": ("info", "primary"),
    "queued": ("info", "primary"),
}


def _tasks(application: Any) -> Any:
    tasks = application.events.state.tasks
    return getattr(tasks, "data", tasks)


def knows(application: Any, task_id: str | None) -> bool:
    """Whether Flower has a page for a task."""
    return bool(task_id) and task_id in _tasks(application)


def duplicates_of(application: Any, record: str, journaled: Sequence[str]) -> list[str]:
    """Give a record's duplicates, newest first: those of the journal, and what Flower remembers.

    To be called in Flower's loop, which is where its events come in.
    """
    remembered = [
        str(task_id)
        for task_id, task in _tasks(application).items()
        if getattr(task, "idempotency_record", None) == record and task.state == STATE
    ]
    known = set(journaled)
    # Of what the journal has not got, it is either too old for it, or too new.
    return [id for id in reversed(remembered) if id not in known] + list(journaled)


def badge(state: str) -> str:
    """Give the CSS classes of a state's badge: for Flower 1, for 2.0, and since."""
    old, new = _COLOURS.get(state, ("default", "secondary"))
    return f"label label-{old} badge bg-{new} text-bg-{new}"


def short(task_id: str | None) -> str:
    """Give as much of a task id as tells it apart in a list."""
    task_id = task_id or ""
    return task_id if len(task_id) <= 16 else f"{task_id[:8]}…"


def span(seconds: float | None) -> str:
    """Give a length of time as people say it."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    said = [f"{number} {unit}" for number, unit in parts if number][:2]
    return " ".join(said) or "0 s"
