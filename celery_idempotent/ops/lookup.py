"""Find the record that a person means: by its name, its key, or the task id of a call."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, Final

from celery_idempotent.core.keys import record_key
from celery_idempotent.core.record import State
from celery_idempotent.errors import IdempotencyError
from celery_idempotent.ops.history import History, newest_first
from celery_idempotent.ops.records import batches, read, read_named
from celery_idempotent.ops.unsettled import unsettled
from celery_idempotent.ops.views import OVERDUE, QUEUED, Filter, RecordView, parse_name
from celery_idempotent.settings import Environment, TaskSetup

__all__ = ["exactly", "listed", "look_up", "nearly", "no_such_task", "search", "setups"]


_BATCH: Final = 1000

Batches = Iterator[list[RecordView]]
GoneThrough = Callable[[int], object]


def look_up(
    app: Any, environment: Environment, text: str, gone_through: GoneThrough | None = None
) -> list[RecordView]:
    """Find the records that are meant, where it is cheapest to find them.

    A key that has no record is found, too, where it is reserved for a call in its queue.

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


def nearly(app: Any, environment: Environment, text: str) -> list[RecordView]:
    """Find records whose keys differ from a text by quotes, or by a context's key before it.

    A number as a text has quotes in its key, and a shell takes them away: ``order:'1'``. A call
    that a request made has the request's key before its own.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    bare = text.replace("'", "")
    quoted = re.sub(r"(?<![\w.+-])[-+]?\d[\w.]*", r"'\g<0>'", bare)
    others = [one for one in (bare, quoted) if one != text]  # the text itself was looked up
    names = [name for one in others for name in _named(app, environment.prefix, one)]
    told = History(environment.store, environment.prefix).events()
    for one in told:
        key = one.key.replace("'", "")
        if one.name and (key == bare or key.endswith(f"|{bare}")):
            names.append(one.name)
    return _read(environment, list(dict.fromkeys(names)))


def exactly(app: Any, environment: Environment, wanted: Filter) -> list[RecordView]:
    """Find what a filter's words name exactly: a key, or the id of a call.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    if not wanted.match:
        return []
    return [view for view in look_up(app, environment, wanted.match) if wanted.admits_kind(view)]


def listed(environment: Environment, wanted: Filter) -> list[RecordView] | None:
    """Give those wanted that need a person, newest first, without going through all records.

    ``None``: the store lists none of such a state. It lists what is unknown, and of what is held by
    a lease that is over those runs that were under way for half a second, or whose worker told that
    they were cut off.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    store, prefix = environment.store, environment.prefix
    if wanted.state == str(State.UNKNOWN):
        unknown = (one.view for one in reversed(unsettled(environment)))
        return [view for view in unknown if wanted.admits(view)]
    if wanted.state != OVERDUE:
        return None
    held, views = iter(store.held(prefix)), list[RecordView]()
    while names := list(islice(held, _BATCH)):
        views += read(store, prefix, names, wanted)
    return sorted(views, key=lambda view: view.until_ms, reverse=True)


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
    in no order. Of what the store lists (:func:`listed`), no others are gone through. Of calls that
    are queued the journal knows nothing.

    Args:
        since_ms: give only those that something happened to since then, by the journal alone.
        scan: go through all records for those that the store lists, too.
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
        if wanted.state == QUEUED:
            for views in batches(store, prefix, wanted, gone_through):
                yield new(views)
            return
        known = listed(environment, wanted)
        if known is not None:
            yield new(known)
            if not scan:
                return
    for views in newest_first(store, prefix, wanted, since_ms=since_ms, gone_through=gone_through):
        yield new(views)
    if not since_ms:
        for views in batches(store, prefix, wanted, gone_through):
            yield new(views)


def no_such_task(app: Any, wanted: Filter) -> str:
    """Say that a filter's task is none of the app's; empty where it is one, or none is meant.

    To be said where nothing was found: records outlive the code of their tasks.
    """
    if wanted.task is None:
        return ""
    names = [name for name in app.tasks if not name.startswith("celery.")]
    if any(fnmatchcase(name, wanted.task) for name in names):
        return ""
    near = get_close_matches(wanted.task, names, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"This app has no task {wanted.task}.{hint}"


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
    return read_named(environment.store, environment.prefix, names)
