"""One thread a process keeps leases alive, and finishes what the store could not take."""

import os
import sys
import threading
import time
import weakref

import pytest

from celery_idempotent.core.keys import Owner
from celery_idempotent.core.record import Record, State
from celery_idempotent.core.verdicts import Claim, Settle
from celery_idempotent.errors import RecordTooNew, StoreUnavailable
from celery_idempotent.run import heartbeat as module
from celery_idempotent.run.heartbeat import Heartbeat
from celery_idempotent.run.lease import Lease
from celery_idempotent.stores.memory import MemoryStore
from celery_idempotent.testing.contract.kit import replace


class CountingStore(MemoryStore):
    """Counts the round trips of renewals, and can be away."""

    def __init__(self):
        super().__init__()
        self.round_trips = []
        self.away = False
        self.renewed = threading.Event()

    def renew(self, renewals):
        self.round_trips.append(len(renewals))
        if self.away:
            raise StoreUnavailable("away")
        answers = super().renew(renewals)
        self.renewed.set()
        return answers


@pytest.fixture
def store():
    return CountingStore()


@pytest.fixture
def beat():
    return Heartbeat()


#: Nothing takes as long, however busy a machine is: it bounds a test that hangs.
SOON_S = 60


def hold(store, key="k", lease_ms=300, on_lost=None):
    candidate = Record(State.RUNNING, 0, owner=Owner(key).pack(), nonce=os.urandom(8))
    claimed = store.claim(key, Claim(candidate, lease_ms, 60_000))
    record = Record(State.RUNNING, claimed.token, owner=candidate.owner)
    return Lease(store, key, record, lease_ms, 60_000, on_lost)


def test_a_lease_is_renewed_while_it_is_held(store, beat):
    """It outlives its length, by renewals after a third of it."""
    # Given
    lease = hold(store)
    before = store.get("k").until_ms
    # When
    beat.add(lease)
    assert store.renewed.wait(SOON_S)
    # Then
    assert store.get("k").until_ms > before
    assert lease.lost is None


def test_a_short_body_costs_no_renewal(store, beat):
    """A lease that is younger than a third of its length is left alone."""
    # Given
    long, short = hold(store, "long", lease_ms=60_000), hold(store, "short", lease_ms=300)
    # When
    beat.add(long)
    beat.add(short)
    assert store.renewed.wait(SOON_S)
    # Then
    assert set(store.round_trips) == {1}


def test_a_thousand_leases_are_one_round_trip_and_one_thread(store, beat):
    """Their number doesn't matter, and neither does it that they began one after the other."""
    # Given
    leases = [hold(store, f"k{n}", lease_ms=6000) for n in range(1000)]
    now = time.monotonic()
    for number, lease in enumerate(leases):
        lease.renewed = now + number / 10_000
    began = [lease.renewed for lease in leases]
    # When
    for lease in leases:
        beat.add(lease)
    until = time.monotonic() + SOON_S
    while any(lease.renewed == at for lease, at in zip(leases, began, strict=True)):
        assert time.monotonic() < until
        time.sleep(0.05)
    # Then
    took = time.monotonic() - began[0]
    assert sum(t is beat._thread for t in threading.enumerate()) == 1
    assert len(store.round_trips) <= took / 2.0 + 1


def test_a_removed_lease_is_not_renewed(store, beat):
    """A run that ended is no longer kept alive."""
    # Given one that is not due before it is removed, and from then on
    gone, kept = hold(store, "gone", lease_ms=60_000), hold(store, "kept")
    beat.add(gone)
    # When
    beat.remove(gone)
    gone.renewed -= 60
    beat.add(kept)
    assert store.renewed.wait(SOON_S)
    # Then
    assert set(store.round_trips) == {1}


def test_a_lease_that_nobody_holds_any_more_is_not_renewed(store, beat):
    """However a run was cut off: nothing keeps its key but the run itself."""
    # Given
    dropped = hold(store, "dropped", lease_ms=60_000)
    beat.add(dropped)
    # When
    del dropped
    kept = hold(store, "kept")
    beat.add(kept)
    assert store.renewed.wait(SOON_S)
    # Then
    assert [lease.key for lease in beat.leases()] == ["kept"]
    assert list(beat._leases) == [kept.number]


def test_a_lost_lease_is_told_once(store, beat):
    """The run learns it, and it is renewed no more."""
    # Given
    told = threading.Event()
    losses = []

    def on_lost(lease):
        losses.append(lease.lost.state)
        told.set()

    lease = hold(store, on_lost=on_lost)
    store.forget("k", 60_000)
    # When
    beat.add(lease)
    assert told.wait(SOON_S)
    # Then
    assert losses == [State.RELEASED]
    assert not beat.leases()


