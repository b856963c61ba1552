"""A call that is a duplicate when it is made: attached to its first call, refused, or published."""

from contextlib import suppress
from datetime import datetime, timedelta, timezone

import pytest
from celery import chain, chord, group, states
from celery.app.trace import build_tracer
from celery.exceptions import TimeLimitExceeded

from celery_idempotent import IdempotencyInProgress, IdempotentTask, State
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.observers import observe, stop_observing
from tests.publishing.calls import first, key_of, keys, task_of


@pytest.fixture
def charge(app):
    return task_of(app)


@pytest.fixture
def once(app):
    return task_of(app, idempotency_on_enqueue="raise", name="once")


def test_a_call_whose_first_is_running_is_not_published(charge, store, published):
    """The caller gets the first call's result."""
    # Given
    original = first(charge, store, 42)
    # When
    answer = charge.delay(order_id=42)
    # Then
    assert answer.id == original
    assert not published


def test_a_call_whose_first_waits_for_a_retry_is_not_published(charge, store, published):
    """As long as that retry isn't overdue."""
    original = first(charge, store, 42, state=State.RETRYING)
    assert charge.delay(42).id == original
    assert not published


def test_a_call_whose_first_is_done_is_not_published_while_its_result_is_kept(
    app, charge, store, published
):
    """The result backend still has it."""
    # Given
    original = first(charge, store, 42, until_ms=0, state=State.SUCCEEDED, outcome=b"\x01\x01 1")
    app.backend.store_result(original, 1, states.SUCCESS)
    # When
    answer = charge.delay(42)
    # Then
    assert answer.id == original
    assert answer.get() == 1
    assert not published


@pytest.mark.parametrize("state", [None, State.RETRYING, State.SUCCEEDED])
def test_a_call_whose_first_was_revoked_is_published(app, charge, store, published, state):
    """Nobody is going to answer the first one; the worker knows what becomes of this one."""
    # Given
    original = first(charge, store, 42, state=state, outcome=b"\x01\x01 1" if state else b"")
    app.backend.mark_as_revoked(original)
    # Then
    assert charge.delay(42).id != original
    assert len(published) == 1


@pytest.mark.parametrize("state", [State.RUNNING, State.RETRYING])
def test_a_call_whose_first_has_failed_for_its_caller_is_published(
    app, charge, store, published, state
):
    """The worker killed its run at a time limit; the key is free when the run's lease is over."""
    # Given
    original = first(charge, store, 42, state=state)
    app.backend.mark_as_failure(original, TimeLimitExceeded(1))
    # Then
    assert charge.delay(42).id != original
    assert len(published) == 1


@pytest.mark.parametrize("state", [None, State.RETRYING])
def test_where_no_state_can_be_read_it_is_published(
    app, charge, store, published, monkeypatch, state
):
    """A result backend that is away, or none, would have no result of the first call either."""

    # Given
    def away(*_):
        raise NotImplementedError("no result backend")

    original = first(charge, store, 42, state=state)
    monkeypatch.setattr(app.backend, "get_state", away)
    # Then
    assert charge.delay(42).id != original
    assert len(published) == 1
    assert published[0][2]["id"] != original


@pytest.mark.parametrize(
    ("sent", "options", "alone"),
    [
        ({}, {}, False),
        ({"expires": "2100-01-01T00:00:00+00:00"}, {}, True),
        ({"ignore_result": True}, {}, True),
        ({}, {"ignore_result": True}, True),
        ({"ignore_result": False}, {"ignore_result": True}, False),
    ],
)
@pytest.mark.parametrize("state", ["running", "retrying"])
def test_a_call_whose_first_may_end_without_a_result_is_published(
    app, store, published, sent, options, alone, state
):
    """It may expire before its next attempt, or keeps no result: nobody is to wait for that."""
    # Given
    answers = []

    @app.task(
        base=IdempotentTask,
        bind=True,
        idempotency_key="order:{order_id}",
        idempotency_on_enqueue="attach",
        name="charge",
        **options,
    )
    def charge(self, order_id):
        if state == "retrying":
            raise self.retry(countdown=30)
        answers.append(charge.delay(order_id).id)

    # When
    request = {"id": "first", "retries": 0, "delivery_info": {}, "hostname": "h", **sent}
    build_tracer("charge", charge, app=app)("first", (42,), {}, request)
    if state == "retrying":
        answers.append(charge.delay(42).id)
    # Then
    assert (answers[0] != "first") is alone
    assert charge.idempotency_record(42).owner_id == "first"


