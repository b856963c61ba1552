"""What holds of every transition, of any record and any event: the rules that tables rest on."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from celery_idempotent.core import transitions
from celery_idempotent.core.record import Record, State
from celery_idempotent.core.reservation import Reservation
from celery_idempotent.core.slip import Slip
from celery_idempotent.core.verdicts import (
    KEEP_TTL,
    UNKNOWN_TTL_MS,
    Busy,
    Claim,
    Claimed,
    Lost,
    Mismatch,
    Note,
    Recorded,
    Renewal,
    Replay,
    Resolve,
    Settle,
    Superseded,
    Unknown,
    Write,
)
from celery_idempotent.testing.contract.kit import replace

NOW_US = 1_750_000_000_123_456
NOW_MS = NOW_US // 1000

# Small pools, so that what is compared is often equal.
owners = st.sampled_from((b"", b"A", b"B"))
processes = st.sampled_from((b"", b"p1", b"p2"))
nonces = st.sampled_from((b"", b"n1", b"n2"))
prints = st.sampled_from((b"", b"f1", b"f2"))
outcomes = st.sampled_from((b"", b"outcome"))
tokens = st.sampled_from((1, 5, NOW_US - 1, NOW_US, NOW_US + 1, NOW_US + 9_000_000))
instants = st.sampled_from((0, NOW_MS - 1, NOW_MS, NOW_MS + 1, NOW_MS + 30_000))
spans = st.sampled_from((1, 30_000, 3_600_000))
states = st.sampled_from(State)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """A record as stores can hold it, in any state."""
    return Record(
        draw(states),
        draw(tokens),
        until_ms=draw(instants),
        retries=draw(st.integers(0, 2)),
        interruptions=draw(st.integers(0, 3)),
        owner=draw(owners),
        process=draw(processes),
        nonce=draw(nonces),
        fingerprint=draw(prints),
        outcome=draw(outcomes),
        has_steps=draw(st.booleans()),
        is_awaited=draw(st.booleans()),
    )


@st.composite
def claims(draw: st.DrawFn) -> Claim:
    candidate = Record(
        State.RUNNING,
        0,
        retries=draw(st.integers(0, 2)),
        owner=draw(owners),
        process=b"p1",
        nonce=draw(nonces),
        fingerprint=draw(prints),
    )
    return Claim(
        candidate,
        draw(spans),
        draw(spans),
        max_interruptions=draw(st.integers(0, 3)),
        max_compensations=draw(st.integers(0, 3)),
        checked=draw(st.booleans()),
        callbacks=draw(st.booleans()),
        compensates_only=draw(st.booleans()),
        awaited=draw(owners),
        frees=draw(st.booleans()),
    )


maybe_records = st.none() | records()
maybe_slips = st.none() | st.builds(
    Slip,
    answered=st.booleans(),
    succeeded=st.booleans(),
    sending_ms=st.sampled_from((0, NOW_MS, NOW_MS + 1)),
    publication=st.sampled_from((b"", b"another")),
    outcome=outcomes,
)


class TestClaim:
    @given(maybe_records, claims(), maybe_slips)
    def test_a_claim_that_is_granted_has_a_higher_token(
        self, record: Record | None, ask: Claim, slip: Slip | None
    ) -> None:
        """New or taken over: higher than the last, and the clock's where that is higher."""
        # When
        verdict, write = transitions.claim(record, ask, NOW_US, slip=slip)
        # Then
        if isinstance(verdict, Claimed) and write is not None:
            assert write.record is not None
            floor = 0 if record is None else record.token + 1
            assert verdict.token == write.record.token == max(floor, NOW_US)
            assert write.record.until_ms == NOW_MS + ask.lease_ms
            assert write.record.nonce == ask.candidate.nonce
            assert write.record.process == ask.candidate.process
            assert write.ttl_ms == ask.keep_ms
            assert verdict.interruptions == write.record.interruptions

    @given(records(), claims(), maybe_slips)
    def test_a_live_lease_is_not_stolen(
        self, record: Record, ask: Claim, slip: Slip | None
    ) -> None:
        """Whoever asks: a running or compensating record with a live lease isn't written."""
        # Given
        held = replace(
            record,
            state=State.COMPENSATING if record.state is State.COMPENSATING else State.RUNNING,
            until_ms=NOW_MS + 1,
        )
        # When
        verdict, write = transitions.claim(held, ask, NOW_US, slip=slip)
        # Then
        assert write is None or write.record is None or write.only_marks
        if isinstance(verdict, Claimed):
            assert held.nonce == ask.candidate.nonce != b""
            assert verdict.token == held.token

    @given(records(), claims())
    def test_an_outcome_is_never_run_again(self, record: Record, ask: Claim) -> None:
        """Succeeded, failed or unknown: no claim is granted, and token and outcome stay."""
        # Given
        done = replace(
            record,
            state=record.state
            if record.state in (State.SUCCEEDED, State.FAILED, State.UNKNOWN)
            else State.SUCCEEDED,
        )
        # When
        verdict, write = transitions.claim(done, ask, NOW_US)
        # Then
        assert not isinstance(verdict, Claimed)
        if write is not None:
            assert write.ttl_ms == KEEP_TTL
            free = {"until_ms": 0, "process": b"", "nonce": b"", "is_awaited": False}
            assert replace(write.record, **free) == replace(done, **free)

    @given(records(), claims())
    def test_an_old_copy_never_runs(self, record: Record, ask: Claim) -> None:
        """The owner's copy with fewer retries is superseded while its successor has the key."""
        # Given
        held = replace(
            record,
            state=State.RETRYING if record.state is State.RETRYING else State.RUNNING,
            owner=ask.candidate.owner,
            retries=ask.candidate.retries + 1,
            nonce=b"another",
        )
        # Then
        assert transitions.claim(held, ask, NOW_US) == (Superseded(), None)

    @given(maybe_records, claims())
    def test_an_answered_copy_only_runs_for_its_own_record(
        self, record: Record | None, ask: Claim
    ) -> None:
        """Its call was answered and the owner moved: it never runs, whatever the record is."""
        # Given
        slip = replace(ask.message, answered=True, outcome=b"its answer")
        if record is not None:
            record = replace(record, owner=b"somebody else", nonce=b"")
        # When
        verdict, _ = transitions.claim(record, ask, NOW_US, slip=slip)
        # Then
        if isinstance(verdict, Replay):
            assert verdict.record.outcome == b"its answer"
        else:
            assert isinstance(verdict, (Superseded, Busy))
            assert ask.compensates_only

    @given(records(), claims())
    def test_other_arguments_get_nothing(self, record: Record, ask: Claim) -> None:
        """A checked call of another owner is a mismatch wherever there is something to share."""
        # Given
        ask = replace(ask, checked=True, compensates_only=False)
        other = replace(
            record, owner=ask.candidate.owner + b"'", nonce=b"another", fingerprint=b"'"
        )
        # When
        verdict, write = transitions.claim(other, ask, NOW_US)
        # Then
        free = other.state is State.RELEASED and not other.outcome
        if ask.frees and other.state in (State.RELEASED, State.UNKNOWN):
            return  # the key says nothing of arguments any more, except to who waited for the run
        assert isinstance(verdict, Claimed if free else Mismatch)
        assert free or write is None

    @given(records(), claims())
    def test_an_answer_without_a_claim_hides_nothing(self, record: Record, ask: Claim) -> None:
        """Busy, replays, mismatches and unknown show the record as it is from then on."""
        # When
        verdict, write = transitions.claim(record, ask, NOW_US)
        # Then
        if isinstance(verdict, Busy | Replay | Mismatch | Unknown):
            assert verdict.record == (record if write is None else write.record)
        if isinstance(verdict, Busy | Replay):
            assert verdict.mine is (record.owner == ask.candidate.owner)

    @given(records(), claims())
    def test_unknown_is_reached_only_by_too_many_interruptions(
        self, record: Record, ask: Claim
    ) -> None:
        """It keeps the token, so that the run's late completion settles it, and waits 30 days."""
        # When
        verdict, write = transitions.claim(record, ask, NOW_US)
        # Then
        if isinstance(verdict, Unknown) and write is not None:
            most = ask.max_interruptions
            if record.state is State.COMPENSATING:
                most = ask.max_compensations
            assert record.until_ms <= NOW_MS
            assert write.record.interruptions > most
            assert write.record.state is State.UNKNOWN
            assert (write.record.token, write.record.owner) == (record.token, record.owner)
            assert write.ttl_ms == UNKNOWN_TTL_MS


