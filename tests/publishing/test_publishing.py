"""What happens to a call before it is published: a context's key, and attaching to a first call."""

from contextlib import nullcontext
from functools import partial
from uuid import UUID

import pytest
from celery import Celery, Task, chain, chord, group, states
from celery.app.trace import build_tracer
from kombu.utils.uuid import uuid

from celery_idempotent import (
    MESSAGE_ID,
    ConfigurationError,
    IdempotentTask,
    KeyDerivationError,
    State,
    use_idempotency_key,
)
from celery_idempotent.core.keys import record_key
from celery_idempotent.core.message import EXPLICIT, OWN, explicit_key
from celery_idempotent.core.record import Owner, Record
from celery_idempotent.core.verdicts import Claim, Settle
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.settings import environment_of
from celery_idempotent.stores.memory import MemoryStore


class Clock:
    def __init__(self):
        self.us = 1_795_000_000_000_000

    def __call__(self):
        return self.us


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return MemoryStore(clock)


@pytest.fixture
def app(request, store, monkeypatch):
    app = Celery(f"enqueue-{id(request)}", broker="memory://", backend="cache+memory://")
    app.conf.update(idempotency_store_url="memory://", task_default_queue=f"q{id(request)}")
    app.task = partial(app.task, shared=False)
    monkeypatch.setattr("celery_idempotent.settings.store_from_url", lambda url, options: store)
    return app


@pytest.fixture
def published(app, monkeypatch):
    """The messages that were published, as (name, task id, headers)."""
    sent = []
    original = app.amqp.send_task_message

    def send(producer, name, message, **options):
        sent.append((name, message.headers["id"], message.headers))
        return original(producer, name, message, **options)

    monkeypatch.setattr(app.amqp, "send_task_message", send)
    return sent


@pytest.fixture
def charge(app):
    @app.task(
        base=IdempotentTask,
        idempotency_key="order:{order_id}",
        idempotency_on_enqueue="attach",
        name="charge",
    )
    def charge(order_id, amount=1):
        return amount

    return charge


def keys(published):
    return [headers[OWN]["key"] for _, _, headers in published]


# --- options of a call ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["apply_async", "set", "in a context", "over a header"])
def test_a_call_with_the_key_none_is_not_deduplicated(charge, store, published, how):
    """It says so to the worker, and is always published."""
    # Given
    first(charge, store, 1)
    headers = {EXPLICIT: "req-1"} if how == "over a header" else None
    # When
    with use_idempotency_key("req-1") if how == "in a context" else nullcontext():
        if how == "set":
            charge.s(1).set(idempotency_key=None).apply_async()
        else:
            charge.apply_async((1,), idempotency_key=None, headers=headers)
    # Then
    assert keys(published) == [None]


@pytest.mark.parametrize("mode", ["enforce", "off"])
def test_a_calls_key_takes_the_place_of_a_header_in_any_spelling(app, published, mode):
    """A worker finds one key in the message, and not two."""

    # Given
    @app.task(base=IdempotentTask, name="charge", idempotency_mode=mode)
    def charge(order_id):
        """Do nothing."""

    # When
    charge.apply_async((1,), idempotency_key="mine", headers={"Idempotency_Key": "theirs", "x": 1})
    # Then
    ((_, _, headers),) = published
    assert explicit_key(headers) == "mine"
    assert headers["x"] == 1


def test_an_eager_call_with_the_key_none_leaves_no_record(charge):
    """It runs, each time."""
    # When
    for amount in (1, 2):
        assert charge.apply((1, amount), idempotency_key=None).get() == amount
    # Then
    assert charge.idempotency_record(1) is None


def test_the_key_none_has_no_record(charge):
    """Whoever asks for it is told so."""
    assert charge.idempotency_key_for(1, idempotency_key=None) is None
    assert charge.idempotency_record(1, idempotency_key=None) is None
    assert charge.forget(1, idempotency_key=None) is False


