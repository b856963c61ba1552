"""The transaction of a body at its edges: a lost answer to COMMIT, and a row that is locked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from celery_idempotent import ConfigurationError
from celery_idempotent.core import transitions
from celery_idempotent.core.keys import Owner
from celery_idempotent.core.record import Record, State
from celery_idempotent.core.reservation import Reservation
from celery_idempotent.core.verdicts import (
    Busy,
    Claim,
    Claimed,
    Lost,
    Recorded,
    Renewal,
    Replay,
    Reserve,
    Settle,
)
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.stores import deciding
from celery_idempotent.stores.base import NotCommitted
from celery_idempotent.testing.contract import kit
from celery_idempotent.testing.contract.kit import replace
from tests.support.databases import POSTGRESQL
from tests.support.djangos import database_of, set_up

set_up()

# Django has to be set up first.
from django.db import OperationalError, close_old_connections, connections  # noqa: E402
from django.db.models import F  # noqa: E402
from django.db.transaction import atomic  # noqa: E402

from celery_idempotent.django import rows  # noqa: E402
from celery_idempotent.django.models import Record as RecordRow  # noqa: E402
from celery_idempotent.django.store import DjangoStore  # noqa: E402
from tests.django_project.shop.models import Account  # noqa: E402

KEY = "idempotent:{shop.deposit:payment:1}"


@pytest.fixture(params=[POSTGRESQL, "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DjangoStore]:
    """A store on an empty database of each kind."""
    with database_of(request.param, tmp_path) as alias:
        Account.objects.using(alias).create(name="ann")
        yield DjangoStore(alias)


def asked(task_id: str) -> Claim:
    candidate = Record(State.RUNNING, 0, owner=Owner(task_id).pack(), nonce=task_id.encode()[:8])
    return Claim(candidate, lease_ms=30_000, keep_ms=3_600_000)


def held(store: DjangoStore, task_id: str = "first") -> Record:
    ask = asked(task_id)
    verdict = store.claim(KEY, ask)
    assert isinstance(verdict, Claimed)
    return replace(ask.candidate, token=verdict.token)


def completed(record: Record) -> Settle:
    done = replace(record, state=State.SUCCEEDED, outcome=b"\x01\x0141", nonce=b"")
    return Settle(done, 0, 3_600_000)


def pay(store: DjangoStore) -> None:
    rows = Account.objects.using(store.alias).filter(name="ann")
    rows.update(balance=F("balance") + 100)


def balance(store: DjangoStore) -> int:
    found: int = Account.objects.using(store.alias).get(name="ann").balance
    return found


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "not committed"])
def test_a_lost_answer_to_commit_is_found_out(
    store: DjangoStore, committed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token is read back: the run was completed with all that it wrote, or with nothing."""
    # Given
    record = held(store)
    transaction = store.begin()
    pay(store)
    connection = connections[store.alias]
    real = connection._commit

    def cut() -> None:
        monkeypatch.undo()  # the next one is as ever
        if committed:
            real()
        connection.connection.close()
        raise OperationalError("the server closed the connection unexpectedly")

    monkeypatch.setattr(connection, "_commit", cut)
    # When
    if committed:
        assert isinstance(transaction.commit(KEY, completed(record)), Recorded)
    else:
        with pytest.raises(NotCommitted) as raised:
            transaction.commit(KEY, completed(record))
        assert raised.value.sure
    # Then
    found = store.get(KEY)
    assert found is not None
    assert found.state is (State.SUCCEEDED if committed else State.RUNNING)
    assert balance(store) == (100 if committed else 0)


@pytest.mark.parametrize("store", [POSTGRESQL], indirect=True)
def test_a_connection_that_ends_before_the_completion_is_no_failure(store: DjangoStore) -> None:
    """The body has returned, and the database is away: nothing is committed, and it runs again."""
    # Given
    record = held(store)
    transaction = store.begin()
    pay(store)
    # When
    transaction.session.connection.close()
    with pytest.raises(NotCommitted) as raised:
        transaction.commit(KEY, completed(record))
    # Then
    assert raised.value.sure
    assert balance(store) == 0
    found = store.get(KEY)
    assert found is not None
    assert found.state is State.RUNNING


def test_what_a_zombie_wrote_is_rolled_back(store: DjangoStore) -> None:
    """The key was forgotten before its transaction ends: nothing of the run is durable."""
    # Given
    record = held(store)
    store.forget(KEY, 3_600_000)
    transaction = store.begin()
    pay(store)
    # When
    answer = transaction.commit(KEY, completed(record))
    # Then
    assert isinstance(answer, Lost)
    assert balance(store) == 0
    found = store.get(KEY)
    assert found is not None
    assert found.state is State.RELEASED


