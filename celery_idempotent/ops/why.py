"""What happened to one call, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from celery_idempotent.ops.history import History, JournalEntry, when
from celery_idempotent.ops.lookup import look_up
from celery_idempotent.ops.records import batches, queued_call
from celery_idempotent.ops.sentences import in_its_queue, sentence, times
from celery_idempotent.ops.unsettled import advice, cut_off
from celery_idempotent.ops.views import QUEUED, Filter, RecordView, parse_name, view_of
from celery_idempotent.settings import Environment

#: What says how a call ended; the rest is what happened on the way.
_DECIDES: Final = frozenset(
    (
        "succeeded",
        "failed",
        "released",
        "ended",
        "unknown",
        "deduplicated",
        "answered again",
        "dropped",
        "refused",
        "mismatch",
    )
)
#: What tells of a run that has not come to its end, and what tells that it has.
_RUNS: Final = frozenset(("claimed", "retrying", "interrupted", "process lost", "lost"))
_ENDS: Final = _DECIDES - {"deduplicated", "dropped", "refused", "mismatch"} | {"compensating"}
#: What a person did to a record, which belongs to every call that used it.
_BY_HAND: Final = frozenset(("forgotten", "resolved", "resumed"))


@dataclass(frozen=True, slots=True)
class Account:
    """What is known of one call."""

    task_id: str
    task: str
    #: The record's name, and the key as people read it.
    name: str
    key: str
    #: How it stands, in a sentence or two.
    summary: str
    #: What happened, oldest first: when, and a sentence.
    story: tuple[tuple[str, str], ...]
    #: The calls that were answered with its outcome, newest first.
    duplicates: tuple[str, ...]
    #: The record as it is now; ``None``: there is none any more.
    record: RecordView | None
    #: Whether the record counts as running though its lease has ended.
    is_lease_over: bool = False
    #: What to do, where the outcome is unknown: a line each.
    advice: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Give what goes into JSON."""
        return {
            "task_id": self.task_id,
            "task": self.task,
            "name": self.name,
            "key": self.key,
            "summary": self.summary,
            "story": [{"at": at, "text": text} for at, text in self.story],
            "duplicates": list(self.duplicates),
            "record": None if self.record is None else self.record.as_dict(),
            "is_lease_over": self.is_lease_over,
            "advice": list(self.advice),
        }


def why(
    environment: Environment, task_id: str, gone_through: Callable[[int], object] | None = None
) -> Account | None:
    """Tell what happened to a call; ``None``: nothing is known of it.

    Args:
        gone_through: where the journal knows nothing, all records are gone through, and this is
            called with the number in each batch; ``None``: they are not.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    own: list[JournalEntry] = []
    duplicates: list[str] = []
    by_hand: list[JournalEntry] = []
    others: list[JournalEntry] = []
    for told in History(environment.store, environment.prefix).events():
        if told.task_id == task_id:
            own.append(told)
            continue
        if told.began_ms is not None and not told.more.get("shadow"):
            others.append(told)
        if told.original_id == task_id and told.what == "deduplicated":
            duplicates.append(told.task_id or "")
        elif told.what in _BY_HAND:
            by_hand.append(told)
    own.reverse()
    if not own:
        return _of_record(environment, task_id, tuple(duplicates), gone_through)
    last = own[-1]
    names = {told.name for told in own}
    since = own[0].at_ms
    own += [told for told in by_hand if told.name in names and told.at_ms >= since]
    own.sort(key=lambda told: told.at_ms)
    own, run = _with_its_run(own)
    followed = _followed(run, others[::-1])
    record, summary = _record(environment, last.name), _summary(own, run, followed)
    queued = queued_call(environment.store, last.name) if last.what == "waiting" else None
    if queued is not None and queued.waits:
        summary += f" Next: {in_its_queue(queued)}."
    unknown = next((told for told in own[::-1] if told.what == "unknown"), None)
    if unknown is not None:
        events = History(environment.store, environment.prefix).events()
        ended = cut_off(events, unknown.name, unknown.at_ms)
        summary += f" {ended}" if ended else ""
    return Account(
        task_id=task_id,
        task=last.task,
        name=last.name,
        key=last.key,
        summary=summary,
        story=tuple(_story(own)),
        duplicates=tuple(duplicates),
        record=record,
        is_lease_over=_is_lease_over(environment, record),
        advice=advice(record) if record is not None and record.state == "unknown" else (),
    )


def why_queued(app: Any, environment: Environment, text: str) -> Account | None:
    """Tell what holds back a call that no worker has got yet; ``None``: no key is reserved for it.

    Args:
        text: its key, or its task id: that is known once it has stopped another call.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    for view in look_up(app, environment, text):
        queued = queued_call(environment.store, view.name) if view.state == QUEUED else None
        if queued is None:
            continue
        stopped = [
            told
            for told in History(environment.store, environment.prefix).of_record(view.name)
            if told.what == "stopped" and told.original_id == queued.task_id
        ]
        where = "It waits" if queued.waits else "It waits in its queue"
        summary = f"{where}: {in_its_queue(queued)}."
        if stopped:
            summary += f" It has stopped another call {times(len(stopped))}."
        return Account(queued.task_id, view.task, view.name, view.key, summary, (), (), view)
    return None