def test_a_result_that_the_backend_lost_is_asked_for_again(charge, store, published):
    """The message is published, and the worker replays the outcome."""
    original = first(charge, store, 42, until_ms=0, state=State.SUCCEEDED, outcome=b"\x01\x01 1")
    assert charge.delay(42).id != original
    assert len(published) == 1


@pytest.mark.parametrize("state", [None, State.RETRYING])
def test_a_lease_that_is_over_and_a_retry_that_is_overdue_are_published(
    charge, store, clock, published, state
):
    """Nobody may be there to answer."""
    # Given
    original = first(charge, store, 42, until_ms=30_000, state=state)
    clock.us += 29_999_000
    assert charge.delay(42).id == original
    # When
    clock.us += 1_000
    answer = charge.delay(42)
    # Then
    assert answer.id != original
    assert len(published) == 1


def test_a_failed_key_is_free_and_is_published(charge, store, published):
    """The next call runs."""
    first(charge, store, 42, until_ms=0, state=State.RELEASED, outcome=b"\x02\x01{}")
    charge.delay(42)
    assert len(published) == 1


def test_other_arguments_are_published_where_they_are_checked(charge, store, published):
    """An explicit key says that the arguments are the same: the worker refuses the call."""
    # Given
    first(charge, store, 42, 100, explicit="req-1")
    # When
    charge.apply_async((42, 200), idempotency_key="req-1")
    # Then
    assert len(published) == 1


def test_arguments_that_are_only_remembered_keep_no_calls_apart(charge, store, published):
    """A derived key says which arguments matter: the worker would answer such a call alike."""
    # Given
    original = first(charge, store, 42, 100)
    # When
    result = charge.delay(42, 200)
    # Then
    assert result.id == original
    assert not published


def test_a_store_that_is_away_only_costs_the_look(charge, store, published, monkeypatch):
    """The call is published."""

    # Given
    def away(*_):
        raise StoreUnavailable("away")

    monkeypatch.setattr(store, "reserve", away)
    # When
    charge.delay(42)
    # Then
    assert len(published) == 1


def test_without_the_option_it_is_published(app, store, published):
    """Attaching is off by default, and the store isn't asked."""

    # Given
    @app.task(base=IdempotentTask, idempotency_key="order:{order_id}", name="charge")
    def plain(order_id, amount=1):
        return amount

    original = first(plain, store, 42)
    # Then
    assert plain.delay(42).id != original
    assert len(published) == 1


@pytest.mark.parametrize("how", ["group", "chain", "chord", "link", "link_error", "task_id"])
def test_parts_of_something_else_are_published(app, charge, store, published, how):
    """What hangs on their own message would never come."""
    # Given
    original = first(charge, store, 42)

    @app.task(name="tail")
    def tail(*args):
        return args

    ways = {
        "group": lambda: group(charge.s(42), charge.s(43)).apply_async(),
        "chain": lambda: chain(charge.s(42), tail.s()).apply_async(),
        "chord": lambda: chord([charge.s(42), charge.s(43)])(tail.s()),
        "link": lambda: charge.apply_async((42,), link=tail.s()),
        "link_error": lambda: charge.apply_async((42,), link_error=tail.s()),
        "task_id": lambda: charge.apply_async((42,), task_id="mine"),
    }
    app.finalize()
    # When
    if how == "chord":
        app.backend.apply_chord = lambda *args, **kwargs: None
    ways[how]()
    # Then
    assert "order:42" in keys([one for one in published if one[0] == "charge"])
    assert original not in [task_id for _, task_id, _ in published]


