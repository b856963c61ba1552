"""What keeps a store in order: forgetting, times to live, unreadable records, looking around."""

from __future__ import annotations

import pytest

from celery_idempotent.core.record import VERSION, Record, State
from celery_idempotent.core.verdicts import (
    UNKNOWN_TTL_MS,
    Busy,
    Claimed,
    Lost,
    Note,
    Renewal,
    Unknown,
)
from celery_idempotent.errors import RecordCorrupt, RecordTooNew, StoreError
from celery_idempotent.stores.base import Store
from celery_idempotent.testing.contract.kit import (
    ENDINGS,
    FAILURE,
    FIRST,
    HORIZON_MS,
    KEEP_MS,
    KEY,
    LEASE_MS,
    OTHER_PROCESS,
    PROCESS,
    RESULT,
    SECOND,
    STRANGER,
    TTL_MS,
    WRITES,
    Ending,
    about,
    claim,
    complete,
    fail,
    hold,
    interrupt,
    lives_ms,
    note,
    release,
    release_failed,
    renew,
    replace,
    retry,
    stored,
    unknown,
)

_HELD = replace(FIRST.candidate(b"nonce"), token=1_700_000_000_000_000)
_READABLE = _HELD.pack()
#: What duplicates are answered with all the time: a store may have a shorter way for it.
_DONE = replace(_HELD, state=State.SUCCEEDED, process=b"", nonce=b"", outcome=RESULT).pack()

#: Bytes that no reader of this version takes for a record, and the error that says so.
UNREADABLE: dict[str, tuple[bytes, type[StoreError]]] = {
    "cut short": (_READABLE[:40], RecordCorrupt),
    "cut in its label": (_READABLE[:-3], RecordCorrupt),
    "cut in its fingerprint": (_READABLE[: -len(FIRST.label) - 6], RecordCorrupt),
    "cut in the header": (_READABLE[:10], RecordCorrupt),
    "empty": (b"", RecordCorrupt),
    "somebody else's": (b"\x00{'json': 'of another program, which is long enough'}", RecordCorrupt),
    "a state that is none": (_READABLE[:1] + b"\x63" + _READABLE[2:], RecordCorrupt),
    "a token that is none": (_READABLE[:4] + b"\xff" + _READABLE[5:], RecordCorrupt),
    "an instant that is none": (_READABLE[:12] + b"\xff" + _READABLE[13:], RecordCorrupt),
    "an instant too far": (_READABLE[:13] + b"\x20" + _READABLE[14:], RecordCorrupt),
    "newer": (bytes((VERSION + 1,)) + _READABLE[1:], RecordTooNew),
    "newer, cut in the header": (bytes((VERSION + 1,)) + _READABLE[1:10], RecordTooNew),
    "a success cut short": (_DONE[:40], RecordCorrupt),
    "a success cut in its label": (_DONE[: -len(RESULT) - 3], RecordCorrupt),
    "a success with a token that is none": (_DONE[:4] + b"\xff" + _DONE[5:], RecordCorrupt),
    "a success at an instant that is none": (_DONE[:12] + b"\xff" + _DONE[13:], RecordCorrupt),
    "a newer success": (bytes((VERSION + 1,)) + _DONE[1:], RecordTooNew),
}


class Bytes:
    """How the contract reaches behind a store: a subclass must say how bytes get there."""

    def write_raw(self, store: Store, key: str, packed: bytes) -> None:
        """Put bytes where the record of ``key`` is kept, for at least an hour."""
        raise NotImplementedError("tell the contract how to put a record's bytes into this store")

    def read_raw(self, store: Store, key: str) -> bytes | None:
        """Give the bytes of the record of ``key``; ``None`` where there are none."""
        raise NotImplementedError("tell the contract how to read a record's bytes in this store")


