"""What happens to a call before it is published: its key, from the call or from a context."""

from contextlib import nullcontext
from functools import partial
from uuid import UUID

import pytest
from celery import Task, group

from celery_idempotent import (
    MESSAGE_ID,
    ConfigurationError,
    IdempotentTask,
    KeyDerivationError,
    use_idempotency_key,
)
from celery_idempotent.core.message import EXPLICIT, OWN, explicit_key
from tests.publishing.calls import first, keys, task_of

# --- options of a call ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["apply_async", "set", "in a context", "over a header"])
def test_a_call_with_the_key_none_is_not_deduplicated(app, store, published, how):
    """It says so to the worker, and is always published."""
    # Given
    charge = task_of(app)
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


@pytest.mark.parametrize("on_enqueue", ["publish", "attach"])
@pytest.mark.parametrize("key", ["order:{order_id}", MESSAGE_ID])
@pytest.mark.parametrize("task_id", [UUID(int=7), 5])
def test_a_task_id_that_is_no_text_becomes_one(app, published, key, on_enqueue, task_id):
    """Celery takes a UUID; the key, the reservation, the message and the result have its text."""
    # Given
    charge = task_of(app, idempotency_key=key, idempotency_on_enqueue=on_enqueue)
    # When
    result = charge.apply_async((1,), task_id=task_id)
    # Then
    ((_, sent, headers),) = published
    assert sent == result.id == headers[OWN]["id"] == str(task_id)
    assert charge.apply((2,), task_id=task_id).get() == 1


def test_a_task_id_that_came_as_something_else_is_its_text_in_a_key(app):
    """From a producer without this library: ``send_task(task_id=uuid4())``."""
    charge = task_of(app, idempotency_key=MESSAGE_ID)
    scheme = charge._setup().scheme
    derived = [scheme.derive((1,), {}, task_id=it) for it in (UUID(int=7), str(UUID(int=7)))]
    assert derived[0].key == derived[1].key


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


def test_switched_off_a_call_gets_its_id_from_celery(app, published):
    """Two calls are two, as in plain Celery: with one id, only one of the results would be kept."""
    mail = mail_of(app, idempotency_mode="off")
    assert ids_in("req", partial(mail.delay, "ann")) != ids_in("req", partial(mail.delay, "ann"))


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


def test_calls_with_keys_in_headers_stay_apart_in_a_context(charge, published):
    """The context's key is joined with the key that the call would have had."""
    # When
    for key in ("a", "b", "a"):
        with use_idempotency_key("req"):
            charge.apply_async((42,), headers={"Idempotency_Key": key, "x": 1})
    # Then
    one, other, again = keys(published)
    assert one == again != other
    assert all(headers[OWN]["checked"] and headers["x"] == 1 for _, _, headers in published)


def test_a_context_cannot_forge_the_key_of_another(charge, published):
    """The parts are escaped before they are joined."""
    with use_idempotency_key("a|charge"):
        charge.delay(1)
    with use_idempotency_key("a"):
        charge.apply_async((1,))
    assert len(set(keys(published))) == 2


def test_what_clients_ask_of_a_call_is_asked_of_the_one_made_here(charge, published, store):
    """A call within a context has another key than the same call outside of it."""
    # When
    with use_idempotency_key("req"):
        claimed = first(charge, store, 42)
        charge.delay(42)
        own = charge.idempotency_key_for(42)
        explicit = charge.idempotency_key_for(42, idempotency_key="own")
        inside = charge.idempotency_record(42)
        forgotten = charge.forget(42)
        elsewhere = charge.idempotency_key_for(42, idempotency_key="order:42")
    # Then
    assert [own] == keys(published)
    assert explicit == "own"
    assert inside.owner_id == claimed
    assert forgotten
    assert charge.idempotency_key_for(42) == elsewhere == "order:42"


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
