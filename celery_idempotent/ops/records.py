"""What operators see and do: records listed, counted, shown and forgotten.

Whoever shows them (commands, pages, an API) takes them from here. Lists are streamed: a store may
hold millions of records, and none of this asks it for more than a thousand at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from celery_idempotent.core.record import Record
from celery_idempotent.core.reservation import Reservation
from celery_idempotent.core.step import Step
from celery_idempotent.errors import StoreError, StoreUnavailable
from celery_idempotent.ops.outcomes import text_of
from celery_idempotent.ops.views import (
    QUEUED,
    UNREADABLE,
    Filter,
    QueuedCall,
    RecordDetail,
    RecordView,
    Stats,
    StepView,
    parse_name,
    view_of,
    view_of_queued,
)
from celery_idempotent.stores.base import ReservedPage, Store, quoted

#: So many records are looked at to say how many there are of which kind.
SAMPLED: Final = 10_000
_BATCH: Final = 1000


def _ignore(number: int) -> None:
    """Take no notice of how far it is."""


def batches(
    store: Store, prefix: str, wanted: Filter, gone_through: Callable[[int], object] = _ignore
) -> Iterator[list[RecordView]]:
    """Go through all records, in no order; give those that are wanted, a list a batch.

    As with any scan, a record that is written meanwhile may be missing or come twice. A list may
    be empty, so that whoever asks can stop when it has taken long enough. In the state *queued* it
    is the reservations that are gone through: a key that has a record may have one, too.

    Args:
        gone_through: called with the number of records in each batch, wanted or not.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    if wanted.state == QUEUED:
        for page in store.reserved(prefix):
            yield _queued(store, prefix, page, wanted)
            gone_through(page.of)
        return
    names = store.scan(f"{quoted(prefix)}:{{*}}")
    while batch := list(islice(names, _BATCH)):
        yield read(store, prefix, batch, wanted)
        gone_through(len(batch))


def read(store: Store, prefix: str, names: Sequence[str], wanted: Filter) -> list[RecordView]:
    """Read records by their names; give those that are there and wanted, in that order.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    parsed = {name: parts for name in names if (parts := parse_name(prefix, name))}
    asked = [name for name, parts in parsed.items() if wanted.admits_name(parts[1])]
    found = zip(asked, store.get_many(asked), strict=True)
    views = (view_of(name, *parsed[name], record) for name, record in found if record is not None)
    return [view for view in views if wanted.admits(view)]


def read_named(store: Store, prefix: str, names: Sequence[str]) -> list[RecordView]:
    """Read a few keys by their names: records, and where there is none, what is reserved.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    found = {view.name: view for view in read(store, prefix, names, Filter())}
    for name in names:
        parts = parse_name(prefix, name)
        if name not in found and parts is not None:
            queued = queued_call(store, name)
            if queued is not None:
                found[name] = view_of_queued(name, *parts, queued)
    return [found[name] for name in names if name in found]


def queued_call(store: Store, name: str) -> QueuedCall | None:
    """Return the call that was published with a key and not yet delivered, if there is one.

    What is reserved and not confirmed is left out: it stops nobody, and is over in a moment.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    it = store.reservation(name)
    return None if it is None else _call_of(it)


def _call_of(it: Reservation) -> QueuedCall | None:
    if not it.is_confirmed or it.task_id is None:
        return None
    return QueuedCall(it.task_id, it.since_ms, it.due_ms, it.until_ms, it.waits)


def _queued(store: Store, prefix: str, page: ReservedPage, wanted: Filter) -> list[RecordView]:
    """Give the reservations of a page that are wanted; what a record knows of its key is used."""
    views = []
    known = {view.name: view for view in read(store, prefix, [k for k, _ in page.found], Filter())}
    for name, reservation in page.found:
        parts, call = parse_name(prefix, name), _call_of(reservation)
        if parts is None or call is None:
            continue
        view = view_of_queued(name, *parts, call)
        if name in known:
            view = replace(view, key=known[name].key, task=known[name].task)
        views.append(view)
    return [view for view in views if wanted.admits(view)]


def find(
    store: Store,
    prefix: str,
    *,
    task: str | None = None,
    state: str | None = None,
    match: str | None = None,
    limit: int | None = None,
) -> Iterator[RecordView]:
    """Stream the records that :class:`Filter` admits, at most ``limit``, as they come.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    all_batches = batches(store, prefix, Filter(task, state, match))
    return islice((view for batch in all_batches for view in batch), limit)


def show(store: Store, prefix: str, name: str) -> RecordDetail | None:
    """Read all that is known of one key; ``None`` where it has no record, and is not reserved.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    parts = parse_name(prefix, name)
    if parts is None:
        return None
    record: Record | StoreError | None
    try:
        record = store.get(name)
    except StoreUnavailable:
        raise
    except StoreError as exc:
        record = exc
    queued = queued_call(store, name)
    if record is None:
        if queued is None:
            return None
        view = view_of_queued(name, *parts, queued)
        return RecordDetail(view, None, None, "", queued=queued)
    view = view_of(name, *parts, record)
    result = ""
    steps: tuple[StepView, ...] = ()
    if isinstance(record, Record):
        result = text_of(record.outcome)
        steps = _steps(store, name) if record.has_steps else ()
    now_ms = store.now_ms()
    return RecordDetail(
        view=view,
        is_lease_over=view.is_lease_over(now_ms),
        lease_left=view.lease_left(now_ms),
        window_left=store.ttl(name),
        result=result,
        steps=steps,
        queued=queued,
    )


def forget(store: Store, prefix: str, name: str, horizon: float) -> bool:
    """Free a key, so that its next call runs; whether there was a record, or a reservation.

    Args:
        horizon: how long a copy of a message may still come, in seconds.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    if parse_name(prefix, name) is None:
        return False  # whatever it is, it is not ours to overwrite
    return store.forget(name, int(horizon * 1000))


def count(
    store: Store,
    prefix: str,
    *,
    exact: bool = False,
    gone_through: Callable[[int], object] = _ignore,
) -> Stats:
    """Count the records: where there are many, by a sample of them, unless it has to be ``exact``.

    What is unknown is counted exactly in any case.

    Args:
        gone_through: called with the number of records in each batch.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    stats = Stats()
    if exact:
        for views in batches(store, prefix, Filter(), gone_through):
            stats.add(views)
        return stats
    for sample in store.sample(prefix, SAMPLED):
        for start in range(0, len(sample.keys), _BATCH):
            names = sample.keys[start : start + _BATCH]
            stats.add(read(store, prefix, names, Filter()), sample.weight)
        stats.is_exact &= sample.of == len(sample.keys)
    if not stats.is_exact:
        stats.states["unknown"] = len(store.unknown(prefix))
    return stats


def _steps(store: Store, name: str) -> tuple[StepView, ...]:
    found: list[tuple[int, StepView]] = []
    for step_name, packed in store.steps(name).items():
        try:
            step = Step.unpack(packed)
        except StoreError as exc:
            found.append((len(found), StepView(step_name, UNREADABLE, str(exc), False)))
            continue
        view = StepView(step_name, str(step.state), text_of(step.outcome), bool(step.compensation))
        found.append((step.order, view))
    return tuple(view for _, view in sorted(found, key=lambda pair: pair[0]))