class StoredFormRows(Bytes):
    """Every store keeps the same bytes, and leaves alone what it cannot read."""

    def test_records_are_kept_packed(self, store: Store) -> None:
        """What is stored is the packed record, as every version and every store reads it."""
        # Given
        hold(store, FIRST)
        # Then
        packed = self.read_raw(store, KEY)
        assert packed == stored(store).pack()

    @pytest.mark.parametrize("name", UNREADABLE)
    def test_an_unreadable_record_is_an_error(self, store: Store, name: str) -> None:
        """Who needs an answer is told what is wrong; the bytes stay for whoever can read them."""
        # Given
        packed, error = UNREADABLE[name]
        self.write_raw(store, KEY, packed)
        held = Record.unpack(_READABLE)
        # Then
        for message in (FIRST, SECOND):
            with pytest.raises(error):
                claim(store, message, nonce=b"nonce")
        for ending in ENDINGS.values():
            if ending is not renew:
                with pytest.raises(error):
                    ending(store, held)
        with pytest.raises(error):
            store.get(KEY)
        assert self.read_raw(store, KEY) == packed

    @pytest.mark.parametrize("name", UNREADABLE)
    def test_an_unreadable_record_stops_no_other(self, store: Store, name: str) -> None:
        """A heartbeat renews the others; who can do nothing about it is not told."""
        # Given
        packed, error = UNREADABLE[name]
        held = hold(store, FIRST)
        bad = KEY.replace("42", "bad")
        self.write_raw(store, bad, packed)
        # When
        of_bad = replace(held, token=_HELD.token)
        renewals = [
            Renewal(key, run, LEASE_MS, KEEP_MS) for key, run in ((bad, of_bad), (KEY, held))
        ]
        answers = store.renew(renewals)
        slip = replace(FIRST.slip, answered=True)
        store.note(bad, Note(f"{bad}:sent:{FIRST.task_id}", slip, held.token, HORIZON_MS))
        store.abandon(bad, held, HORIZON_MS)
        # Then
        assert isinstance(answers[0], error)
        assert not isinstance(answers[1], StoreError)
        assert not store.end_lease(bad, FIRST.owner, PROCESS)
        assert self.read_raw(store, bad) == packed
        assert set(store.scan("idempotent:*")) == {KEY, bad}

    @pytest.mark.parametrize("name", UNREADABLE)
    def test_an_unreadable_record_can_be_forgotten(self, store: Store, name: str) -> None:
        """Forgetting frees the key, corrupt or newer."""
        # Given
        self.write_raw(store, KEY, UNREADABLE[name][0])
        # Then
        assert store.forget(KEY, HORIZON_MS)
        assert isinstance(claim(store, FIRST), Claimed)

    def test_a_compensation_is_waited_for(self, store: Store) -> None:
        """While compensations run under a live lease, everybody waits, and the body never runs."""
        # Given
        held = hold(store, FIRST)
        record = replace(held, state=State.COMPENSATING, until_ms=stored(store).until_ms, nonce=b"")
        self.write_raw(store, KEY, record.pack())
        # Then
        assert isinstance(claim(store, FIRST), Busy)
        assert isinstance(claim(store, SECOND), Busy)
        # When the process dies the lease ends
        assert not store.end_lease(KEY, FIRST.owner, OTHER_PROCESS)
        assert store.end_lease(KEY, FIRST.owner, PROCESS)

    @pytest.mark.parametrize("name", WRITES)
    def test_a_run_whose_key_a_newer_release_has_is_lost(self, store: Store, name: str) -> None:
        """It can't read the record, but that it is another's: its outcome is refused, not owed."""
        # Given
        held = hold(store, FIRST)
        taken = SECOND.candidate()._replace(token=held.token + 5).pack()
        self.write_raw(store, KEY, bytes((VERSION + 1,)) + taken[1:])
        # When
        answer = WRITES[name](store, held)
        # Then
        assert isinstance(answer, Lost)
        assert (answer.record.token, answer.record.owner) == (held.token + 5, SECOND.owner)