def test_a_row_that_changed_after_it_was_read_is_read_again(
    store: DjangoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two claims that both find the lease over: the second one to write finds it taken."""
    # Given
    record = held(store)
    store.settle(KEY, Settle(replace(record, nonce=b""), 0, 3_600_000))  # it was cut off
    real, between = transitions.claim, []

    def decide(*args: Any, **more: Any) -> Any:
        monkeypatch.undo()
        between.append(store.claim(KEY, asked("faster")))
        return real(*args, **more)

    monkeypatch.setattr(transitions, "claim", decide)
    # When
    verdict = store.claim(KEY, asked("slower"))
    # Then
    assert isinstance(between[0], Claimed)
    assert isinstance(verdict, Busy)


def test_a_row_that_was_made_anew_is_not_the_one_that_was_read(
    store: DjangoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was deleted and has been written as often since: it is another row all the same."""
    # Given a row that was written twice
    record = held(store)
    store.settle(KEY, Settle(replace(record, nonce=b""), 0, 3_600_000))  # it was cut off
    real = transitions.claim

    def decide(*args: Any, **more: Any) -> Any:
        monkeypatch.undo()
        RecordRow.objects.using(store.alias).all().delete()
        store.renew([Renewal(KEY, held(store, "faster"), 60_000, 3_600_000)])
        return real(*args, **more)

    monkeypatch.setattr(transitions, "claim", decide)
    # When
    verdict = store.claim(KEY, asked("slower"))
    # Then
    assert isinstance(verdict, Busy)


def _of(message: kit.Message) -> Reserve:
    return Reserve(Reservation(message.owner, keeps_result=True), 10_000)


def test_only_what_was_read_is_deleted(store: DjangoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call undoes its own reservation, and not the one that took its place meanwhile."""
    # Given
    store.reserve(kit.KEY, _of(kit.FIRST))
    real = transitions.unreserve

    def decide(*args: Any) -> Any:
        monkeypatch.undo()
        store.unreserve(kit.KEY, kit.FIRST.owner)
        store.reserve(kit.KEY, _of(kit.SECOND))
        return real(*args)

    monkeypatch.setattr(transitions, "unreserve", decide)
    # When
    store.unreserve(kit.KEY, kit.FIRST.owner)
    # Then
    queued = store.reservation(kit.KEY)
    assert queued is not None
    assert queued.owner == kit.SECOND.owner


def test_a_slip_that_was_answered_after_it_was_read_is_not_deleted(
    store: DjangoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delivery that could not send what hangs on a call ends its lease; another has answered."""
    # Given
    kit.complete(store, kit.hold(store, kit.FIRST))
    kit.claim(store, kit.SECOND, noted=True)
    real = transitions.note

    def decide(*args: Any, **more: Any) -> Any:
        monkeypatch.undo()
        kit.note(store, kit.SECOND)
        return real(*args, **more)

    monkeypatch.setattr(transitions, "note", decide)
    # When
    kit.note(store, kit.SECOND, sent=False)
    # Then
    slip = store.slip(kit.SECOND.slip_key)
    assert slip is not None
    assert slip.answered


def test_a_slip_that_changed_after_it_was_read_is_read_again(
    store: DjangoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two copies that both find callbacks unsent: the second one to write finds them being sent."""
    # Given
    kit.complete(store, kit.hold(store, kit.FIRST))
    kit.note(store, kit.SECOND)
    anew = replace(kit.SECOND, publication=b"published anew", digest=b"anothers")
    real, between = transitions.claim, []

    def decide(*args: Any, **more: Any) -> Any:
        monkeypatch.undo()
        between.append(kit.claim(store, anew, noted=True))
        return real(*args, **more)

    monkeypatch.setattr(transitions, "claim", decide)
    # When
    verdict = kit.claim(store, anew, noted=True)
    # Then
    assert isinstance(between[0], Replay)
    assert isinstance(verdict, Busy)


def test_what_was_decided_too_long_ago_is_not_written(
    store: DjangoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement lay in a socket: when it runs at last, its caller has given it up."""
    # Given a record and a slip
    held = kit.hold(store, kit.FIRST)
    kit.note(store, kit.SECOND)
    before = kit.stored(store)
    monkeypatch.setattr(deciding, "_PATIENT_S", 0.05)
    # When statements are late
    monkeypatch.setattr(deciding, "_FRESH_US", -1_000_000)
    # Then what is there stays
    with pytest.raises(StoreUnavailable):
        kit.complete(store, held)
    with pytest.raises(StoreUnavailable):
        kit.note(store, kit.SECOND, digests=b"anothers")
    slip = store.slip(kit.SECOND.slip_key)
    assert slip is not None
    assert slip.digests == kit.SECOND.digest
    assert kit.stored(store) == before
    # And nothing is made
    with pytest.raises(StoreUnavailable):
        store.claim("another key", asked("first"))
    with pytest.raises(StoreUnavailable):
        kit.note(store, kit.THIRD)
    assert store.get("another key") is None
    assert store.slip(kit.THIRD.slip_key) is None


def test_no_claim_waits_for_a_row_that_a_body_has_locked(store: DjangoStore) -> None:
    """A step locks the record until the commit: a duplicate is told that it is busy."""
    if connections[store.alias].vendor == "sqlite":
        return  # it has no locks on rows
    # Given
    record = held(store)
    transaction = store.begin()
    transaction.step(Renewal(KEY, record, 30_000, 3_600_000), "pay", b"done")
    assert transaction.is_lease
    answers: list[Any] = []

    def claim_elsewhere() -> None:
        answers.append(DjangoStore(store.alias).claim(KEY, asked("other")))
        connections[store.alias].close()

    # When
    other = threading.Thread(target=claim_elsewhere)
    other.start()
    other.join(30)
    # Then
    assert isinstance(answers[0], Busy)
    assert isinstance(transaction.commit(KEY, completed(record)), Recorded)
    assert store.steps(KEY) == {"pay": b"done"}


@pytest.mark.parametrize("fails", [True, False])
def test_what_is_written_beside_a_bodys_transaction_is_written_whole(
    store: DjangoStore, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Or not at all, as a record and its slip have to be. A right that lacks undoes nothing."""
    # Given
    monkeypatch.setattr(rows, "NOTIFY", "SELECT nobody_may(%s)")
    body = store.begin()

    def write(at: Any) -> None:
        row = store.rows.read(at, kit.KEY)
        with suppress(ZeroDivisionError), store.rows.transaction(at):
            assert store.rows.write_record(
                at, kit.KEY, row, kit.FIRST.candidate(), row.now_ms + kit.KEEP_MS
            )
            if store.rows.tells:
                store.rows.tell(at, kit.KEY)
            if fails:
                raise ZeroDivisionError

    # When
    store.rows.operate(write)
    body.commit_alone()
    # Then
    assert (store.get(kit.KEY) is None) is fails


def test_a_bodys_own_lease_is_renewed_beside_its_transaction(store: DjangoStore) -> None:
    """Else the row would be locked by check(), and the heartbeat would find it so."""
    if connections[store.alias].vendor == "sqlite":
        return  # its write lock is the lease
    # Given
    record = held(store)
    transaction = store.begin()
    # When
    (answer,) = store.renew([Renewal(KEY, record, 60_000, 3_600_000)])
    transaction.rollback()
    # Then what was renewed stays so
    found, now_ms = store.peek(KEY)
    assert isinstance(answer, Recorded)
    assert found is not None
    assert found.until_ms - now_ms > 40_000


def test_a_body_that_closed_its_connection_is_not_run_again(store: DjangoStore) -> None:
    """It would close it again: the error says what to do, and nothing is committed."""
    # Given
    record = held(store)
    transaction = store.begin()
    pay(store)
    close_old_connections()
    # When
    with pytest.raises(ConfigurationError, match="atomic"):
        transaction.commit(KEY, completed(record))
    # Then
    assert balance(store) == 0
    assert store.get(KEY) is not None


def test_a_checkpoint_commits_what_was_written_so_far(store: DjangoStore) -> None:
    """What comes after it is a transaction of its own, on the same connection."""
    # Given
    record = held(store)
    transaction = store.begin()
    pay(store)
    # When
    one = Renewal(KEY, record, 60_000, 3_600_000)
    assert isinstance(transaction.commit_step(one, "@items", b"cursor"), Recorded)
    pay(store)
    transaction.rollback()
    # Then
    assert balance(store) == 100
    assert store.steps(KEY) == {"@items": b"cursor"}


def test_after_a_checkpoint_the_run_is_completed_as_ever(store: DjangoStore) -> None:
    """Both parts are there, and the record is settled with the second one."""
    # Given
    record = held(store)
    transaction = store.begin()
    pay(store)
    one = Renewal(KEY, record, 60_000, 3_600_000)
    transaction.commit_step(one, "@items", b"cursor")
    # When
    pay(store)
    assert isinstance(transaction.commit(KEY, completed(record)), Recorded)
    # Then
    found = store.get(KEY)
    assert found is not None
    assert (found.state, balance(store)) == (State.SUCCEEDED, 200)


def test_a_zombies_checkpoint_commits_nothing(store: DjangoStore) -> None:
    """What it wrote is rolled back with it."""
    # Given
    record = held(store)
    transaction = store.begin()
    pay(store)
    stale = Renewal(KEY, replace(record, token=record.token - 1), 60_000, 3_600_000)
    # When
    answer = transaction.commit_step(stale, "@items", b"cursor")
    # Then
    assert isinstance(answer, Lost)
    assert (balance(store), store.steps(KEY)) == (0, {})


def test_a_checkpoint_inside_an_atomic_block_of_the_body_is_an_error(store: DjangoStore) -> None:
    """It could not be committed there: the error says what to do."""
    # Given
    record = held(store)
    transaction = store.begin()
    one = Renewal(KEY, record, 60_000, 3_600_000)
    # When
    with (
        pytest.raises(ConfigurationError, match="end that block first"),
        atomic(using=store.alias),
    ):
        transaction.commit_step(one, "@items", b"cursor")
    # Then
    transaction.rollback()
    assert store.steps(KEY) == {}
