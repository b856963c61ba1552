"""How runs end, and what is refused: settling, renewing, tokens, and claims that are given up."""

from __future__ import annotations

from typing import Any

import pytest

from celery_idempotent.core.record import State
from celery_idempotent.core.verdicts import Lost, Recorded, Renewal, Replay, Unknown
from celery_idempotent.stores.base import Store
from celery_idempotent.testing.contract.kit import (
    ENDINGS,
    FAILURE,
    FIRST,
    HORIZON_MS,
    KEEP_MS,
    KEY,
    LEASE_MS,
    OTHER_RESULT,
    OUTCOMES,
    RESULT,
    SECOND,
    THIRD,
    WRITES,
    Ending,
    claim,
    complete,
    fail,
    hold,
    interrupt,
    release,
    release_failed,
    renew,
    replace,
    retry,
    settle,
    stored,
)

#: What a record becomes by each ending that frees or closes the key.
ENDS_AS = {
    "complete": (State.SUCCEEDED, RESULT),
    "fail": (State.FAILED, FAILURE),
    "retry": (State.RETRYING, b""),
    "release": (State.RELEASED, b""),
    "release after a failure": (State.RELEASED, FAILURE),
}


class EndingRows:
    """A run writes to its record by its token, and a run that lost its key writes nothing."""

    @pytest.mark.parametrize("name", ENDS_AS)
    def test_a_run_ends(self, store: Store, name: str) -> None:
        """The record becomes what the run became, and keeps who it was; process and nonce go."""
        # Given
        held = hold(store, FIRST)
        state, outcome = ENDS_AS[name]
        # When
        answer = ENDINGS[name](store, held)
        # Then
        record = stored(store)
        assert answer == Recorded(record.token)
        assert (record.state, record.outcome) == (state, outcome)
        assert (record.owner, record.fingerprint) == (held.owner, held.fingerprint)
        assert (record.process, record.nonce) == (b"", b"")
        assert record.label == held.label
        assert record.token == held.token + (state is State.RELEASED)
        assert record.retries == held.retries + (state is State.RETRYING)
        assert bool(record.until_ms) is (state is State.RETRYING)

    @pytest.mark.parametrize(
        "claimed", [{"interruptions": 7}, {"until_ms": 17}, {"has_steps": True}]
    )
    @pytest.mark.parametrize("name", [name for name in ENDS_AS if name != "retry"])
    def test_what_a_run_does_not_decide_is_not_written(
        self, store: Store, name: str, claimed: dict[str, Any]
    ) -> None:
        """Interruptions, instants and whether there are steps: the store has them, not the run."""
        # Given
        interrupt(store, hold(store, FIRST))
        held = hold(store, FIRST)
        # When
        ENDINGS[name](store, replace(held, **claimed))
        # Then
        record = stored(store)
        assert (record.interruptions, record.until_ms, record.has_steps) == (1, 0, False)
        assert record.state is ENDS_AS[name][0]

    @pytest.mark.parametrize("name", [name for name in ENDINGS if name != "renew"])
    def test_an_ending_may_be_sent_again(self, store: Store, name: str) -> None:
        """The same token again is success again, and changes no outcome: the answer was lost."""
        # Given
        held = hold(store, FIRST)
        answer = ENDINGS[name](store, held)
        before = stored(store)
        # When
        again = ENDINGS[name](store, held)
        # Then
        assert again == answer
        assert replace(stored(store), until_ms=0) == replace(before, until_ms=0)

    @pytest.mark.parametrize("first", OUTCOMES)
    @pytest.mark.parametrize("second", OUTCOMES)
    def test_the_first_outcome_stands(self, store: Store, first: str, second: str) -> None:
        """A run that has an outcome is answered with success, and its first outcome stays."""
        # Given
        held = hold(store, FIRST)
        OUTCOMES[first](store, held)
        before = stored(store)
        # When
        answer = settle(store, held, before.state, 0, 1_000, outcome=OTHER_RESULT)
        OUTCOMES[second](store, held)
        # Then
        assert answer == Recorded(held.token)
        assert stored(store) == before

    def test_a_late_completion_counts_where_nobody_took_over(self, store: Store) -> None:
        """A run whose lease is over, and which completes all the same, is accepted."""
        # Given
        held = hold(store, FIRST)
        interrupt(store, held)
        # Then
        assert complete(store, held) == Recorded(held.token)
        assert stored(store).outcome == RESULT

    @pytest.mark.parametrize("name", WRITES)
    def test_a_run_that_was_taken_over_writes_nothing(self, store: Store, name: str) -> None:
        """After a takeover the first run can end in no way, and is shown who has the key."""
        # Given
        zombie = hold(store, FIRST)
        interrupt(store, zombie)
        hold(store, SECOND)
        before = stored(store)
        # When
        answer = WRITES[name](store, zombie)
        # Then
        assert answer == Lost(before)
        assert stored(store) == before

    @pytest.mark.parametrize("name", WRITES)
    def test_a_winners_result_is_kept(self, store: Store, name: str) -> None:
        """What the one who took over has recorded is not changed by the first run."""
        # Given
        zombie = hold(store, FIRST)
        interrupt(store, zombie)
        complete(store, hold(store, FIRST))
        before = stored(store)
        # Then
        assert WRITES[name](store, zombie) == Lost(before)
        assert stored(store) == before

    @pytest.mark.parametrize("name", [name for name in WRITES if not name.startswith("release")])
    @pytest.mark.parametrize("let_go", [release, release_failed])
    def test_a_run_that_let_go_writes_nothing(
        self, store: Store, let_go: Ending, name: str
    ) -> None:
        """After its release a run has no key any more, and is not accepted late."""
        # Given
        held = hold(store, FIRST)
        let_go(store, held)
        before = stored(store)
        # Then
        assert WRITES[name](store, held) == Lost(before)
        assert stored(store) == before

    @pytest.mark.parametrize("name", ENDINGS)
    def test_an_absent_record_is_written_anew(self, store: Store, name: str) -> None:
        """The store came back empty: nobody took over, so that the run goes on and is accepted."""
        # Given
        held = replace(FIRST.candidate(), token=1_700_000_000_000_000)
        state, outcome = ENDS_AS.get(name, (State.RUNNING, b""))
        # When
        answer = ENDINGS[name](store, held)
        # Then
        record = stored(store)
        assert answer == Recorded(record.token)
        assert record.token == held.token + (state is State.RELEASED)
        assert (record.state, record.outcome) == (state, outcome)
        assert record.owner == held.owner
        assert record.interruptions == 0

    def test_nothing_is_written_anew_for_a_delivery(self, store: Store) -> None:
        """A delivery lease whose record is gone is not lost, and leaves nothing."""
        # Given
        held = replace(FIRST.candidate(), token=17, state=State.SUCCEEDED, outcome=RESULT)
        # Then
        assert renew(store, held) == Recorded(17)
        assert store.get(KEY) is None

    def test_an_unknown_outcome_is_settled_by_its_run(self, store: Store) -> None:
        """The run that was given up for unknown completes late: that is its outcome."""
        # Given
        held = hold(store, FIRST, max_interruptions=0)
        interrupt(store, held)
        assert isinstance(claim(store, SECOND, max_interruptions=0), Unknown)
        # When
        answer = complete(store, held)
        # Then
        assert answer == Recorded(held.token)
        assert isinstance(claim(store, THIRD), Replay)

    @pytest.mark.parametrize("name", ["interrupt", "renew"])
    def test_an_unknown_outcome_stays_unknown_until_then(self, store: Store, name: str) -> None:
        """A heartbeat or one more interruption tell nothing new of an unknown outcome."""
        # Given
        held = hold(store, FIRST, max_interruptions=0)
        interrupt(store, held)
        claim(store, SECOND, max_interruptions=0)
        before = stored(store)
        # Then
        assert ENDINGS[name](store, held) == Recorded(held.token)
        assert stored(store) == before

    # --- renewing ---

    def test_renewing_prolongs_a_lease_and_nothing_else(self, store: Store) -> None:
        """The lease ends later; the rest of the record stays."""
        # Given
        held = hold(store, FIRST, lease_ms=1_000)
        before = stored(store)
        # When
        answer = renew(store, held, LEASE_MS)
        # Then
        record = stored(store)
        assert answer == Recorded(held.token)
        assert record.until_ms > before.until_ms
        assert replace(record, until_ms=before.until_ms) == before

    @pytest.mark.parametrize("ending", [retry, complete, fail])
    def test_renewing_what_has_ended_changes_nothing(self, store: Store, ending: Ending) -> None:
        """A heartbeat that comes after the end is no error, and moves no instant."""
        # Given
        held = hold(store, FIRST)
        ending(store, held)
        before = stored(store)
        # Then
        assert renew(store, held) == Recorded(held.token)
        assert stored(store) == before

    def test_many_leases_are_renewed_at_once(self, store: Store) -> None:
        """Each gets its own answer, in the order in which they were asked for."""
        # Given
        held = hold(store, FIRST)
        absent = Renewal(KEY + "-absent", held, LEASE_MS, KEEP_MS)
        lost = Renewal(KEY, replace(held, token=held.token - 1), LEASE_MS, KEEP_MS)
        mine = Renewal(KEY, held, LEASE_MS, KEEP_MS)
        # When
        answers = store.renew([lost, absent, mine, lost])
        # Then
        kinds = [type(answer) for answer in answers]
        assert kinds == [Lost, Recorded, Recorded, Lost]
        assert store.renew([]) == []

    # --- tokens ---

    def test_tokens_only_rise(self, store: Store) -> None:
        """Every claim has a higher token than all before it, whatever came between."""
        # Given
        tokens = []
        # When
        for end in (release, release_failed, interrupt, retry):
            held = hold(store, SECOND)
            tokens.append(held.token)
            end(store, held)
            tokens.append(hold(store, FIRST if end is not retry else SECOND.retried()).token)
            store.forget(KEY, HORIZON_MS)
        tokens.append(hold(store, THIRD).token)
        # Then
        assert tokens == sorted(set(tokens))
