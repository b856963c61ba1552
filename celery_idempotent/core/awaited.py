"""What a record means for those who wait for its run, at an instant of the store's clock."""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from celery_idempotent.core.record import Record, State

#: Where the ends of runs are not told: by which part of its duration the end of a run is noticed
#: late at the most, and the shortest time between two looks, in seconds.
_LATE_BY: Final = 0.1
SHORTEST_POLL_S: Final = 0.1


class Stage(enum.Enum):
    """How far a run is that others wait for."""

    #: Somebody holds the key.
    HELD = "held"
    #: There is an outcome, and everybody gets it.
    ANSWERED = "answered"
    #: The key is free: one of those who wait gets it.
    FREE = "free"
    #: The lease ran out, and nobody has taken over.
    LAPSED = "lapsed"


class Outlook(NamedTuple):
    """What somebody who waits can expect."""

    stage: Stage
    #: Held: for how many seconds at least, unless it ends sooner.
    for_s: float = 0.0
    #: For how many seconds the run has been under way.
    age_s: float = 0.0
    #: Whether its end will be told.
    is_told: bool = False


def outlook(record: Record | None, now_ms: int, lease_s: float, *, mine: bool = False) -> Outlook:
    """Return what a record means for those who wait.

    Args:
        lease_s: the lease of the task's claims, in seconds: a retry may be overdue for so long.
        mine: whether it is the run's own message that waits, delivered again.
    """
    if record is None:
        return Outlook(Stage.FREE)
    left_s = (record.until_ms - now_ms) / 1000
    age_s = max(0.0, now_ms - record.token / 1000) / 1000
    if record.state is State.RETRYING:
        if mine:
            return Outlook(Stage.LAPSED)  # it may be the next attempt that came too early
        left_s += lease_s
    elif record.state not in (State.RUNNING, State.COMPENSATING) and not (mine and left_s > 0):
        free = record.state is State.RELEASED and not record.is_done
        return Outlook(Stage.FREE if free else Stage.ANSWERED)
    if left_s <= 0:
        return Outlook(Stage.LAPSED)
    return Outlook(Stage.HELD, left_s, age_s, record.is_awaited)


def poll_s(age_s: float) -> float:
    """Return how many seconds to wait before the next look at a run whose end is not told.

    Args:
        age_s: for how many seconds the run has been under way.
    """
    return max(SHORTEST_POLL_S, age_s * _LATE_BY)
