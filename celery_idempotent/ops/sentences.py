"""One event of the journal as a sentence about the call that it happened to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from celery_idempotent.ops.history import JournalEntry, when
from celery_idempotent.ops.views import QueuedCall


def sentence(told: JournalEntry) -> str:
    """Say what an event means for the call that it is about."""
    say = _SENTENCES.get(told.what)
    text = f"{_at_start(told.what)}." if say is None else say(told)
    if told.more.get("shadow") and told.what in _SHADOWED:
        text = f"It ran all the same, in shadow mode. Without that: {text}"
    return text


def in_its_queue(queued: QueuedCall) -> str:
    """Say for which call a key is reserved, since when, and until when."""
    if queued.waits:
        return (
            f"task {queued.task_id}, which came {when(queued.since_ms)}, waits and runs next, and "
            'answers those that came before it (idempotency_after_wait = "last")'
        )
    due = f", due {when(queued.due_ms)}" if queued.due_ms > queued.since_ms else ""
    return (
        f"task {queued.task_id}, published {when(queued.since_ms)}{due}, not delivered yet; it "
        f"stops calls with this key until {when(queued.until_ms)} (idempotency_on_enqueue)"
    )


def times(number: int) -> str:
    """Give a number of times in words."""
    return "once" if number == 1 else f"{number} times"


def duration(seconds: float | None) -> str:
    """Give a length of time in its largest unit, as a person would."""
    if seconds is None:
        return ""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 10:
        return f"{seconds:.1f} s"
    for length, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _at_start(text: str) -> str:
    """Give a text as a sentence begins with it: str.capitalize() would change a task's id."""
    return text[:1].upper() + text[1:]


def _where(told: JournalEntry) -> str:
    place = f" on {told.node}" if told.node else ""
    return f"{place}, process {told.pid}" if told.pid else place


def _other(told: JournalEntry, unknown: str = "a call that is not known any more") -> str:
    return f"task {told.original_id}" if told.original_id else unknown


def _attempt(told: JournalEntry) -> str:
    attempt = int(told.more.get("attempt", 1))
    return f" (attempt {attempt})" if attempt > 1 else ""


def _took(told: JournalEntry) -> str:
    return f"{float(told.more.get('took', 0)):.3g} s"


def _claimed(told: JournalEntry) -> str:
    if told.more.get("compensates"):
        return f"It got the key {told.key}, to undo the finished steps of a run that failed."
    text = f"It got the key {told.key} and began to run{_attempt(told)}{_where(told)}."
    cut_off = int(told.more.get("interruptions", 0))
    if cut_off:
        text += f" Before it, runs of this key had been cut off {times(cut_off)}."
    return text


def _succeeded(told: JournalEntry) -> str:
    text = f"It ran for {_took(told)}{_attempt(told)}{_where(told)} and succeeded"
    if told.more.get("unrecorded"):
        return f"{text}; the store was away, and is told of it when it is back."
    return f"{text}: its result is the key's outcome."


def _failed(told: JournalEntry) -> str:
    error = told.more.get("error", "an error")
    return (
        f"It ran for {_took(told)}{_attempt(told)}{_where(told)} and failed with {error}, which is "
        "kept as the key's outcome (idempotency_store_failures)."
    )


def _released(told: JournalEntry) -> str:
    error = told.more.get("error")
    if told.more.get("why") == "discarded":
        return "It was revoked, or it expired, before its retry was due: the key is free."
    if error in ("Ignore", "Reject"):
        return f"It ended with {error} after {_took(told)}: the key is free, without an outcome."
    return (
        f"It ran for {_took(told)}{_attempt(told)}{_where(told)} and failed with "
        f"{error or 'an error'}: the key is free, the next call with it runs."
    )


def _retrying(told: JournalEntry) -> str:
    delay = float(told.more.get("delay", 0))
    return f"It asked to be retried{_attempt(told)}, due in {delay:.3g} s; it keeps the key."


def _interrupted(told: JournalEntry) -> str:
    return (
        f"It was cut off after {_took(told)}{_where(told)} "
        f"({told.more.get('error', 'from outside')}): what comes next is said by "
        "idempotency_on_interrupted."
    )


def _ended(told: JournalEntry) -> str:
    error = told.more.get("error", "an error")
    answer = "it is revoked" if error == "revoked" else f"it failed with {error}"
    return (
        f"Its worker ended its run, and told its caller that {answer}. For other calls with the "
        "key the run was cut off."
    )


