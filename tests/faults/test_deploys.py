"""Deploys with messages in flight and records in the store: old and new side by side."""

from __future__ import annotations

import redis
from celery.result import AsyncResult

from tests.conftest import MakeSystem
from tests.support.system import STORE_DB, System, answers


def store_key(system: System) -> str:
    """The name of the one record there is."""
    (name,) = (key for key in system.records() if b":sent:" not in key and b"journal" not in key)
    return name.decode()


def set_version(system: System, version: int) -> None:
    """Have a newer worker write the record, or an older one read it again."""
    name = store_key(system)
    with redis.Redis.from_url(system.store.url(STORE_DB)) as client:
        client.setrange(name, 0, bytes([version]))


def test_a_record_of_a_newer_version_is_waited_for(make_faulty: MakeSystem) -> None:
    """Scenarios 30 and 37: an old worker neither runs nor fails what a newer one has recorded."""
    # Given
    system = make_faulty(idempotency_lease=300)
    system.start_worker(concurrency=1)
    pay = system.task("pay")
    answer = pay.delay(1).get(timeout=30)
    set_version(system, 2)
    # When
    duplicate = pay.delay(1)
    system.ledger.wait_for("finished", times=2, id=duplicate.id)
    # Then
    assert not duplicate.ready()
    assert system.ledger.count("start") == 1
    # When somebody comes who can read it
    set_version(system, 1)
    # Then
    assert duplicate.get(timeout=30) == answer
    assert system.ledger.count("start") == 1


def test_a_message_keeps_the_key_that_it_was_sent_with(make_faulty: MakeSystem) -> None:
    """Scenario 50: the workers' key option has changed since: messages in flight still meet."""
    # Given a producer of the old code, and workers of the new
    system = make_faulty(idempotency_lease=300)
    system.settings["test_options"] = {
        "shop.charge": {"idempotency_key": "order:{order}:{amount}", "idempotency_namespace": "v2"}
    }
    system.start_worker(concurrency=2)
    charge = system.task("charge")
    # When both come with other amounts, which are a part of the new key and not of the old
    calls = [charge.delay(1, amount=100), charge.delay(1, amount=200)]
    # Then
    one, two = answers(calls)
    assert one == two
    assert system.ledger.count("effect") == 1
    # And a call without the header of a producer gets the new key
    bare = system.app.send_task("shop.charge", (1,), {"amount": 200}).get(timeout=30)
    assert bare["receipt"] != one["receipt"]


def test_a_parameter_is_added(make_faulty: MakeSystem) -> None:
    """Scenario 50: with one default more, what is in flight meets what runs, and is taken over."""
    # Given runs of the old code, whose keys and fingerprints come from all of its arguments
    system = make_faulty(idempotency_lease=2, visibility_timeout=2, worker_prefetch_multiplier=1)
    old = system.start_worker(concurrency=2)
    invoice = system.task("invoice")
    keys = {1: {}, 2: {"idempotency_key": "req-2"}}

    def call(order: int) -> AsyncResult:
        return invoice.apply_async((order, "go"), **keys[order])

    calls = [call(1), call(2)]
    system.ledger.wait_for("start", times=2)
    # When the new code gets their duplicates
    system.settings["test_release"] = 2
    new = system.start_worker(concurrency=2)
    calls += [call(1), call(2)]
    for duplicate in calls[2:]:
        system.ledger.wait_for("received", id=duplicate.id, pid=new.pid)
        system.ledger.wait_for("finished", id=duplicate.id)
    # Then they wait
    assert system.ledger.count("start") == 2
    # When the old code is gone, and the new gets its messages too
    old.kill()
    system.ledger.open("go")
    one, two, three, four = answers(calls, timeout=60)
    # Then
    assert (one["order"], two["order"]) == (1, 2)
    assert (one, two) == (three, four)
    assert system.ledger.count("effect") == 2
    for order in (1, 2):
        before, after = system.ledger.entries("start", key=order)
        assert before["name"] == after["name"]
        assert (before["currency"], after["currency"]) == (None, "EUR")
        assert after["interrupted"]


def test_an_owner_is_never_checked(make_faulty: MakeSystem) -> None:
    """Scenario 50: a redelivery whose defaults the new code changed is the owner's, no mismatch."""
    # Given an explicit key, claimed by a worker of the old code that then dies
    system = make_faulty(idempotency_lease=1, visibility_timeout=2)
    old = system.start_worker(concurrency=1)
    first = system.task("charge").apply_async((1,), {"gate": "go"}, idempotency_key="req-1")
    system.ledger.wait_for("start")
    old.kill()
    # When the new code's fingerprint covers other arguments
    system.settings["test_options"] = {"shop.charge": {"idempotency_fingerprint": ("order",)}}
    system.ledger.open("go")
    system.start_worker(concurrency=1)
    # Then
    assert first.get(timeout=30)["order"] == 1
    assert system.ledger.count("effect") == 1
    assert system.ledger.entries("start")[-1]["interrupted"]


def test_attached_calls_race_with_the_end_of_the_window(make_faulty: MakeSystem) -> None:
    """Scenario 36: calls that attach while records complete and expire all get an answer."""
    # Given a window that ends again and again while the calls are made
    system = make_faulty(idempotency_on_enqueue="attach", idempotency_ttl=0.3)
    system.start_worker(concurrency=2)
    pay = system.task("pay")
    # When
    calls = []
    while system.ledger.count("effect") < 4:
        calls.append(pay.delay(1))
    # Then
    given = answers(calls)
    assert {answer["order"] for answer in given} == {1}
    published = {call.id for call in calls}
    assert len(published) < len(calls)
    assert system.ledger.count("start") == system.ledger.count("effect")
    assert {entry["id"] for entry in system.ledger.entries("effect")} <= published
