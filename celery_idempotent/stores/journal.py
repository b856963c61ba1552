"""Where a store keeps its journal: a capped list of events, each with the store's own time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol, runtime_checkable

#: A journal is deleted once nothing was added to it for 30 days.
JOURNAL_TTL_MS: Final = 30 * 86_400_000


class StoredEvent(NamedTuple):
    """One event as it is kept."""

    #: Where it stands in the journal, ``"<milliseconds>-<number>"``.
    place: str
    packed: bytes

    @property
    def stored_ms(self) -> int:
        """When it was stored, in milliseconds on the store's clock."""
        return int(self.place.partition("-")[0])


@runtime_checkable
class JournalStore(Protocol):
    """A store that can keep journals too."""

    def append_events(self, journal: str, events: Sequence[bytes], most: int) -> None:
        """Add events in one round trip; about ``most`` are kept, the oldest go first.

        Raises:
            StoreUnavailable: it did not answer; they may be there all the same.
        """

    def read_events(self, journal: str, before: str | None, count: int) -> list[StoredEvent]:
        """Return up to ``count`` events, newest first: from the newest, or from before a place."""


class ListedRuns(NamedTuple):
    """The runs of a process that are to be listed, and those that are over: keys and tokens."""

    begun: Sequence[tuple[str, int]] = ()
    ended: Sequence[tuple[str, int]] = ()


class RunLists(Protocol):
    """A store that keeps a list of the runs which are under way with each journal."""

    def append_with_runs(
        self, journal: str, events: Sequence[bytes], most: int, runs: ListedRuns
    ) -> None:
        """Add events and change the list, in one round trip: :meth:`.JournalStore.append_events`.

        What begins and ends is not listed.
        """


def journal_key(prefix: str) -> str:
    """Return the key of the journal of all records with this prefix; no record can have it."""
    return f"{prefix}:journal"