def _unknown(told: JournalEntry) -> str:
    return (
        f"It failed with OutcomeUnknown: a run of {_other(told, 'the key')} was cut off, or "
        "could not be undone, and nobody knows what it did."
    )


def _deduplicated(told: JournalEntry) -> str:
    if told.more.get("ran"):
        return f"It was answered with the outcome of {_other(told)}."
    return (
        f"It is a duplicate of {_other(told)}, which had the key {told.key}: it was answered with "
        "that outcome, its body was not run."
    )


def _waiting(told: JournalEntry) -> str:
    delay = float(told.more.get("delay", 0))
    if told.more.get("redelivery"):
        return (
            f"A copy of its message came while its run was, or may have been, alive: put back for "
            f"{delay:.3g} s."
        )
    if not told.original_id:
        return f"It could not ask for its key: put back for {delay:.3g} s."
    return f"{_at_start(_other(told))} held the key {told.key}: put back for {delay:.3g} s."


def _refused(told: JournalEntry) -> str:
    waited = float(told.more.get("waited", 0))
    again = " again" if told.more.get("ran") else ""
    after = f" after it had waited for {waited:.3g} s (idempotency_wait_timeout)" if waited else ""
    return (
        f"It failed with IdempotencyInProgress{after}: {_other(told)} held the key {told.key}; its "
        f"body was not run{again}."
    )


def _lost(told: JournalEntry) -> str:
    return (
        f"It lost the key to {_other(told, 'nobody (it was forgotten)')} while it ran"
        f"{_where(told)}: its own outcome is refused."
    )


def _store_away(told: JournalEntry) -> str:
    done = {"wait": "it waits", "raise": "it failed", "run": "it ran unprotected"}
    action = str(told.more.get("action", ""))
    return f"The store did not answer: {done.get(action, action)} (idempotency_on_store_error)."


def _forgotten(told: JournalEntry) -> str:
    return f"The key was forgotten{_by(told)}: the next call with it runs."


def _resolved(told: JournalEntry) -> str:
    return f"The key was resolved as {told.more.get('how', 'settled')}{_by(told)}."


def _resumed(told: JournalEntry) -> str:
    step, call = told.more.get("step"), told.more.get("call")
    text = f"The next run begins with {step}" if step else "It is run again"
    return f"{text}{f', as task {call}' if call else ''}{_by(told)}."


def _by(told: JournalEntry) -> str:
    via = told.more.get("via")
    return f" ({via})" if via else ""


_SHADOWED: Final = frozenset(("deduplicated", "answered again", "waiting", "mismatch", "unknown"))

_SENTENCES: Final[dict[str, Callable[[JournalEntry], str]]] = {
    "claimed": _claimed,
    "succeeded": _succeeded,
    "failed": _failed,
    "released": _released,
    "retrying": _retrying,
    "interrupted": _interrupted,
    "unknown": _unknown,
    "compensating": lambda told: (
        f"It failed for good with {told.more.get('error', 'an error')} after {_took(told)}: its "
        "finished steps are undone."
    ),
    "deduplicated": _deduplicated,
    "answered again": lambda told: (
        "Its message came again after its outcome was recorded, and got that outcome."
    ),
    "waiting": _waiting,
    "dropped": lambda told: (
        f"It was dropped, because {_other(told)} held the key {told.key} "
        "(idempotency_on_running): it was not run, and ended as REVOKED."
    ),
    "refused": _refused,
    "stopped": lambda told: (
        f"It was not published (idempotency_on_enqueue): {_other(told)} had the key {told.key} and "
        f"was {told.more.get('found', 'queued')}."
    ),
    "mismatch": lambda told: (
        f"It failed with IdempotencyKeyMismatch: {_other(told)} had the key {told.key} with other "
        "arguments."
    ),
    "superseded": lambda told: (
        "An old copy of its message came and was ignored: it had been retried, or answered, since."
    ),
    "lost": _lost,
    "store away": _store_away,
    "process lost": lambda told: (
        f"Its process was lost{_where(told)}: the worker ended its lease at once."
    ),
    "ended": _ended,
    "forgotten": _forgotten,
    "resolved": _resolved,
    "resumed": _resumed,
}