@st.composite
def settles(draw: st.DrawFn) -> Settle:
    record = replace(draw(records()), nonce=b"")
    return Settle(record, draw(st.sampled_from((0, 1, 30_000))), draw(spans))


class TestSettle:
    @given(records(), settles())
    def test_another_token_writes_nothing(self, record: Record, event: Settle) -> None:
        """Whatever the record is, and whatever the run became: refused, and shown why."""
        # When
        verdict, write = transitions.settle(record, event, NOW_US)
        # Then
        if record.token not in (event.record.token, event.record.token + 1):
            assert verdict == Lost(record)
        if isinstance(verdict, Lost):
            assert write is None
            assert verdict.record == record

    @given(maybe_records, settles())
    def test_a_token_never_falls(self, record: Record | None, event: Settle) -> None:
        """What is written carries the run's token, or the next one where the key is let go."""
        # When
        verdict, write = transitions.settle(record, event, NOW_US)
        # Then
        if write is not None:
            assert isinstance(verdict, Recorded)
            assert write.record.token == verdict.token
            released = event.record.state is State.RELEASED
            assert write.record.token == event.record.token + released
            assert write.ttl_ms == event.ttl_ms

    @given(records(), settles())
    def test_an_outcome_stays(self, record: Record, event: Settle) -> None:
        """Nothing that a run says later changes what it had completed with."""
        # Given
        done = replace(record, state=State.SUCCEEDED, token=event.record.token)
        # Then
        assert transitions.settle(done, event, NOW_US) == (Recorded(done.token), None)

    @given(settles())
    def test_told_twice_is_told_once(self, event: Settle) -> None:
        """The same ending after itself is success, with the same token, and no other record."""
        # Given
        verdict, write = transitions.settle(None, event, NOW_US)
        assert write is not None
        # When
        again, rewrite = transitions.settle(write.record, event, NOW_US)
        # Then
        assert again == verdict
        assert rewrite is None or rewrite.record == write.record