def _of_record(
    environment: Environment,
    task_id: str,
    duplicates: tuple[str, ...],
    gone_through: Callable[[int], object] | None,
) -> Account | None:
    """Tell what its record says, where the journal doesn't reach back to it."""
    if gone_through is None:
        return None
    for batch in batches(environment.store, environment.prefix, Filter(), gone_through):
        for view in batch:
            if view.owner_id == task_id:
                return Account(
                    task_id=task_id,
                    task=view.task,
                    name=view.name,
                    key=view.key,
                    summary=f"It is the owner of its key, which is {view.state}. The journal does "
                    "not reach back to what led to that.",
                    story=(),
                    duplicates=duplicates,
                    record=view,
                    is_lease_over=_is_lease_over(environment, view),
                    advice=advice(view) if view.state == "unknown" else (),
                )
    return None


def _record(environment: Environment, name: str) -> RecordView | None:
    parts = parse_name(environment.prefix, name)
    if parts is None:
        return None
    (record,) = environment.store.get_many([name])
    if record is None:
        return None
    return view_of(name, *parts, record)


def _is_lease_over(environment: Environment, record: RecordView | None) -> bool:
    return record is not None and record.is_lease_over(environment.store.now_ms())


def _with_its_run(told: list[JournalEntry]) -> tuple[list[JournalEntry], list[JournalEntry]]:
    """Mark what answered a call after it had begun to run; and return its run, if it has no end."""
    marked: list[JournalEntry] = []
    run: list[JournalEntry] = []
    is_over = False
    for one in told:
        if one.what == "claimed" or one.what in _ENDS:
            run, is_over = [], one.what in _ENDS
        # Its process may tell later than its worker that it was cut off.
        if one.what in _RUNS and not is_over:
            run.append(one)
        marked.append(replace(one, more={**one.more, "ran": True}) if run else one)
    return marked, run


def _followed(run: list[JournalEntry], others: list[JournalEntry]) -> list[str]:
    """Say which call got the key after a run that has no end, and when.

    Args:
        others: the runs of other calls, oldest first.
    """
    if not run or run[-1].what == "lost":  # that names the call itself
        return []
    for told in others:
        began_ms = told.began_ms
        if told.name == run[0].name and began_ms is not None and began_ms >= run[0].at_ms:
            gone = ["That run was not heard of again."] if run[-1].what == "claimed" else []
            return [*gone, f"Task {told.task_id} got the key at {when(began_ms)}."]
    return []


def _summary(told: list[JournalEntry], run: list[JournalEntry], followed: list[str]) -> str:
    since = run[0].at_ms if run else 0
    decided = [one for one in told if one.what in _DECIDES and one.at_ms >= since]
    last = decided[-1] if decided else next(one for one in told[::-1] if one.what not in _BY_HAND)
    if run and decided:
        parts = [*map(sentence, run), *followed, sentence(last)]
    else:
        parts = [sentence(last), *followed]
    text = " ".join(parts)
    waited = max((int(one.more.get("waits", 0)) for one in told), default=0)
    if waited and last.what not in ("waiting", "store away"):
        text += f" Before that it had been put back {times(waited)}."
    return text


def _story(told: list[JournalEntry]) -> Iterator[tuple[str, str]]:
    """Tell all of it, and the same thing many times in a row only once."""
    at = 0
    while at < len(told):
        end = at + 1
        while end < len(told) and _alike(told[at], told[end]):
            end += 1
        text = sentence(told[at])
        if end - at > 1:
            text += f" The same {times(end - at)}, up to {when(told[end - 1].at_ms)}."
        yield when(told[at].at_ms), text
        at = end


def _alike(one: JournalEntry, other: JournalEntry) -> bool:
    return one.what == other.what == "waiting" and one.original_id == other.original_id