@pytest.mark.parametrize("name", ["idempotency_ttl", "idempotency_keyy", "idempotent_key"])
@pytest.mark.parametrize("how", ["apply_async", "apply", "signature", "group"])
def test_an_option_of_a_call_that_is_none_is_refused(charge, published, how, name):
    """Before anything is published: Celery would send it along, and nobody would read it."""
    wrong = charge.s(1).set(**{name: "x"})
    calls = {
        "apply_async": lambda: charge.apply_async((1,), **{name: "x"}),
        "apply": lambda: charge.apply((1,), **{name: "x"}),
        "signature": wrong.apply_async,
        "group": group(wrong).apply_async,
    }
    with pytest.raises(ConfigurationError, match=name):
        calls[how]()
    assert not published


# --- attaching -----------------------------------------------------------------------------------


def first(charge, store, *args, until_ms=30_000, state=None, outcome=b"", explicit=..., label=""):
    """Claim the key of a call, as its worker would; give the task id."""
    task_id = uuid()
    call_key = charge._call_key(args, {}, explicit)
    key = record_key(environment_of(charge.app).prefix, call_key)
    candidate = Record(
        State.RUNNING,
        0,
        owner=Owner(task_id).pack(),
        fingerprint=call_key.fingerprint,
        label=label,
    )
    claimed = store.claim(key, Claim(candidate, until_ms, 86_400_000))
    if state is not None:
        record = Record(
            state,
            claimed.token,
            owner=candidate.owner,
            fingerprint=call_key.fingerprint,
            label=label,
            outcome=outcome,
        )
        store.settle(key, Settle(record, until_ms, 86_400_000))
    return task_id


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


@pytest.mark.parametrize("state", [None, State.RETRYING])
def test_where_no_state_can_be_read_it_is_published(charge, store, published, monkeypatch, state):
    """A result backend that is away, or none, would have no result of the first call either."""

    # Given
    def away(*_):
        raise NotImplementedError("no result backend")

    original = first(charge, store, 42, state=state)
    monkeypatch.setattr(charge, "AsyncResult", away)
    # Then
    with pytest.raises(NotImplementedError):
        charge.delay(42)
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


def test_nothing_is_claimed_at_the_enqueue(charge, store, published):
    """Two that race both publish, and the worker deduplicates."""
    charge.delay(42)
    charge.delay(42)
    assert len(published) == 2
    assert charge.idempotency_record(42) is None


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
    def away(key):
        raise StoreUnavailable("away")

    monkeypatch.setattr(store, "peek", away)
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


# --- what a base class gets ----------------------------------------------------------------------


class Noting(Task):
    """A base of a user's, which takes what it needs by name."""

    abstract = True
    noted = ()

    def apply_async(self, args=None, kwargs=None, **options):
        Noting.noted = (args, kwargs, sorted(options))
        return super().apply_async(args, kwargs, **options)


@pytest.mark.parametrize("positional", [False, True])
def test_a_base_class_gets_what_it_takes_by_name(app, published, positional):
    """Whether the caller named it or not."""

    # Given
    class Base(IdempotentTask, Noting):
        abstract = True

    @app.task(base=Base, name="charge")
    def charge(order_id):
        """Do nothing."""

    @app.task(name="tail")
    def tail(order_id):
        """Do nothing."""

    # When
    if positional:
        charge.apply_async((1,), {}, "id-1", None, tail.s(), None, "shown")
    else:
        charge.apply_async((1,), {}, task_id="id-1", link=tail.s(), shadow="shown")
    # Then
    args, kwargs, names = Noting.noted
    assert (args, kwargs) == ((1,), {})
    assert {"task_id", "headers", "link", "shadow"} <= {*names}
    ((_, task_id, headers),) = published
    assert (task_id, headers["shadow"]) == ("id-1", "shown")


# --- the context's key ---------------------------------------------------------------------------


def test_calls_within_a_context_get_a_key_from_it(charge, published):
    """The same for the same call, another for another call or another context."""
    # When
    for context in ("req-1", "req-2"):
        with use_idempotency_key(context):
            charge.delay(42)
            charge.delay(order_id=42)
            charge.delay(43)
    charge.delay(42)
    # Then
    one, again, other, two, _, _, none = keys(published)
    assert one == again
    assert len({one, other, two, none}) == 4
    assert none == "order:42"
    assert "req-1" in one
    assert "order:42" in one