def test_a_store_that_is_away_is_asked_again(store, beat):
    """The lease is still held when it comes back."""
    # Given
    store.away = True
    lease = hold(store)
    beat.add(lease)
    until = time.monotonic() + SOON_S
    while len(store.round_trips) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    # When
    store.away = False
    # Then
    assert store.renewed.wait(SOON_S)
    assert lease.lost is None


def test_what_the_store_could_not_take_is_told_later(beat):
    """Until it takes it."""
    # Given
    told, tries = threading.Event(), []

    def tell():
        tries.append(1)
        if len(tries) < 3:
            raise StoreUnavailable("away")
        told.set()

    # When
    beat.later(tell, "an outcome", 60)
    # Then
    assert told.wait(SOON_S)
    assert len(tries) == 3


def test_a_process_that_ends_tells_at_once(beat):
    """Flushing doesn't wait for the next try's turn."""
    # Given
    told = []
    beat.later(lambda: told.append(1), "an outcome", 60)
    # When
    left_nothing = beat.flush(5)
    # Then
    assert left_nothing
    assert told == [1]


def test_flushing_gives_up_in_time(beat):
    """A store that stays away doesn't keep a process from ending."""

    # Given
    def tell():
        raise StoreUnavailable("away")

    beat.later(tell, "an outcome", 60)
    # Then
    assert not beat.flush(0.1)


def test_a_process_that_ends_says_what_it_could_not_tell(beat, caplog):
    """Once, with its key and what is lost; what need not be told is not a loss."""

    # Given
    def tell():
        raise StoreUnavailable("away")

    beat.later(tell, "idempotent:{pay:7} is succeeded", 60)
    beat.later(tell, "what expired is deleted", 60, must=False)
    # When
    beat.finish(0.1)
    beat.finish(0.1)
    # Then
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "could not be told within 0.1 s: idempotent:{pay:7} is succeeded" in error.getMessage()


def test_a_forked_child_keeps_none_of_its_parents_leases(store, beat):
    """They are the parent's, and so is its thread."""
    # Given
    lease = hold(store)
    beat.add(lease)
    # When
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            beat.add(hold(store, "child"))
            child_only = [held.key for held in beat.leases()] == ["child"]
            code = 0 if child_only or not beat.leases() else 2
        finally:
            os._exit(code)
    # Then
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert [held.key for held in beat.leases()] == ["k"]


def test_a_forked_child_renews_only_its_own(store, beat):
    """What its parent holds is not kept alive by it, should the parent die."""
    # Given
    beat.add(hold(store, lease_ms=60_000))
    # When
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            mine = hold(store, "child")
            beat.add(mine)
            renewed = store.renewed.wait(SOON_S)
            code = 0 if renewed and [held.key for held in beat._held()] == ["child"] else 2
        finally:
            os._exit(code)
    # Then
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_leases_that_come_and_go_in_other_threads_stop_nothing(store, beat):
    """The thread looks through the leases while a pool's threads add and remove theirs."""
    # Given
    kept = [hold(store, f"k{n}", lease_ms=60_000) for n in range(20)]
    passing = hold(store, "passing", lease_ms=60_000)
    for lease in kept:
        beat.add(lease)
    over = threading.Event()

    def come_and_go():
        while not over.is_set():
            beat.add(passing)
            beat.remove(passing)

    worker = threading.Thread(target=come_and_go)
    pace = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    worker.start()
    # When
    try:
        counts = {len(beat.leases()) for _ in range(3000) if beat._next(in_use=False) > 0}
    finally:
        over.set()
        worker.join()
        sys.setswitchinterval(pace)
    # Then
    assert counts <= {20, 21}