# --- queued --------------------------------------------------------------------------------------


def queued(store, task, *args):
    """The reservation of a call's key."""
    return store.reservation(key_of(task, *args))


def test_a_call_whose_first_is_queued_is_not_published(charge, store, published):
    """The caller gets the first call's result, before any worker has seen it."""
    # Given
    original = charge.delay(42)
    # When
    answer = charge.delay(order_id=42)
    # Then
    assert answer.id == original.id
    assert len(published) == 1
    assert charge.idempotency_record(42) is None


def test_the_key_is_reserved_before_the_message_is_published_and_confirmed_after_it(
    app, charge, store, monkeypatch
):
    """Until it is confirmed it stops nobody: its producer may die before it publishes."""
    # Given
    seen = []
    original = app.amqp.send_task_message

    def send(*args, **options):
        seen.append(queued(store, charge, 42))
        return original(*args, **options)

    monkeypatch.setattr(app.amqp, "send_task_message", send)
    # When
    call = charge.delay(42)
    # Then
    (before,), after = seen, queued(store, charge, 42)
    assert before.task_id == after.task_id == call.id
    assert (before.is_confirmed, after.is_confirmed) == (False, True)


def test_a_publish_that_fails_undoes_its_reservation(app, charge, store, monkeypatch):
    """The next call is published."""

    # Given
    def refuse(*_, **__):
        raise ConnectionRefusedError("no broker")

    with monkeypatch.context() as broken:
        broken.setattr(app.amqp, "send_task_message", refuse)
        with pytest.raises(ConnectionRefusedError):
            charge.delay(42)
    # Then
    assert queued(store, charge, 42) is None
    call = charge.delay(42)
    assert queued(store, charge, 42).task_id == call.id


def test_a_publish_that_fails_leaves_anothers_reservation(app, charge, store, monkeypatch):
    """Two that race both publish: the last one that reserved is the one that stops others."""
    # Given
    calls = []
    original = app.amqp.send_task_message

    def refuse(*args, **options):
        monkeypatch.setattr(app.amqp, "send_task_message", original)
        calls.append(charge.delay(42))
        raise ConnectionRefusedError("no broker")

    monkeypatch.setattr(app.amqp, "send_task_message", refuse)
    # When
    with pytest.raises(ConnectionRefusedError):
        charge.delay(42)
    # Then
    assert queued(store, charge, 42).task_id == calls[0].id
    assert queued(store, charge, 42).is_confirmed


def test_a_worker_that_is_quicker_than_the_confirmation_ends_the_reservation(
    app, charge, store, monkeypatch
):
    """What was claimed in between is not reserved again: nobody would end that."""
    # Given
    original = app.amqp.send_task_message

    def claimed_at_once(*args, **options):
        answer = original(*args, **options)
        first(charge, store, 42, until_ms=0)
        return answer

    monkeypatch.setattr(app.amqp, "send_task_message", claimed_at_once)
    # When
    charge.delay(42)
    # Then
    assert queued(store, charge, 42) is None


def test_with_raise_a_duplicate_is_told_of_the_first_call(once, store, published):
    """The error names it, and has its result; nothing is published."""
    # Given
    original = once.delay(42)
    # When
    with pytest.raises(IdempotencyInProgress, match=f"queued by task {original.id}") as refused:
        once.delay(42)
    # Then
    assert refused.value.task_id == original.id
    assert refused.value.result.id == original.id
    assert len(published) == 1


@pytest.mark.parametrize(
    ("state", "words"), [(None, "is being run"), (State.RETRYING, "waits for a retry")]
)
def test_with_raise_a_duplicate_of_what_is_under_way_is_refused(
    once, store, published, state, words
):
    """As long as it is not done."""
    original = first(once, store, 42, state=state)
    with pytest.raises(IdempotencyInProgress, match=words) as refused:
        once.delay(42)
    assert refused.value.task_id == original
    assert not published