def mail_of(app, **options):
    @app.task(base=IdempotentTask, name="mail", idempotency_key=MESSAGE_ID, **options)
    def mail(to, text=""):
        """Its key is its message's id."""

    return mail


def ids_in(context, *calls):
    with use_idempotency_key(context):
        return [call().id for call in calls]


def test_a_context_gives_a_call_its_id_where_the_id_is_its_key(app, published):
    """The same calls have the same ids again, whatever their order; equal ones are two."""
    # Given
    mail = mail_of(app)
    ann, bob = partial(mail.delay, "ann"), partial(mail.delay, to="bob", text="")
    # When
    first = ids_in("req", ann, ann, bob)
    again = ids_in("req", partial(mail.delay, "bob"), ann, ann)
    # Then
    assert len(set(first)) == 3
    assert again == [first[2], *first[:2]]
    assert keys(published)[:3] == [*keys(published)[4:], keys(published)[3]]
    assert not set(first) & set(ids_in("req-2", ann, ann, bob))
    assert mail.delay("ann").id not in first
    assert str(UUID(first[0])) == first[0]


def test_a_context_gives_no_id_where_it_could_not_tell_calls_apart(app, charge, published):
    """A key of its own, an id or a key that was given, and arguments without a canonical form."""
    # Given
    mail = mail_of(app, serializer="pickle")
    odd = partial(mail.apply_async, (Odd(),), serializer="pickle")
    # Then
    for call in (
        partial(charge.delay, 1),
        partial(mail.apply_async, ("ann",), idempotency_key="own"),
        partial(mail.apply_async, ("ann",), idempotency_key=None),
        odd,
    ):
        assert ids_in("req", call) != ids_in("req", call)
    assert ids_in("req", partial(mail.apply_async, ("ann",), task_id="mine")) == ["mine"]


class Odd:
    """It has no canonical form."""


def test_tenants_with_one_request_key_get_other_ids(app, published):
    """The namespace is a part of it."""
    # Given
    tenant = ["north"]
    mail = mail_of(app, idempotency_namespace=lambda to, text: tenant[0])
    north = ids_in("req", partial(mail.delay, "ann"))
    # When
    tenant[0] = "south"
    # Then
    assert ids_in("req", partial(mail.delay, "ann")) != north


def test_two_tasks_with_one_namespace_stay_apart_in_a_context(app, published):
    """The task's name is a part of the key."""

    # Given
    @app.task(base=IdempotentTask, idempotency_namespace="shop", name="a")
    def a(x):
        """The one."""

    @app.task(base=IdempotentTask, idempotency_namespace="shop", name="b")
    def b(x):
        """The other."""

    # When
    with use_idempotency_key("req"):
        a.delay(1)
        b.delay(1)
    # Then
    assert len(set(keys(published))) == 2


def test_a_calls_own_explicit_key_wins_over_the_context(charge, published):
    """It is nearer."""
    with use_idempotency_key("req"):
        charge.apply_async((42,), idempotency_key="own")
    assert keys(published) == ["own"]


def test_the_contexts_key_wins_over_a_header(charge, published):
    """As the contract orders them."""
    with use_idempotency_key("req"):
        charge.apply_async((42,), headers={"idempotency-key": "header"})
    assert "req" in keys(published)[0]


def test_a_context_cannot_forge_the_key_of_another(charge, published):
    """The parts are escaped before they are joined."""
    with use_idempotency_key("a|charge"):
        charge.delay(1)
    with use_idempotency_key("a"):
        charge.apply_async((1,))
    assert len(set(keys(published))) == 2


def test_a_context_ends(charge, published):
    """Also where its block raises."""
    with pytest.raises(ZeroDivisionError), use_idempotency_key("req"):
        raise ZeroDivisionError
    charge.delay(42)
    assert keys(published) == ["order:42"]


@pytest.mark.parametrize("key", ["", "  ", None, 7, "x" * 1025])
def test_a_contexts_key_is_text_of_bounded_length(key):
    """As an explicit key is."""
    with pytest.raises(KeyDerivationError), use_idempotency_key(key):
        pass
