"""What a store promises of journals: order, the cap, pages, and the store's own time."""

from __future__ import annotations

from celery_idempotent.stores.base import Store
from celery_idempotent.stores.journal import JournalStore, StoredEvent

JOURNAL = "idempotent:journal"


def events(*numbers: int) -> list[bytes]:
    return [b'{"event":"claimed","n":%d}' % number for number in numbers]


def read(
    store: JournalStore, before: str | None = None, count: int = 1000, journal: str = JOURNAL
) -> list[StoredEvent]:
    return store.read_events(journal, before, count)


def journals_of(store: Store) -> JournalStore:
    journals = store.journals
    assert journals is not None, "this store keeps no journals"
    return journals


class JournalRows:
    """A journal is a capped list of events, read from the newest."""

    def test_events_are_read_newest_first(self, store: Store) -> None:
        """The order is the one in which they were added, backwards, across additions."""
        # Given
        journals = journals_of(store)
        journals.append_events(JOURNAL, events(1, 2), 100)
        journals.append_events(JOURNAL, events(3), 100)
        # When
        read_back = [event.packed for event in read(journals)]
        # Then
        assert read_back == events(3, 2, 1)

    def test_an_event_has_the_stores_time(self, store: Store) -> None:
        """The time is the store's, whatever the clock of whoever added it says."""
        # Given
        journals = journals_of(store)
        before = store.now_ms()
        # When
        journals.append_events(JOURNAL, events(1), 100)
        # Then
        assert before <= read(journals)[0].stored_ms <= store.now_ms()

    def test_pages_meet_without_a_gap(self, store: Store) -> None:
        """Reading on from an event's place gives the next older one, also within one addition."""
        # Given
        journals = journals_of(store)
        journals.append_events(JOURNAL, events(*range(10)), 100)
        # When
        pages: list[bytes] = []
        before = None
        while page := read(journals, before, 3):
            pages += [event.packed for event in page]
            before = page[-1].place
        # Then
        assert pages == events(*reversed(range(10)))

    def test_the_oldest_go_first(self, store: Store) -> None:
        """About as many as asked for are kept: all of the newest, and few more than that."""
        # Given
        journals = journals_of(store)
        # When
        for start in range(0, 3000, 100):
            journals.append_events(JOURNAL, events(*range(start, start + 100)), 500)
        # Then
        kept = [event.packed for event in read(journals, count=5000)]
        assert kept[:500] == events(*reversed(range(2500, 3000)))
        assert len(kept) < 1000

    def test_journals_are_apart(self, store: Store) -> None:
        """Each name is a journal of its own, and one that nobody wrote to is empty."""
        # Given
        journals = journals_of(store)
        # When
        journals.append_events(JOURNAL, events(1), 100)
        # Then
        assert read(journals, journal="other:journal") == []

    def test_a_journal_is_no_record(self, store: Store) -> None:
        """Going through the records doesn't meet it."""
        # Given
        journals = journals_of(store)
        # When
        journals.append_events(JOURNAL, events(1), 100)
        # Then
        assert list(store.scan("idempotent:{*}")) == []