class UpkeepRows:
    """Forgetting, and how long each record lives."""

    @pytest.mark.parametrize("ending", [renew, retry, complete, fail, release, release_failed])
    def test_forgetting_frees_a_key(self, store: Store, ending: Ending) -> None:
        """Only a higher token is kept: the next call runs, whatever its arguments are."""
        # Given
        held = hold(store, FIRST)
        ending(store, held)
        before = stored(store)
        # When
        found = store.forget(KEY, HORIZON_MS)
        # Then
        assert found
        record = stored(store)
        assert record == Record(State.RELEASED, record.token)
        assert record.token > before.token
        assert record.owner_id is None
        verdict = claim(store, STRANGER, checked=True)
        assert isinstance(verdict, Claimed)
        assert verdict.token > record.token

    def test_there_may_be_nothing_to_forget(self, store: Store) -> None:
        """Forgetting an absent key says so, and leaves nothing."""
        # Then
        assert not store.forget(KEY, HORIZON_MS)
        assert store.get(KEY) is None

    @pytest.mark.parametrize("name", ENDINGS)
    def test_a_run_that_was_forgotten_writes_nothing(self, store: Store, name: str) -> None:
        """The key was forgotten during the run: its end is refused."""
        # Given
        held = hold(store, FIRST)
        store.forget(KEY, HORIZON_MS)
        before = stored(store)
        # Then
        assert ENDINGS[name](store, held) == Lost(before)
        assert stored(store) == before

    def test_forgetting_settles_an_unknown_outcome(self, store: Store) -> None:
        """A key whose outcome is unknown is free again once somebody says so."""
        # Given
        interrupt(store, hold(store, FIRST))
        assert isinstance(claim(store, FIRST, max_interruptions=0), Unknown)
        note(store, FIRST, succeeded=False, outcome=FAILURE)
        # When
        store.forget(KEY, HORIZON_MS)
        # Then
        assert hold(store, FIRST).interruptions == 0

    # --- times to live ---

    @pytest.mark.parametrize(
        ("ending", "expected_ms"),
        [
            (renew, KEEP_MS),
            (interrupt, KEEP_MS),
            (retry, 60_000 + KEEP_MS),
            (complete, TTL_MS),
            (fail, TTL_MS),
            (release, HORIZON_MS),
            (release_failed, HORIZON_MS),
        ],
    )
    def test_a_record_lives_from_its_last_write(
        self, store: Store, ending: Ending, expected_ms: int
    ) -> None:
        """Each write says how long the record is to live from then on."""
        # Given
        held = hold(store, FIRST, keep_ms=KEEP_MS // 2)
        assert lives_ms(store) == about(KEEP_MS // 2)
        # When
        ending(store, held)
        # Then
        assert lives_ms(store) == about(expected_ms)

    def test_a_record_that_is_written_anew_lives_as_long(self, store: Store) -> None:
        """The store came back empty: the heartbeat's record lives like a claimed one."""
        # When
        renew(store, replace(FIRST.candidate(), token=17))
        # Then
        assert lives_ms(store) == about(KEEP_MS)

    def test_an_unknown_outcome_waits_for_thirty_days(self, store: Store) -> None:
        """It must be there for whoever is to resolve it."""
        # Given
        interrupt(store, hold(store, FIRST))
        # When
        claim(store, FIRST, max_interruptions=0)
        # Then
        assert lives_ms(store) == about(UNKNOWN_TTL_MS)

    def test_a_forgotten_key_remembers_its_token_for_a_while(self, store: Store) -> None:
        """Forgetting says how long the token is kept."""
        # Given
        complete(store, hold(store, FIRST))
        # When
        store.forget(KEY, HORIZON_MS)
        # Then
        assert lives_ms(store) == about(HORIZON_MS)

    def test_a_claim_that_was_given_up_leaves_a_record_for_a_while(self, store: Store) -> None:
        """Undone, or kept from coming late: either says how long that is remembered."""
        # Given
        held = hold(store, FIRST)
        # When
        store.abandon(KEY, FIRST.candidate(held.nonce), HORIZON_MS)
        store.abandon(KEY + "-late", FIRST.candidate(), HORIZON_MS)
        # Then
        assert lives_ms(store) == about(HORIZON_MS)
        assert lives_ms(store, KEY + "-late") == about(HORIZON_MS)

    def test_who_only_asks_changes_no_time_to_live(self, store: Store) -> None:
        """Busy, replays, marks, notes and ended leases leave the time to live."""
        # Given
        held = hold(store, FIRST, noted=True)
        # When
        claim(store, SECOND, keep_ms=TTL_MS)
        store.end_lease(KEY, FIRST.owner, PROCESS)
        # Then
        assert lives_ms(store) == about(KEEP_MS)
        # Given
        complete(store, held, delivery_ms=LEASE_MS)
        # When
        claim(store, SECOND, keep_ms=KEEP_MS)
        note(store, FIRST, held.token)
        store.abandon(KEY, SECOND.candidate(), KEEP_MS)
        store.end_lease(KEY, FIRST.owner, PROCESS)
        # Then
        assert lives_ms(store) == about(TTL_MS)

    # --- looking around ---

    def test_looking_changes_nothing(self, store: Store) -> None:
        """Absent is None for reading and for its time to live, and stays absent."""
        # Then
        assert store.get(KEY) is None
        assert store.ttl(KEY) is None
        assert [*store.scan("*")] == []
        store.ping()

    def test_only_records_are_found(self, store: Store) -> None:
        """Neither is a list of them found that a store may keep, nor what lies beside them."""
        # Given
        unknown(store)
        store.note(
            KEY, Note(f"{KEY}:sent:{{it}}", replace(FIRST.slip, answered=True), 0, HORIZON_MS)
        )
        # Then
        assert [*store.scan("*")] == [KEY]

    def test_records_are_found_by_a_pattern(self, store: Store) -> None:
        """Patterns know stars, question marks and backslashes; notes are no records."""
        # Given
        keys = [f"idempotent:{{shop.charge:order:{end}}}" for end in ("1", "12", "*")]
        for key in keys:
            store.abandon(key, FIRST.candidate(), HORIZON_MS)
            slip = replace(FIRST.slip, answered=True)
            store.note(key, Note(f"{key}:sent:{FIRST.task_id}", slip, 0, HORIZON_MS))
        # Then
        assert sorted(store.scan("*")) == sorted(keys)
        assert sorted(store.scan("idempotent:{shop.charge:*}")) == sorted(keys)
        assert sorted(store.scan("*order:?}")) == [keys[2], keys[0]]
        assert [*store.scan("*order:\\*}")] == [keys[2]]
        assert [*store.scan("idempotent:{shop.refund:*}")] == []

    def test_a_store_can_be_used_after_close(self, store: Store) -> None:
        """Closing gives back connections, and loses no record."""
        # Given
        hold(store, FIRST)
        # When
        store.close()
        # Then
        assert stored(store).owner == FIRST.owner