class TestTheRest:
    @given(records(), records(), spans, spans)
    def test_renewing_moves_one_instant(
        self, record: Record, held: Record, lease_ms: int, keep_ms: int
    ) -> None:
        """By its token, a run prolongs its lease; nothing else of the record changes."""
        # When
        verdict, write = transitions.renew(record, Renewal("k", held, lease_ms, keep_ms), NOW_US)
        # Then
        assert isinstance(verdict, Recorded) is (record.token == held.token)
        if write is not None:
            assert write.record == replace(record, until_ms=NOW_MS + lease_ms)
            assert record.until_ms or record.state in (State.RUNNING, State.COMPENSATING)

    @given(maybe_records, records(), spans)
    def test_giving_up_grants_nothing(
        self, record: Record | None, given_up: Record, ttl_ms: int
    ) -> None:
        """After ``abandon`` the same claim is not granted, unless another run held the key."""
        # Given
        given_up = replace(given_up, state=State.RUNNING, nonce=b"n1", outcome=b"", process=b"p1")
        ask = Claim(given_up, 30_000, 3_600_000)
        before = record
        # When
        write = transitions.abandon(record, given_up, ttl_ms, 1, NOW_US)
        record = record if write is None else write.record
        # Then
        assert record is not None
        verdict, _ = transitions.claim(record, ask, NOW_US)
        assert isinstance(verdict, Busy)
        if before is not None and before.nonce != b"n1":
            held = before.state in (State.RUNNING, State.COMPENSATING) and before.process
            if held or (before.is_done and before.until_ms):
                assert replace(record, given_up=b"") == before

    @given(maybe_records, spans)
    def test_forgetting_keeps_only_a_token(self, record: Record | None, ttl_ms: int) -> None:
        """Absent stays absent; all else is a released record with a higher token, and no more."""
        # When
        write = transitions.forget(record, ttl_ms, NOW_US)
        # Then
        if record is None:
            assert write is None
        else:
            token = max(record.token + 1, NOW_US)
            assert write == Write(Record(State.RELEASED, token), ttl_ms)

    @given(records(), st.sampled_from((b"A", b"B")), st.sampled_from((b"p1", b"p2")))
    def test_ending_a_lease_takes_no_token(
        self, record: Record, owner: bytes, process: bytes
    ) -> None:
        """A lease that its parent ends is over; the run's own completion is still accepted."""
        # When
        write = transitions.end_lease(record, owner, process, NOW_US)
        # Then
        if write is not None:
            assert (record.owner, record.process) == (owner, process)
            assert record.until_ms > NOW_MS
            assert write == Write(replace(record, until_ms=NOW_MS, nonce=b""), KEEP_TTL)

    @given(records(), tokens)
    def test_a_note_ends_only_deliveries(self, record: Record, token: int) -> None:
        """Of that token's run, and where there is an outcome; the outcome stays."""
        # When
        write = transitions.note(record, Note("", Slip(), token, 1))
        # Then
        if write is not None:
            assert record.token == token
            assert record.is_done
            ended = replace(record, until_ms=0, process=b"", nonce=b"")
            assert write == Write(ended, KEEP_TTL)

    @given(
        records(),
        st.builds(Resolve, states, outcomes, spans, st.booleans()),
    )
    def test_only_the_unknown_is_resolved(self, record: Record, event: Resolve) -> None:
        """By a higher token, so that the run which may still be at it is refused."""
        # When
        write = transitions.resolve(record, event, NOW_US)
        # Then
        assert (write is not None) is (record.state is State.UNKNOWN)
        if write is not None:
            assert write.record is not None
            assert write.record.token == max(record.token + 1, NOW_US)
            assert write.record.process == write.record.nonce == b""

    def test_a_reservation_that_has_expired_is_not_confirmed(self) -> None:
        """It is deleted: what is written for no time at all would stay in a table."""
        # Given
        queued = Reservation(b"A", NOW_MS)
        # Then
        for ttl_ms in (0, -1):
            write = transitions.confirm(queued, b"A", ttl_ms, NOW_US)
            assert write == Write(None, drops_queued=True)

    def test_nothing_comes_of_nothing(self) -> None:
        """An absent record has nothing to note, to end or to resolve."""
        # Then
        assert transitions.note(None, Note("", Slip(), 1, 1)) is None
        assert transitions.end_lease(None, b"A", b"p1", NOW_US) is None
        assert transitions.resolve(None, Resolve(State.SUCCEEDED, b"", 1), NOW_US) is None