def test_a_thread_that_cannot_start_is_tried_again(store, beat, monkeypatch):
    """Else every later run of the process would hold a lease that nobody renews."""
    # Given
    lease = hold(store)

    def refuse(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            beat.add(lease)
    # When
    beat.add(lease)
    # Then
    assert store.renewed.wait(SOON_S)


def test_who_hears_of_a_lost_lease_holds_up_no_other(store, beat):
    """A signal's receiver may take its time; the other runs of the process keep their keys."""
    # Given
    heard, may_return = threading.Event(), threading.Event()

    def dawdle(lease):
        heard.set()
        may_return.wait(SOON_S)

    lost, kept = hold(store, "lost", on_lost=dawdle), hold(store, "kept")
    store.forget("lost", 60_000)
    beat.add(lost)
    beat.add(kept)
    # When
    assert heard.wait(SOON_S)
    store.renewed.clear()
    # Then
    assert store.renewed.wait(SOON_S)
    may_return.set()


def test_a_run_that_releases_its_key_itself_has_not_lost_it(store, beat):
    """A renewal that was under way then finds a higher token: nobody took over."""
    # Given
    told = []
    lease = hold(store, on_lost=told.append)
    released = replace(lease.record, state=State.RELEASED)
    store.settle("k", Settle(released, 0, 60_000))
    # When
    beat.add(lease)
    lease.renew()
    # Then
    assert lease.lost is None
    assert not told


@pytest.mark.parametrize(
    ("error", "seconds"), [(StoreUnavailable("away"), 1.0), (RecordTooNew("by the next"), 10.0)]
)
def test_only_a_store_that_is_away_is_asked_again_soon(store, beat, error, seconds):
    """A record that a newer release took over in a deploy is no reason to ask every second."""
    # Given a lease that is due
    lease = hold(store, lease_ms=30_000)
    now = lease.due
    beat._leases[lease.number] = weakref.ref(lease)
    store.renew = lambda renewals: [error]
    # When
    beat._renew(now)
    # Then
    assert lease.due - now == pytest.approx(seconds)
    assert lease.renewed < now


def test_a_lease_that_was_not_renewed_in_time_is_doubtful(store):
    """Another run may have its key then, or once it is known to be lost."""
    # Given
    lease = hold(store, lease_ms=30_000)
    assert not lease.is_doubtful
    # When it can't be renewed
    lease.postponed = time.monotonic() + 60
    assert not lease.is_doubtful
    lease.renewed -= 30
    # Then
    assert lease.is_doubtful
    # When it is renewed after all, and then lost
    assert lease.renew()
    assert not lease.is_doubtful
    lease.lose(lease.record)
    assert lease.is_doubtful


def test_what_need_not_be_told_keeps_nothing_else_from_being_told(beat):
    """The store is away for what is optional, and takes an outcome all the same."""
    # Given
    told = []

    def away():
        raise StoreUnavailable("away")

    beat.later(away, "what expired is deleted", 60, must=False)
    beat.later(lambda: told.append(1), "an outcome", 60)
    # When all of it is tried once
    left_nothing = beat.flush(0)
    # Then
    assert left_nothing
    assert told == [1]


# --- stores that delete nothing by themselves ----------------------------------------------------


class TendedStore(MemoryStore):
    """A store that has to be tended."""

    needs_tending = True

    def __init__(self):
        super().__init__()
        self.turns = 0
        self.more = False
        self.away = False
        self.tended = threading.Event()

    def tend(self):
        self.turns += 1
        self.tended.set()
        if self.away:
            raise StoreUnavailable("away")
        return self.more


@pytest.fixture
def turns_in(monkeypatch, beat):
    """Return how many turns a store has in so many seconds of tasks, by a clock of the test."""
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])

    def count(store, seconds):
        before = store.turns
        for _ in range(seconds):
            clock[0] += 1
            beat.tend([store])
        return store.turns - before

    return count


def test_a_store_whose_leases_come_and_go_is_tended(beat, monkeypatch):
    """The heartbeat knows it from the leases, and is asked by nobody."""
    # Given
    monkeypatch.setattr(module, "_TENDED_S", 0.01)
    store = TendedStore()
    # When
    for number in range(1000):
        lease = hold(store, f"k{number}", lease_ms=60)
        beat.add(lease)
        beat.remove(lease)
        if store.tended.wait(0.02):
            break
    # Then
    assert store.turns


def test_a_store_has_its_turn_about_once_a_minute(turns_in):
    """The first time, too, it is not at once."""
    # Given
    store = TendedStore()
    # Then
    assert turns_in(store, 1) == 0
    assert 6 <= turns_in(store, 600) <= 20


def test_where_there_is_more_to_delete_the_next_turn_is_soon(beat, turns_in):
    """Until all of it is gone; the thread wakes up for that."""
    # Given
    store = TendedStore()
    turns_in(store, 100)
    store.more = True
    turns_in(store, 100)
    # Then
    assert turns_in(store, 60) >= 20
    assert beat._next(in_use=False) <= module.time.monotonic() + 2


def test_a_store_that_is_away_has_its_turn_later(turns_in):
    """Nothing is lost by that, and nothing is raised."""
    # Given
    store = TendedStore()
    store.away = True
    # Then
    assert turns_in(store, 300) >= 1


def test_a_store_that_deletes_by_itself_is_left_alone(beat):
    """Redis and memory have no such method."""
    beat.tend([MemoryStore()])
