"""What operators see and do: records listed, counted, shown and forgotten.

Whoever shows them (commands, pages, an API) takes them from here. Lists are streamed: a store may
hold millions of records, and none of this asks it for more than a thousand at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Final

from celery_idempotent.core.record import Record
from celery_idempotent.core.step import Step
from celery_idempotent.errors import StoreError, StoreUnavailable
from celery_idempotent.ops.outcomes import text_of
from celery_idempotent.ops.views import (
    STATES,
    UNREADABLE,
    Filter,
    RecordDetail,
    RecordView,
    Stats,
    StepView,
    parse_name,
    view_of,
)
from celery_idempotent.stores.base import Store

__all__ = [
    "STATES",
    "UNREADABLE",
    "Filter",
    "RecordDetail",
    "RecordView",
    "Stats",
    "StepView",
    "batches",
    "count",
    "find",
    "forget",
    "parse_name",
    "show",
]

_BATCH: Final = 1000


def batches(store: Store, prefix: str, wanted: Filter) -> Iterator[list[RecordView]]:
    """Go through all records, in no order; give those that are wanted, a list a batch.

    As with any scan, a record that is written meanwhile may be missing or come twice. A list may
    be empty, so that whoever asks can stop when it has taken long enough.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    names = store.scan(f"{_literal(prefix)}:{{*}}")
    while batch := list(islice(names, _BATCH)):
        parsed = {name: parts for name in batch if (parts := parse_name(prefix, name))}
        asked = [name for name, parts in parsed.items() if wanted.admits_name(parts[1])]
        found = zip(asked, store.get_many(asked), strict=True)
        views = (
            view_of(name, *parsed[name], record) for name, record in found if record is not None
        )
        yield [view for view in views if wanted.admits(view)]


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
    """Read all that is known of one record; ``None`` where there is none.

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
    if record is None:
        return None
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
    )


def forget(store: Store, prefix: str, name: str, horizon: float) -> bool:
    """Free a key, so that its next call runs; whether there was a record.

    Args:
        horizon: how long a copy of a message may still come, in seconds.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    if parse_name(prefix, name) is None:
        return False  # whatever it is, it is not ours to overwrite
    return store.forget(name, int(horizon * 1000))


def count(store: Store, prefix: str) -> Stats:
    """Go through all records and count them.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    stats = Stats()
    for batch in batches(store, prefix, Filter()):
        stats.add(batch)
    return stats


def _literal(text: str) -> str:
    """Quote what a glob pattern would take for more than itself."""
    return re.sub(r"([*?\[\]\\])", r"\\\1", text)


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
