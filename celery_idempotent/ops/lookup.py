"""Find the record that a person means: by its name, its key, or the task id of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from celery_idempotent.core.keys import record_key
from celery_idempotent.core.record import Record
from celery_idempotent.errors import IdempotencyError, StoreError
from celery_idempotent.ops.history import History
from celery_idempotent.ops.records import batches
from celery_idempotent.ops.views import Filter, RecordView, parse_name, view_of
from celery_idempotent.settings import Environment, TaskSetup

__all__ = ["look_up", "setups"]


def look_up(
    app: Any,
    environment: Environment,
    text: str,
    before_scan: Callable[[], object] = lambda: None,
) -> list[RecordView]:
    """Find the records that are meant, where it is cheapest to find them.

    A record's whole name is asked for as it is. Else it is taken as a key of each task in turn,
    then as what the journal calls a key or a task id; only if all that leads to nothing, all
    records are gone through.

    Args:
        text: a record's name, a key, or the id of a call that had one.
        before_scan: called before all records are gone through, which may take long.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    prefix = environment.prefix
    if parse_name(prefix, text) is not None:
        return _read(environment, [text])
    found = _read(environment, _named(app, prefix, text)) or _read(
        environment, _told_of(environment, text)
    )
    if found:
        return found
    before_scan()
    return [
        view
        for batch in batches(environment.store, prefix, Filter())
        for view in batch
        if text in (view.key, view.owner_id)
    ]


def setups(app: Any) -> Iterator[tuple[Any, TaskSetup]]:
    """Give the app's idempotent tasks, and what their options come to."""
    for name in sorted(app.tasks):
        task = app.tasks[name]
        setup = getattr(task, "_idempotency", None)
        if isinstance(setup, TaskSetup):
            yield task, setup


def _named(app: Any, prefix: str, key: str) -> list[str]:
    # As errors and logs write it: namespace and key.
    names = [name for name in [f"{prefix}:{{{key}}}"] if parse_name(prefix, name)]
    for _, setup in setups(app):
        # A key may be too long for this task, or its namespace depend on the arguments.
        with suppress(IdempotencyError):
            names.append(record_key(prefix, setup.scheme.named(key)))
    return list(dict.fromkeys(names))


def _told_of(environment: Environment, text: str) -> list[str]:
    history = History(environment.store, environment.prefix)
    names = (told.name for told in history.events() if text in (told.task_id, told.key))
    return list(dict.fromkeys(name for name in names if name))


def _read(environment: Environment, names: list[str]) -> list[RecordView]:
    found: list[tuple[str, Record | StoreError | None]] = list(
        zip(names, environment.store.get_many(names), strict=True)
    )
    views = []
    for name, record in found:
        parts = parse_name(environment.prefix, name)
        if record is not None and parts is not None:
            views.append(view_of(name, *parts, record))
    return views