def test_with_raise_a_duplicate_of_what_is_done_gets_its_result(app, once, store, published):
    """There is nothing to wait for."""
    # Given
    original = first(once, store, 42, until_ms=0, state=State.SUCCEEDED, outcome=b"\x01\x01 1")
    app.backend.store_result(original, 1, states.SUCCESS)
    # Then
    assert once.delay(42).get() == 1
    assert not published


@pytest.mark.parametrize("state", [states.REVOKED, states.SUCCESS, states.FAILURE])
def test_a_queued_call_that_is_over_stops_nobody(app, charge, store, published, state):
    """It was revoked, expired at its worker, or was run by one without deduplication."""
    # Given
    original = charge.delay(42)
    app.backend.store_result(original.id, None, state)
    # When
    answer = charge.delay(42)
    # Then
    assert answer.id != original.id
    assert len(published) == 2
    # And the key is reserved for it
    assert charge.delay(42).id == answer.id


def test_calls_that_are_over_are_passed_over_one_by_one(app, charge, store, published):
    """That which has the record, and that which is queued."""
    # Given
    running = first(charge, store, 42)
    app.backend.mark_as_revoked(running)
    second = charge.delay(42)
    app.backend.mark_as_revoked(second.id)
    # When
    third = charge.delay(42)
    # Then
    assert len({running, second.id, third.id}) == 3
    assert charge.delay(42).id == third.id


@pytest.mark.parametrize(
    ("one", "other", "attached"),
    [
        ({"countdown": 60}, {}, False),
        ({"eta": "in a minute"}, {}, False),
        ({"countdown": 60}, {"countdown": 120}, True),
        ({}, {"countdown": 60}, True),
        ({"eta": "in a minute"}, {"countdown": 120}, True),
        ({"expires": 60}, {}, False),
        ({"expires": 60}, {"expires": 120}, False),
        ({"expires": 120}, {"expires": 60}, True),
        ({"expires": "in a minute"}, {"expires": 120}, False),
        ({"expires": 120}, {"expires": "in a minute"}, True),
        ({"expires": -1}, {}, False),
        ({}, {"expires": 60}, True),
        ({"ignore_result": True}, {}, False),
        ({}, {"ignore_result": True}, True),
    ],
)
def test_a_duplicate_attaches_to_a_queued_call_that_serves_it_as_well(
    charge, published, one, other, attached
):
    """Which is due no later, expires no sooner, and keeps its result."""
    # Given
    soon = datetime.now(timezone.utc) + timedelta(minutes=1)

    def call(options):
        options = {name: soon if it == "in a minute" else it for name, it in options.items()}
        return charge.apply_async((42,), **options)

    original = call(one)
    # Then
    assert (call(other).id == original.id) is attached
    assert len(published) == (1 if attached else 2)


@pytest.mark.parametrize(("option", "value"), [("expires", 60), ("ignore_result", True)])
def test_what_the_task_says_of_its_messages_counts_too(app, clock, option, value):
    """Where a call says nothing else."""
    task = task_of(app, **{option: value})
    original = task.delay(42)
    clock.us += 1_000
    assert task.delay(42).id != original.id
    again = task.apply_async((42,), **{option: None if option == "expires" else False})
    more = task.apply_async((42,), **{option: 60 if option == "expires" else True})
    assert more.id == again.id


def test_other_arguments_than_the_queued_calls_are_published_where_they_are_checked(
    app, charge, published
):
    """An explicit key: the worker refuses the second one. A derived key: it attaches."""
    one, two = (charge.apply_async((42, amount), idempotency_key="req-1") for amount in (100, 200))
    assert one.id != two.id
    assert charge.delay(1, 100).id == charge.delay(1, 200).id


