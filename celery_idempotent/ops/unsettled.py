"""What needs a person: records whose outcome is unknown, and what to do about one."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import click

from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.ops.history import History, JournalEntry, when
from celery_idempotent.ops.records import read
from celery_idempotent.ops.views import Filter, RecordView
from celery_idempotent.settings import Environment

#: The page that says what to do.
RUNBOOK: Final = "docs/unknown-outcomes.rst"

_BATCH: Final = 1000
#: What the journal tells of a run, up to where it was cut off.
_RUNS: Final = {
    "claimed": "began",
    "retrying": "asked to be retried",
    "interrupted": "was cut off",
    "process lost": "lost its process",
}


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A record whose outcome is unknown."""

    view: RecordView
    #: Since when, on the store's clock; where the journal doesn't know, when the run began.
    since_ms: int


def unsettled(environment: Environment) -> list[Unsettled]:
    """Return the records whose outcome is unknown, the oldest first.

    The store lists them (:meth:`.Store.unknown`), and the journal knows of those that an earlier
    release left: a store with millions of records is asked for a few.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    store, prefix = environment.store, environment.prefix
    since: dict[str, int] = {}
    for told in History(store, prefix).events():
        if told.what == "unknown" and told.name and not told.more.get("shadow"):
            since[told.name] = told.at_ms  # the last one that is read came first
    names = list(since)
    with suppress(StoreUnavailable):  # whoever may read no list has the journal still
        names = list(dict.fromkeys([*names, *store.unknown(prefix)]))
    views: list[RecordView] = []
    for at in range(0, len(names), _BATCH):
        views += read(store, prefix, names[at : at + _BATCH], Filter(state="unknown"))
    found = [Unsettled(view, since.get(view.name, view.token // 1000)) for view in views]
    return sorted(found, key=lambda one: one.since_ms)


def cut_off(history: Iterable[JournalEntry], name: str, before_ms: int) -> str | None:
    """Say which run of a record was cut off, when it began, and where; ``None``: it isn't known.

    Args:
        history: the journal, newest first.
        before_ms: when the outcome became unknown.
    """
    last: JournalEntry | None = None
    for told in history:
        if told.name != name or told.at_ms > before_ms or told.what not in _RUNS:
            continue
        if last is not None and told.task_id != last.task_id:
            break
        last = last or told
        if told.what == "claimed":
            ended = "" if told is last else f"; it {_RUNS[last.what]} at {when(last.at_ms)}"
            return f"{_did(told)}{ended}."
    return None if last is None else f"{_did(last)}."


def _did(told: JournalEntry) -> str:
    place = f" on {told.node}" if told.node else ""
    process = f", process {told.pid}" if told.pid else ""
    return (
        f"The run of task {told.task_id} {_RUNS[told.what]} at {when(told.at_ms)}{place}{process}"
    )


def _program() -> str:
    """Return what the commands are called by: as the one that runs now, where that is Django's."""
    context = click.get_current_context(silent=True)
    name = None if context is None else context.find_root().info_name
    return name if name and name.startswith("manage.py") else "celery -A ... idempotency"


def advice(view: RecordView) -> tuple[str, ...]:
    """Return what to do about an unknown outcome, with the three commands to choose from."""
    # By its name in the store: another task may have the same key.
    resolve = f"{_program()} resolve {shlex.quote(view.name)}"
    return (
        "Look whether the effect happened, then choose one of these:",
        f"  it happened:               {resolve} --succeeded '<its result as JSON>'",
        f"  it did not, run it again:  {resolve} --rerun",
        f"  it failed, or undo it:     {resolve} --failed '<why>'",
        f"What to look for, and what each does: {RUNBOOK}",
    )
