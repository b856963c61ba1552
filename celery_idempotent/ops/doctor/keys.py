"""Whether the key is the one that was meant: no part changes by chance, nothing is left unread."""

from __future__ import annotations

import datetime
import inspect
import re
import uuid
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

from celery_idempotent.ops.doctor.findings import HINT, WARNING, Finding, Patient, Task, about

#: Words in the name of an argument that differs from one sending of a call to the next.
_VOLATILE: Final = frozenset(
    (
        *("timestamp", "now", "nonce", "sent", "queued", "enqueued"),
        *("requestid", "traceid", "spanid", "correlationid", "messageid", "eventtime"),
        *("traceparent", "tracestate", "attempt", "retry", "retries"),
    )
)
#: What tasks of other libraries are given, and whose it is.
_FOREIGN: Final = {
    "once": "celery_once",
    "unique_on": "celery_singleton",
    "lock_expiry": "celery_singleton",
    "heimdall": "celery_heimdall",
}
_MOMENTS: Final = ("datetime", "datetime.datetime")


def check_keys(patient: Patient) -> Iterator[Finding]:
    """Check the tasks whose key is made of all arguments, and those that came from a lock."""
    yield from _left_over(patient)
    whole = [task for task in patient.tasks if _is_by_all(task)]
    volatile = {task.name: volatile_arguments(task.task) for task in whole}
    changing = [task for task in whole if volatile[task.name]]
    if changing:
        first = min(changing, key=lambda task: task.name)
        names = ", ".join(volatile[first.name])
        yield Finding(
            "volatile-argument",
            WARNING,
            f"the key is made of all arguments, and {names} of {first.name} may be another value "
            f"each time the call is made ({about(changing)})",
            "Then no two calls have the same key: every duplicate runs.",
            "Name what makes two calls the same, on the task",
            f"idempotency_key = {_others(first.task, volatile[first.name])!r}",
        )
    rest = [task for task in whole if not volatile[task.name]]
    if rest:
        yield Finding(
            "key-not-chosen",
            HINT,
            f"nothing says what makes two calls the same ({about(rest)})",
            "The key is made of all arguments: one that is added later, or differs by chance, "
            "makes another call of it.",
            "Name the arguments that matter, on the task",
            f"idempotency_key = {_others(rest[0].task, [])!r}",
        )


def _left_over(patient: Patient) -> Iterator[Finding]:
    for option, library in _FOREIGN.items():
        left = [task for task in patient.tasks if _is_left_over(task.task, option, library)]
        if left:
            first = min(left, key=lambda task: task.name)
            yield Finding(
                "left-over-option",
                WARNING,
                f"{option}= is an option of {library.replace('_', '-')}, and nothing reads it here "
                f"({about(left)})",
                "What it asked for does not happen.",
                "Take it out, and write on the task what stands for it (docs/migrating.rst)",
                _instead_of(getattr(first.task, option)),
            )


def _is_left_over(task: Any, option: str, library: str) -> bool:
    cls, *bases = type(task).__mro__
    return option in vars(cls) and not any(
        option in vars(base) or base.__module__.partition(".")[0] == library for base in bases
    )


def _instead_of(value: Any) -> str:
    names = value.get("keys") if isinstance(value, dict) else value
    if isinstance(names, (list, tuple)):
        key = repr(tuple(names)) if names else "lambda *args, **kwargs: 'all'"
        return f"idempotency_key = {key}"
    return "idempotency_ttl = 0"  # their locks end with the run


def _is_by_all(task: Task) -> bool:
    return task.options.key is None and task.options.mode == "enforce"


def volatile_arguments(task: Any) -> list[str]:
    """Return the arguments that are likely to differ each time one and the same call is made."""
    return [name for name, parameter in _parameters(task).items() if _is_volatile(name, parameter)]


def _parameters(task: Any) -> dict[str, inspect.Parameter]:
    try:
        found = dict(inspect.signature(task.run).parameters)
    except (TypeError, ValueError):
        return {}
    return found


def _is_volatile(name: str, parameter: inspect.Parameter) -> bool:
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    joined = {"".join(words), *words, *(one + other for one, other in pairwise(words))}
    if joined & _VOLATILE:
        return True
    kind, default = parameter.annotation, parameter.default
    if isinstance(default, (datetime.datetime, uuid.UUID)):
        return True  # made once, when the module was loaded: another one in each process
    is_moment = kind is datetime.datetime or kind in _MOMENTS
    return is_moment and words[-1:] == ["at"]


def _others(task: Any, volatile: list[str]) -> tuple[str, ...]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    names = [name for name, it in _parameters(task).items() if it.kind not in kinds]
    return tuple(name for name in names if name not in volatile) or ("...",)