def test_calls_that_run_in_their_turn_are_never_checked(app, published):
    """Each runs with its own arguments; while one is queued, another one attaches to it."""
    task = task_of(app, idempotency_ttl=0, idempotency_after_wait="run")
    one, two = (task.apply_async((42, it), idempotency_key="req-1") for it in (100, 200))
    assert one.id == two.id


@pytest.mark.parametrize("how", ["link", "task_id", "group"])
def test_what_is_published_in_any_case_is_reserved_as_well(app, charge, store, how):
    """Other calls attach to it."""
    # Given
    waiting = charge.delay(42)
    ways = {
        "link": lambda: charge.apply_async((42,), link=charge.s(1)),
        "task_id": lambda: charge.apply_async((42,), task_id="mine"),
        "group": lambda: group(charge.s(42)).apply_async().results[0],
    }
    # When
    published = ways[how]()
    # Then
    assert published.id != waiting.id
    assert charge.delay(42).id == published.id


@pytest.mark.parametrize("how", ["retries", "key None", "shadow", "off"])
def test_what_takes_no_key_reserves_none(app, store, how, monkeypatch):
    """A retry goes on with a call that was delivered; a call without a key stops nobody."""
    # Given
    asked = []
    monkeypatch.setattr(type(store), "reserve", lambda *args: asked.append(args))
    mode = {"idempotency_mode": how} if how in ("shadow", "off") else {}
    task = task_of(app, **mode)
    options = {"retries": {"retries": 1, "task_id": "t"}, "key None": {"idempotency_key": None}}
    # When
    task.apply_async((42,), **options.get(how, {}))
    # Then
    assert not asked


@pytest.mark.parametrize("how", ["confirm", "unreserve"])
def test_a_store_that_goes_away_after_the_reservation_changes_nothing(
    app, charge, store, published, monkeypatch, how
):
    """The call is published, or its own error is raised; the reservation ends by itself."""

    # Given
    def away(*_, **__):
        raise StoreUnavailable("away")

    def refuse(*_, **__):
        raise ConnectionRefusedError("no broker")

    monkeypatch.setattr(store, how, away)
    if how == "unreserve":
        monkeypatch.setattr(app.amqp, "send_task_message", refuse)
        with pytest.raises(ConnectionRefusedError):
            charge.delay(42)
    else:
        charge.delay(42)
        assert len(published) == 1
    # Then
    assert not queued(store, charge, 42).is_confirmed


def test_a_queued_call_stops_others_for_an_hour_after_it_is_due(charge, store, clock, published):
    """Then its queue may have been purged."""
    # Given
    original = charge.apply_async((42,), countdown=60)
    # Then
    clock.us += 3_659_000_000 - 1_000
    assert charge.apply_async((42,), countdown=60).id == original.id
    clock.us += 1_001_000
    assert charge.delay(42).id != original.id


def test_the_hour_is_an_option(app, store, clock):
    """``idempotency_queued_ttl``."""
    task = task_of(app, idempotency_queued_ttl=5)
    original = task.delay(42)
    clock.us += 4_999_000
    assert task.delay(42).id == original.id
    clock.us += 1_000
    assert task.delay(42).id != original.id


def test_to_forget_a_call_ends_its_reservation(charge, published):
    """Where its queue was purged, for instance."""
    original = charge.delay(42)
    assert charge.forget(42)
    assert charge.delay(42).id != original.id
    assert len(published) == 2


@pytest.mark.parametrize("refused", [False, True])
def test_what_becomes_of_a_duplicate_is_observed(charge, once, refused):
    """With the first call's id, and what that is doing."""
    # Given
    seen = []
    task = once if refused else charge
    original = task.delay(42)
    # When
    observe(seen.append)
    try:
        with suppress(IdempotencyInProgress):
            task.delay(42)
    finally:
        stop_observing(seen.append)
    # Then
    (told,) = seen
    assert (told.what, told.original_id) == ("stopped", original.id)
    assert (told.details["found"], told.details["refused"]) == ("queued", refused)
