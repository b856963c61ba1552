"""Find the record that a person means: by its name, its key, or the task id of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from celery_idempotent.core.keys import record_key
from celery_idempotent.core.record import State
from celery_idempotent.errors import IdempotencyError
from celery_idempotent.ops.history import History, newest_first
from celery_idempotent.ops.records import batches, read
from celery_idempotent.ops.unsettled import unsettled
from celery_idempotent.ops.views import Filter, RecordView, parse_name
from celery_idempotent.settings import Environment, TaskSetup

__all__ = ["exactly", "look_up", "search", "setups"]


Batches = Iterator[list[RecordView]]
GoneThrough = Callable[[int], object]


def look_up(
    app: Any, environment: Environment, text: str, gone_through: GoneThrough | None = None
) -> list[RecordView]:
    """Find the records that are meant, where it is cheapest to find them.

    A record's whole name is asked for as it is. Else it is taken as a key of each task in turn,
    then as what the journal calls a key or a task id.

    Args:
        text: a record's name, a key, or the id of a call that had one.
        gone_through: if all that leads to nothing, all records are gone through, and this is
            called with the number in each batch; ``None``: they are not, which may take long.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    prefix = environment.prefix
    if parse_name(prefix, text) is not None:
        return _read(environment, [text])
    found = _read(environment, _named(app, prefix, text)) or _read(
        environment, _told_of(environment, text)
    )
    if found or gone_through is None:
        return found
    return [
        view
        for batch in batches(environment.store, prefix, Filter(), gone_through)
        for view in batch
        if text in (view.key, view.owner_id)
    ]


def exactly(app: Any, environment: Environment, wanted: Filter) -> list[RecordView]:
    """Find what a filter's words name exactly: a key, or the id of a call.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    if not wanted.match:
        return []
    return [view for view in look_up(app, environment, wanted.match) if wanted.admits_kind(view)]


def search(
    app: Any,
    environment: Environment,
    wanted: Filter,
    *,
    since_ms: int = 0,
    scan: bool = False,
    gone_through: GoneThrough = lambda number: None,
) -> Batches:
    """Give the records that are wanted, a list a batch, those first that are found at once.

    Exact keys and task ids come first, then those of the journal, newest first, then all others,
    in no order. What is unknown is listed by the store: no others are gone through for it.

    Args:
        since_ms: give only those that something happened to since then, by the journal alone.
        scan: go through all records for unknown ones, too.
        gone_through: called with the number of records in each batch, wanted or not.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    store, prefix = environment.store, environment.prefix
    seen: set[str] = set()

    def new(views: list[RecordView]) -> list[RecordView]:
        added = [view for view in views if view.name not in seen]
        seen.update(view.name for view in added)
        return added

    if not since_ms:
        yield new(exactly(app, environment, wanted))
        if wanted.state == str(State.UNKNOWN):
            listed = [one.view for one in reversed(unsettled(environment))]
            yield new([view for view in listed if wanted.admits(view)])
            if not scan:
                return
    for views in newest_first(store, prefix, wanted, since_ms=since_ms, gone_through=gone_through):
        yield new(views)
    if not since_ms:
        for views in batches(store, prefix, wanted, gone_through):
            yield new(views)


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
    names = (
        told.name for told in history.events() if text in (told.task_id, told.key, told.original_id)
    )
    return list(dict.fromkeys(name for name in names if name))


def _read(environment: Environment, names: list[str]) -> list[RecordView]:
    return read(environment.store, environment.prefix, names, Filter())
