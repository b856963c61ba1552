"""What is read for lists: many records at once, and the store's clock."""

from __future__ import annotations

import os

from celery_idempotent.core.record import Record
from celery_idempotent.core.verdicts import Claim
from celery_idempotent.errors import RecordCorrupt, RecordTooNew
from celery_idempotent.stores.base import Store
from celery_idempotent.testing.contract.kit import (
    FIRST,
    KEEP_MS,
    KEY,
    LEASE_MS,
    complete,
    hold,
    replace,
    stored,
)
from celery_idempotent.testing.contract.upkeep import UNREADABLE, Bytes

_OTHER = "idempotent:{shop.charge:order:7}"


class ReadingRows(Bytes):
    """A list is read in few round trips, and what is wrong with one record spoils no other."""

    def test_records_are_read_together_in_their_order(self, store: Store) -> None:
        """A record for each key, ``None`` for what is absent, an error for what is unreadable."""
        # Given
        hold(store, FIRST)
        corrupt, newer = f"{_OTHER[:-1]}:corrupt}}", f"{_OTHER[:-1]}:newer}}"
        self.write_raw(store, corrupt, UNREADABLE["cut short"][0])
        self.write_raw(store, newer, UNREADABLE["newer"][0])
        # When
        found = store.get_many([newer, KEY, _OTHER, corrupt, KEY])
        # Then
        assert isinstance(found[0], RecordTooNew)
        assert found[1] == found[4] == stored(store)
        assert found[2] is None
        assert isinstance(found[3], RecordCorrupt)

    def test_no_records_are_read_where_none_are_asked_for(self, store: Store) -> None:
        """The answer is empty, and nothing is asked of the store that it can't answer."""
        assert store.get_many([]) == []

    def test_a_long_outcome_may_come_cut_short(self, store: Store) -> None:
        """All the rest of its record is as it is."""
        # Given
        outcome = b"\x01\x04" + os.urandom(100_000)
        complete(store, hold(store, FIRST), outcome=outcome)
        # When
        (found,) = store.get_many([KEY])
        # Then
        assert isinstance(found, Record)
        assert outcome.startswith(found.outcome)
        assert found.outcome
        assert replace(found, outcome=outcome) == stored(store)

    def test_a_record_with_a_long_label_is_read_whole(self, store: Store) -> None:
        """However long the part before the outcome is."""
        # Given
        record = replace(FIRST.candidate(b"nonce"), token=1_700_000_000_000_000)
        record = replace(record, label=f"shop.charge\n{'ö' * 20_000}")
        self.write_raw(store, KEY, record.pack())
        # Then
        assert store.get_many([KEY]) == [record]

    def test_the_clock_is_the_one_that_tokens_are_made_of(self, store: Store) -> None:
        """So that what is left of a lease can be told without a worker's clock."""
        before = store.now_ms()
        token = hold(store, FIRST).token
        assert before <= token // 1000 <= store.now_ms()

    def test_a_sample_is_of_this_prefix(self, store: Store) -> None:
        """Where there are few it is all of them; each record counts once."""
        # Given
        for key in (KEY, _OTHER, "elsewhere:{shop.charge:order:7}"):
            store.claim(key, Claim(FIRST.candidate(), LEASE_MS, KEEP_MS))
        # When
        samples = store.sample("idempotent", 1000)
        # Then
        assert sorted(key for one in samples for key in one.keys) == sorted((KEY, _OTHER))
        assert sum(one.of for one in samples) == 2

    def test_a_sample_stands_for_all(self, store: Store) -> None:
        """Its keys are records, and weighed they are as many as there are, about."""
        # Given
        for number in range(300):
            key = f"idempotent:{{shop.charge:order:{number}}}"
            store.claim(key, Claim(FIRST.candidate(), LEASE_MS, KEEP_MS))
        # When
        samples = store.sample("idempotent", 100)
        # Then
        keys = [key for one in samples for key in one.keys]
        assert len(set(keys)) == len(keys)
        assert set(store.get_many(keys)).isdisjoint([None])
        assert sum(one.of for one in samples) == 300
