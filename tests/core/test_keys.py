"""KeyScheme: which calls of a task are one, and what is said of those that have no key."""

import copy
import datetime as dt
import enum
import inspect
import pickle
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from itertools import combinations, product
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from celery_idempotent.core.binding import Binder
from celery_idempotent.core.keys import MESSAGE_ID, CallKey, KeyScheme, Owner, record_key
from celery_idempotent.errors import ConfigurationError, KeyDerivationError, RecordCorrupt

DIGEST = re.compile(r"~[0-9a-f]{32}")
NOTHING_DERIVED = b""


def charge(order_id: Any, amount: Any, currency: Any = "EUR") -> None:
    """The task of most tests."""


def scheme(key: Any = None, function: Callable[..., Any] = charge, **options: Any) -> KeyScheme:
    return KeyScheme(
        task_name="shop.charge", signature=inspect.signature(function), key=key, **options
    )


def derived(of: KeyScheme, *args: Any, **kwargs: Any) -> CallKey:
    call_key = of.derive(args, kwargs)
    assert call_key is not None
    return call_key


def key(of: KeyScheme, *args: Any, **kwargs: Any) -> str:
    return derived(of, *args, **kwargs).key


# -- binding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        None,
        "order:{order_id}:{currency}",
        ("order_id", "amount", "currency"),
        lambda *a, **k: str(a),
    ],
    ids=["all", "template", "tuple", "callable"],
)
def test_one_call_in_all_its_spellings_has_one_key(option: Any) -> None:
    """Positions, names and defaults are ways to write the same call."""
    # Given
    of = scheme(option)

    # When
    keys = {
        derived(of, 42, 100),
        derived(of, 42, amount=100),
        derived(of, amount=100, order_id=42),
        derived(of, 42, 100, "EUR"),
        derived(of, 42, 100, currency="EUR"),
    }

    # Then
    assert len(keys) == 1
    assert derived(of, 43, 100) not in keys


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {}, "missing a required argument: 'order_id'"),
        ((1,), {}, "missing a required argument: 'amount'"),
        ((1, 2, 3, 4), {}, "too many positional arguments"),
        ((1, 2), {"order_id": 1}, "multiple values for argument 'order_id'"),
        ((1, 2), {"colour": 1}, "unexpected keyword argument 'colour'$"),
        (
            (1, 2),
            {"idempotency_key": "a"},
            r"an option of the call, and not .*: apply_async\(args, idempotency_key=...\)$",
        ),
        (42, {}, r"its args are of type int, and must be a list or tuple: \(x,\)$"),
        ("42", {"colour": 1}, "its args are of type str"),
    ],
)
def test_arguments_that_do_not_fit_are_a_type_error(
    args: tuple[Any, ...], kwargs: dict[str, Any], words: str
) -> None:
    """The task would have said the same; its caller learns which task it is, and what to write."""
    with pytest.raises(TypeError, match=f"^task 'shop.charge': .*{words}"):
        scheme().derive(args, kwargs)


def positional_only(a: Any, /, b: Any = 2) -> None: ...
def keyword_only(a: Any, *, b: Any, c: Any = 3) -> None: ...
def variadic(a: Any, *rest: Any, b: Any = 2, **more: Any) -> None: ...
def late_required(a: Any = 1, *, b: Any) -> None: ...
def nothing() -> None: ...


@pytest.mark.parametrize(
    "function", [charge, positional_only, keyword_only, variadic, late_required, nothing]
)
def test_the_binder_agrees_with_inspect(function: Callable[..., Any]) -> None:
    """For every kind of parameter the compiled binder binds and refuses as inspect does."""
    # Given
    signature = inspect.signature(function)
    binder = Binder(signature)
    names = ["a", "b", "c", "order_id", "amount", "other"]
    subsets = [
        {name: name for name in chosen} for n in range(7) for chosen in combinations(names, n)
    ]

    for args, kwargs in product([(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], subsets):
        # When
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as exc:
            with pytest.raises(TypeError, match=re.escape(str(exc))):
                binder.bind(args, kwargs)
            continue
        bound.apply_defaults()
        values = binder.bind(args, kwargs)

        # Then
        assert dict(zip(binder.names, values, strict=True)) == bound.arguments
        assert binder.as_call(values) == (list(bound.args), bound.kwargs)


# -- a key over all arguments ----------------------------------------------------------------------


def test_a_key_over_all_arguments_shows_none_of_them() -> None:
    """Nobody asked for an argument's value to be readable in Redis."""
    call_key = derived(scheme(), "4111-1111", 100)
    assert DIGEST.fullmatch(call_key.key)
    assert call_key.label == ""
    assert call_key.namespace == "shop.charge"
    assert not call_key.checked


def test_types_matter_where_all_arguments_are_the_key() -> None:
    """1, 1.0, True and "1" are four calls."""
    assert len({key(scheme(), value, 1) for value in (1, 1.0, True, "1", None)}) == 5


def test_the_variadic_parameters_are_arguments_too() -> None:
    """Two calls that differ only in *args or **kwargs differ."""
    of = scheme(function=variadic)
    keys = [key(of, 1), key(of, 1, 2), key(of, 1, 2, x=1), key(of, 1, x=1), key(of, 1, b=1)]
    assert len(set(keys)) == 5
    assert key(of, 1, x=1, y=2) == key(of, 1, y=2, x=1)


def test_a_task_without_parameters_must_say_what_its_key_is() -> None:
    """All of its calls would be one: a periodic task would run once and then no more."""
    with pytest.raises(
        ConfigurationError, match=f"'shop.charge': idempotency_key: .*MESSAGE_ID.*{CONSTANT}"
    ):
        scheme(function=nothing)
    assert key(scheme(lambda: "2020-01-02", function=nothing)) == "2020-01-02"
    for function, args in ((nothing, ()), (charge, (42, 100))):
        assert key(scheme(lambda *args, **kwargs: "all", function=function), *args) == "all"


# -- templates -------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    NONE = None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (42, "order:42"),
        ("42", "order:'42'"),
        ("A-17", "order:A-17"),
        ("3f2504e0-4f89-11d3-9a0c-0305e82c3301", "order:3f2504e0-4f89-11d3-9a0c-0305e82c3301"),
        ("2020-01-02", "order:2020-01-02"),
        ("ann@example.com", "order:ann@example.com"),
        ("a/b_c.d+e", "order:a/b_c.d+e"),
        ("1.2.3", "order:1.2.3"),
        ("a:b", "order:'a:b'"),
        ("a,b", "order:'a,b'"),
        ("~a", "order:'~a'"),
        ("date(2020-01-02)", "order:'date(2020-01-02)'"),
        (dt.date(2020, 1, 2), "order:date(2020-01-02)"),
        (-1, "order:-1"),
        ("-1", "order:'-1'"),
        ("007", "order:'007'"),
        ("1e5", "order:'1e5'"),
        ("0x1F", "order:'0x1F'"),
        (".5", "order:'.5'"),
        (1.5, "order:1.5"),
        ("1.5", "order:'1.5'"),
        (True, "order:true"),
        ("True", "order:'True'"),
        ("NULL", "order:'NULL'"),
        ("nan", "order:'nan'"),
        ("-inf", "order:'-inf'"),
        (0, "order:0"),
        (False, "order:false"),
        (Colour.RED, "order:red"),
        ([1, "a"], "order:[1,'a']"),
        ([], "order:[]"),
    ],
    ids=repr,
)
def test_a_value_stands_bare_where_its_type_can_be_read_back(value: Any, text: str) -> None:
    """What is chosen as key stays readable, and a string is never taken for something else."""
    call_key = derived(scheme("order:{order_id}"), value, 1)
    assert (call_key.key, call_key.label) == (text, "")


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("a b", "order:'a b'"),
        ("Zoë", "order:'Zoë'"),
        ("a{b", "order:'a{b'"),
        ("it's", "order:'it\\'s'"),
        ({"a": 1}, "order:{'a':1}"),
        ("x" * 95, "order:" + "x" * 95),
        ("x" * 500, "order:" + "x" * 191 + "..."),
    ],
)
def test_what_can_not_stand_in_a_redis_key_is_a_label(value: Any, label: str) -> None:
    """Unsafe or long: the key is a digest, and operators read the label."""
    call_key = derived(scheme("order:{order_id}"), value, 1)
    assert DIGEST.fullmatch(call_key.key)
    assert call_key.label == label
    assert len(call_key.label) <= 200


def test_a_key_of_exactly_the_limit_stays_readable() -> None:
    """100 characters are short enough, 101 are not."""
    of = scheme("o:{order_id}")
    assert key(of, "x" * 98, 1) == "o:" + "x" * 98
    assert DIGEST.fullmatch(key(of, "x" * 99, 1))


def test_a_tuple_of_names_names_them_in_the_key() -> None:
    """The readable form says which value is which."""
    of = scheme(("order_id", "currency"))
    assert key(of, 42, 100) == "order_id=42,currency=EUR"
    assert key(scheme(["order_id"]), 42, 100) == "order_id=42"


def test_braces_in_a_template_are_doubled() -> None:
    """As in any format string; a brace is not safe in a hash tag, so the key is a digest."""
    call_key = derived(scheme("{{x}}{order_id}"), 42, 1)
    assert DIGEST.fullmatch(call_key.key)
    assert call_key.label == "{x}42"


@dataclass
class Address:
    city: str


@dataclass
class Order:
    id: Any
    address: Address


def test_dotted_paths_reach_into_objects_and_mappings_alike() -> None:
    """The producer has an object, the worker the dict that JSON made of it: one key."""
    # Given
    by_template, by_name = scheme("order:{order_id.id}"), scheme(("order_id.address.city",))
    order, plain = Order(7, Address("Riga")), {"id": 7, "address": {"city": "Riga"}}

    # Then
    assert key(by_template, order, 1) == key(by_template, plain, 1) == "order:7"
    assert key(by_name, order, 1) == key(by_name, plain, 1) == "order_id.address.city=Riga"


class CustomerModel(pydantic.BaseModel):
    id: UUID = UUID(int=8)


class OrderModel(pydantic.BaseModel):
    id: UUID = UUID(int=7)
    day: dt.date = dt.date(2030, 1, 31)
    price: Decimal = Decimal("1.50")
    tags: set[str] = {"b", "a", "c"}
    count: int = 1
    secret: pydantic.SecretStr = pydantic.SecretStr("hidden")
    customer: CustomerModel = CustomerModel()

    @property
    def name(self) -> str:
        return f"order {self.count}"


@pytest.mark.parametrize(
    "path", ["id", "day", "price", "tags", "count", "name", "customer", "customer.id"]
)
def test_a_path_reaches_into_a_model_as_into_its_json_form(path: str) -> None:
    """A caller may pass either, and the two are one call."""
    # Given
    of = scheme((f"order_id.{path}",))
    model = OrderModel()
    form = {**model.model_dump(mode="json"), "name": "order 1", "tags": ["a", "b", "c"]}
    # Then
    assert key(of, model, 1) == key(of, form, 1)


def test_a_path_to_a_secret_of_a_model_is_refused() -> None:
    """In the json form all secrets are alike."""
    with pytest.raises(KeyDerivationError, match="secret"):
        key(scheme("{order_id.secret}"), OrderModel(), 1)


def test_a_path_reaches_into_the_keyword_arguments() -> None:
    """**kwargs is a mapping like another."""
    assert key(scheme("{more.tenant}", function=variadic), 1, tenant="x") == "x"


def test_reading_a_path_leaves_the_argument_as_it_was() -> None:
    """A defaultdict is not given the key that was looked for."""
    counts: defaultdict[str, int] = defaultdict(int)
    with pytest.raises(KeyDerivationError, match=r"'order_id.id' is missing: defaultdict has no"):
        key(scheme("{order_id.id}"), counts, 1)
    assert counts == {}


SEPARATORS = [":", "-", ".", "0", "1", "e", "'", "(", ")", "", "x", "[", ",b=", "':'", "date("]
TEXTS = ["".join(t) for n in (1, 2, 3) for t in product("1:-'x(", repeat=n)]
OTHERS = [
    *(1, -1, 10, 11, 101, 1.0, 1e-5, 1e22, True, "true", "e", "1e", "e-05", "0", "00", ".", "1.1"),
    *(dt.date(2020, 1, 2), "date", "date(", "2020-01-02", "2020-01-02)", ")", [1], ["1"], "[1]"),
    *(b"a", "bytes(61)", {"x": 1}, "{'x':1}", "\\", "\\'", "'", "''", frozenset([1]), "set([1])"),
]


@pytest.mark.parametrize("separator", SEPARATORS)
def test_no_template_can_be_forged(separator: str) -> None:
    """Whatever stands between two fields, two pairs of values never give one text."""
    # Given
    template = "{order_id}" + separator.replace("{", "{{") + "{amount}"
    of = scheme(template)
    values = {(type(value), repr(value)): value for value in [*TEXTS[:60], *OTHERS]}.values()

    # When
    seen: dict[str, Any] = {}
    for pair in product(values, repeat=2):
        text = key(of, *pair)

        # Then
        assert text not in seen, (pair, seen[text])
        seen[text] = pair


@pytest.mark.parametrize(
    ("template", "values", "text"),
    [
        ("{order_id}-{amount}", ("a", "b-c"), "a-b-c"),
        ("{order_id}-{amount}", ("a-b", "c"), "'a-b'-c"),
        ("{order_id}-{amount}", (-1, -2), "(-1)--2"),
        ("{order_id}-{amount}", (dt.date(2020, 1, 2), 1), "date(2020-01-02)-1"),
        ("{order_id}d{amount}", (dt.date(2020, 1, 2), 1), "(date(2020-01-02))d1"),
        ("{order_id}{amount}", (1, 2), "(1)2"),
        ("{order_id}{amount}", ("a", "b"), "'a'b"),
        ("{order_id}{amount}", ([1], [2]), "[1][2]"),
        ("{order_id}({amount})", ("a", "b"), "'a'(b)"),
        ("{order_id}({amount})", (1, 2), "(1)(2)"),
    ],
)
def test_a_value_is_enclosed_where_what_follows_could_be_part_of_it(
    template: str, values: tuple[Any, Any], text: str
) -> None:
    """The last value of a template needs it only for its type."""
    assert key(scheme(template), *values) == text


scalars = st.text("1:-'x(,=. e0", min_size=1, max_size=6) | st.integers() | st.floats(0, 9)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SEPARATORS), st.tuples(scalars, scalars), st.tuples(scalars, scalars))
def test_two_pairs_of_values_share_a_key_only_if_they_are_equal(
    separator: str, first: tuple[Any, Any], second: tuple[Any, Any]
) -> None:
    """The same with values of every length."""
    of = scheme("{order_id}" + separator + "{amount}")
    same = first == second and [*map(type, first)] == [*map(type, second)]
    assert (key(of, *first) == key(of, *second)) == same


# -- empty and impossible parts --------------------------------------------------------------------


@pytest.mark.parametrize("option", ["order:{order_id}", ("amount", "order_id")])
@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "None"), ("", "empty"), (b"", "empty"), (Colour.NONE, "None")],
)
def test_an_empty_part_is_refused(option: Any, value: Any, words: str) -> None:
    """A forgotten id must not make one call of many."""
    with pytest.raises(
        KeyDerivationError,
        match=f"'shop.charge': argument 'order_id' is {words}, .* returns None for it$",
    ):
        key(scheme(option), value, 1)


@pytest.mark.parametrize("option", [None, "{order_id}", ("order_id",)])
def test_an_argument_without_a_canonical_form_is_named(option: Any) -> None:
    """The error says which argument, and where inside of it."""
    words = r"'shop.charge': argument 'order_id' has no canonical form at \['a'\]\[1\]: .*object"
    with pytest.raises(KeyDerivationError, match=words) as caught:
        key(scheme(option), {"a": [1, object()]}, 1)
    assert str(caught.value).endswith(": name others in idempotency_key") is (option is None)


class Broken:
    @property
    def id(self) -> int:
        raise LookupError("secret")


def test_a_path_that_leads_nowhere_is_named() -> None:
    """Missing and failing attributes are errors that name the path and keep the cause."""
    of = scheme("{order_id.id}")
    with pytest.raises(KeyDerivationError, match=r"'order_id.id' is missing: int has no 'id'"):
        key(of, 5, 1)
    with pytest.raises(KeyDerivationError, match=r"'order_id.id' is missing: dict has no 'id'"):
        key(of, {}, 1)
    with pytest.raises(KeyDerivationError, match="reading 'id' raised LookupError") as caught:
        key(of, Broken(), 1)
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, LookupError)


# -- callables -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda order_id, amount, currency: f"{order_id}/{currency}",
        lambda currency, amount, order_id: f"{order_id}/{currency}",
        lambda order_id, currency, **_: f"{order_id}/{currency}",
        lambda o, a, c: f"{o}/{c}",
        lambda o, a, c, /: f"{o}/{c}",
        lambda *args, **kwargs: f"{args[0]}/{args[2]}",
        lambda **kwargs: f"{kwargs['order_id']}/{kwargs['currency']}",
    ],
)
def test_a_callable_gets_the_arguments_by_name_or_by_position(function: Any) -> None:
    """Defaults are applied first; names count where they are the task's own."""
    assert key(scheme(function), 42, amount=1) == "42/EUR"


def test_a_callable_gets_keyword_only_and_variadic_arguments() -> None:
    """They come as the task itself would get them."""

    def spread(*args: Any, **kwargs: Any) -> str:
        return f"{args}{sorted(kwargs.items())}".replace(" ", "")

    assert key(scheme(spread, function=variadic), 1, 2, b=3, x=4) == "(1,2)[('b',3),('x',4)]"
    assert key(scheme(spread, function=keyword_only), 1, b=2) == "(1,)[('b',2),('c',3)]"


def test_a_callable_whose_first_parameter_is_self_gets_the_task() -> None:
    """It can read the task's attributes, as a method would."""
    of = scheme(lambda self, order_id, **_: f"{self.name}-{order_id}")
    call_key = of.derive((42, 1), {}, task=SimpleNamespace(name="t"))
    assert call_key is not None
    assert call_key.key == "t-42"


def test_a_builtin_may_be_the_callable() -> None:
    """Some say nothing about what they take: they are called by position."""
    assert key(scheme(max, function=positional_only), "a", "b") == "b"


def test_none_from_a_callable_means_that_the_call_is_not_deduplicated() -> None:
    """An explicit key outranks that."""
    of = scheme(lambda order_id, **_: None)
    assert of.derive((42, 1), {}) is None
    assert of.derive((42, 1), {}, explicit="req-1") is not None


async def _never_run(order_id: int, amount: int = 1, **_: Any) -> str:
    return f"order:{order_id}"


def _generator(order_id: int, amount: int = 1, **_: Any) -> Any:
    yield f"order:{order_id}"


@pytest.mark.parametrize("function", [_never_run, _generator])
@pytest.mark.parametrize("option", ["key", "namespace"])
def test_a_callable_that_nobody_would_run_is_refused(function: Any, option: str) -> None:
    """When the task is bound: what it returns is no key."""
    with pytest.raises(ConfigurationError, match=f"idempotency_{option}: .*async or a generator"):
        scheme(**{option: function})


@pytest.mark.parametrize(
    ("result", "words"),
    [("", "empty string"), ("  ", "empty string"), (42, "returned int"), (b"x", "returned bytes")],
)
def test_a_callable_must_return_a_text(result: Any, words: str) -> None:
    """What can't be a key is an error of the call."""
    with pytest.raises(KeyDerivationError, match=f"'shop.charge': idempotency_key .*{words}"):
        key(scheme(lambda *args: result), 1, 2)


def test_what_a_callable_raises_is_the_cause_of_the_error() -> None:
    """Its message may hold an argument, so that only its type is repeated."""

    def fails(*args: Any) -> str:
        raise ValueError("4111-1111")

    with pytest.raises(
        KeyDerivationError, match=r"idempotency_key raised ValueError; .* this error's __cause__"
    ) as caught:
        key(scheme(fails), 1, 2)
    assert isinstance(caught.value.__cause__, ValueError)
    assert "4111" not in str(caught.value)


def test_a_key_derivation_error_of_a_callable_is_left_as_it_is() -> None:
    """It is how a callable says in its own words that a call has no key."""

    def refuses(*args: Any) -> str:
        raise KeyDerivationError("no order")

    with pytest.raises(KeyDerivationError, match=r"\Ano order\Z"):
        key(scheme(refuses), 1, 2)


def test_what_a_callable_returns_is_the_key_verbatim() -> None:
    """Its text is the user's own; one that opens like a digest is digested."""
    assert key(scheme(lambda *args: "a:b'c,=[]()"), 1, 2) == "a:b'c,=[]()"
    assert key(scheme(lambda *args: "~" + "0" * 32), 1, 2) != "~" + "0" * 32


# -- message ids -----------------------------------------------------------------------------------


def test_message_id_makes_the_task_id_the_key() -> None:
    """Only redeliveries of one message are duplicates."""
    call_key = scheme(MESSAGE_ID).derive((1, 2), {}, task_id="0d9e-1")
    assert call_key is not None
    assert (call_key.key, call_key.checked) == ("0d9e-1", False)
    assert scheme(MESSAGE_ID, nothing).derive((), {}, task_id="a") is not None


def test_message_id_needs_a_message() -> None:
    """A call that has not been sent has no id yet."""
    with pytest.raises(KeyDerivationError, match="this call has none yet"):
        scheme(MESSAGE_ID).derive((1, 2), {})


def test_message_id_is_one_object() -> None:
    """Pickling and copying give the very same, so that ``is`` works everywhere."""
    assert pickle.loads(pickle.dumps(MESSAGE_ID)) is MESSAGE_ID
    assert copy.deepcopy(MESSAGE_ID) is copy.copy(MESSAGE_ID) is MESSAGE_ID
    assert repr(MESSAGE_ID) == "MESSAGE_ID"


# -- explicit keys ---------------------------------------------------------------------------------


def explicit(of: KeyScheme, text: Any, *args: Any) -> CallKey:
    call_key = of.derive(args or (42, 100), {}, explicit=text)
    assert call_key is not None
    return call_key


@pytest.mark.parametrize("option", [None, "order:{order_id}", MESSAGE_ID, lambda *args: "other"])
def test_an_explicit_key_outranks_what_the_task_says(option: Any) -> None:
    """It is the identity verbatim, and other arguments under it are a mismatch."""
    # When
    call_key = explicit(scheme(option), "req-7f3a")

    # Then
    assert (call_key.key, call_key.label, call_key.checked) == ("req-7f3a", "", True)
    assert len(call_key.fingerprint) == 16


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("a b", "a b"),
        ("{a}", "{a}"),
        ("Zoë\n", "Zoë\\u000a"),
        ("~" + "0" * 32, "~" + "0" * 32),
        ("~x", "~x"),
        ("x" * 101, "x" * 101),
        ("x" * 1024, "x" * 197 + "..."),
    ],
)
def test_an_explicit_key_that_can_not_stand_in_redis_is_digested(text: str, label: str) -> None:
    """Nobody can forge a digest, because what looks like one is digested itself."""
    call_key = explicit(scheme(), text)
    assert DIGEST.fullmatch(call_key.key)
    assert call_key.key != text
    assert call_key.label == label


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "empty"), (" \t", "empty"), (5, "is int"), ("x" * 1025, "1025 characters, more than")],
)
def test_an_explicit_key_is_a_text_of_bounded_size(text: Any, words: str) -> None:
    """Anything else is refused before the message is sent."""
    with pytest.raises(KeyDerivationError, match=words):
        explicit(scheme(), text)


def test_an_explicit_key_needs_a_fingerprint() -> None:
    """An argument that can't be compared would let a mismatch pass."""
    words = "argument 'amount' has no canonical form: .* are compared in idempotency_fingerprint$"
    with pytest.raises(KeyDerivationError, match=words):
        explicit(scheme("{order_id}"), "req-1", 42, object())
    loose = explicit(scheme("{order_id}", fingerprint=("order_id",)), "req-1", 42, object())
    assert loose.checked


def test_an_explicit_key_alone_finds_its_record() -> None:
    """Where only the key is known it has the name that the call with its arguments had."""
    of = scheme("order:{order_id}")
    for text in ("req-1", "a b", "~x"):
        assert record_key("p", of.named(text)) == record_key("p", explicit(of, text))
    with pytest.raises(KeyDerivationError, match=r"'shop.charge': idempotency_key is empty"):
        of.named("")
    with pytest.raises(KeyDerivationError, match="its namespace depends on the arguments"):
        scheme(namespace="t:{currency}").named("req-1")


# -- fingerprints ----------------------------------------------------------------------------------


def test_a_derived_key_has_a_fingerprint_that_is_not_checked() -> None:
    """It says what the first call's arguments were; others are allowed."""
    of = scheme("{order_id}")
    first, second = derived(of, 42, 100), derived(of, 42, 200)
    assert first.key == second.key
    assert first.fingerprint != second.fingerprint
    assert not first.checked


def test_without_a_canonical_form_a_derived_key_has_no_fingerprint() -> None:
    """The key does not cover that argument, so the call is not refused for it."""
    assert derived(scheme("{order_id}"), 42, object()).fingerprint == NOTHING_DERIVED


def test_named_arguments_are_what_the_fingerprint_covers() -> None:
    """They are checked, also under a derived key; None and empty values are values here."""
    # Given
    of = scheme("{order_id}", fingerprint=("amount", "currency"))

    # When
    one, same, other = derived(of, 1, 2), derived(of, 3, 2, "EUR"), derived(of, 1, None, "")

    # Then
    assert one.checked
    assert one.fingerprint == same.fingerprint != other.fingerprint
    with pytest.raises(KeyDerivationError, match="argument 'amount' has no canonical form"):
        derived(of, 1, object())


def test_no_names_turn_the_check_off() -> None:
    """An empty tuple covers nothing, for explicit keys as well."""
    of = scheme("{order_id}", fingerprint=())
    assert explicit(of, "req-1").checked is False
    assert explicit(of, "req-1", 42, object()).fingerprint == NOTHING_DERIVED


def test_spelling_does_not_change_a_fingerprint() -> None:
    """The arguments are bound and defaults applied first."""
    of = scheme("{order_id}")
    assert derived(of, 1, 2).fingerprint == derived(of, amount=2, order_id=1).fingerprint


# -- namespaces ------------------------------------------------------------------------------------


def test_the_namespace_is_the_task_unless_told_otherwise() -> None:
    """A constant, a template or a callable can tell."""
    assert derived(scheme(), 1, 2).namespace == "shop.charge"
    assert derived(scheme(namespace="billing"), 1, 2).namespace == "billing"
    assert derived(scheme(namespace="t:{currency}"), 1, 2).namespace == "t:EUR"
    assert derived(scheme(namespace=lambda currency, **_: currency), 1, 2).namespace == "EUR"


@pytest.mark.parametrize("result", [None, "", " ", 5])
def test_a_namespace_callable_must_return_a_text(result: Any) -> None:
    """There is no call without a namespace."""
    with pytest.raises(KeyDerivationError, match="idempotency_namespace returned"):
        derived(scheme(namespace=lambda *args: result), 1, 2)


def test_an_empty_part_of_a_namespace_is_refused() -> None:
    """Tenants whose id was forgotten must not share their keys."""
    with pytest.raises(KeyDerivationError, match="argument 'currency' is None"):
        derived(scheme(namespace="t:{currency}"), 1, 2, None)


def test_a_long_namespace_is_digested() -> None:
    """It travels in each message."""
    assert DIGEST.fullmatch(derived(scheme(namespace="t:{currency}"), 1, 2, "x" * 300).namespace)
    assert DIGEST.fullmatch(derived(scheme(namespace="~" + "0" * 32), 1, 2).namespace)


# -- redaction -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option", [None, "{order_id}", ("order_id",), lambda *args: "42", MESSAGE_ID]
)
def test_a_redacted_key_shows_nothing_of_a_call(option: Any) -> None:
    """Key, label and namespace are digests of what came from the arguments."""
    # Given
    of = scheme(option, namespace="t:{currency}", redact=True)

    for text in (None, "explicit"):
        # When
        call_key = of.derive((42, 100), {}, task_id="42", explicit=text)

        # Then
        assert call_key is not None
        assert DIGEST.fullmatch(call_key.key)
        assert DIGEST.fullmatch(call_key.namespace)
        assert call_key.label == ""


def test_redaction_keeps_calls_apart() -> None:
    """Two keys are two digests, and a constant namespace stays what it was."""
    of = scheme("{order_id}", redact=True)
    assert key(of, 1, 2) == key(of, 1, 3) != key(of, 2, 2)
    assert derived(of, 1, 2).namespace == "shop.charge"


# -- the record's name -----------------------------------------------------------------------------


def named(namespace: str, text: str) -> str:
    return record_key("p", CallKey(namespace, text, "", b"", False))


def test_the_record_is_named_after_namespace_and_key() -> None:
    """Readable, with one hash tag around both."""
    call_key = derived(scheme("order:{order_id}"), 42, 100)
    assert record_key("idempotent", call_key) == "idempotent:{shop.charge:order:42}"


@pytest.mark.parametrize(
    ("namespace", "part"),
    [
        ("t:1", "t%3A1"),
        ("{a}", "%7Ba%7D"),
        ("50%", "50%25"),
        ("a b", "a%20b"),
        ("é", "%C3%A9"),
        ("~a", "%7Ea"),
        ("~" + "0" * 32, "~" + "0" * 32),
        ("a/b@c+d=e,f-g_h.i~j", "a/b@c+d=e,f-g_h.i~j"),
        ("x" * 100, "x" * 100),
    ],
)
def test_a_namespace_is_escaped(namespace: str, part: str) -> None:
    """No colon, percent sign, brace or space of its own gets into the name."""
    assert named(namespace, "k") == f"p:{{{part}:k}}"


def test_a_namespace_too_long_for_the_name_is_digested() -> None:
    """The name of a record is bounded whatever the namespace is."""
    assert re.fullmatch(r"p:\{~[0-9a-f]{32}:k\}", named("x" * 101, "k"))
    assert named("x" * 101, "k") != named("x" * 102, "k")


@pytest.mark.parametrize("text", ["a b", "a}b", "x" * 101, "", "~short", "\n", "é"])
def test_a_key_from_elsewhere_can_not_break_the_name(text: str) -> None:
    """What a message brings is not trusted to be safe; derived keys already are."""
    assert re.fullmatch(r"p:\{n:~[0-9a-f]{32}\}", named("n", text))


def test_the_digest_in_the_name_is_the_one_that_is_derived() -> None:
    """An explicit key that came undigested in a message has the record of the same key here."""
    assert named("shop.charge", "a b") == record_key("p", explicit(scheme(), "a b"))


parts = st.text("ab:%{}~ é", min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(parts, parts, parts, parts)
def test_no_two_pairs_of_namespace_and_key_meet(n1: str, k1: str, n2: str, k2: str) -> None:
    """Names are equal only if both parts are, and hold exactly one hash tag."""
    assert (named(n1, k1) == named(n2, k2)) == ((n1, k1) == (n2, k2))
    assert re.fullmatch(r"p:\{[^{}\s]+\}", named(n1, k1))


# -- wrong options ---------------------------------------------------------------------------------

#: What is said where all calls would be one.
CONSTANT = (
    r"; where no two calls may run at once, give a function that returns a constant, "
    r"lambda \*args, \*\*kwargs: 'all', and idempotency_ttl = 0$"
)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("order:{order}", "'order' is not a parameter of the task .*order_id, amount, currency"),
        (("order",), "'order' is not a parameter"),
        (("order.id",), "'order' is not a parameter"),
        ("{order_id:>5}", "format spec or a conversion"),
        ("{order_id!r}", "format spec or a conversion"),
        ("{order_id[0]}", "is not the name of an argument"),
        ("{order_id.}", "is not the name of an argument"),
        ("{order id}", "is not the name of an argument"),
        (("order_id.0",), "is not the name of an argument"),
        ("{}", "a field without a name"),
        ("{0}", "a field without a name"),
        ("{order_id._secret}", "'_secret': a path can't go through a private name"),
        (("order_id.__class__",), "a path can't go through a private name"),
        ("{order_id", "can't be read"),
        ("order_id", r"names no argument, .*did you mean '\{order_id\}'"),
        ("constant", f"names no argument, so all calls would be one{CONSTANT}"),
        ("", "names no argument"),
        ((), f"an empty tuple names no argument, so all calls would be one{CONSTANT}"),
        ((1,), "1 is not a name"),
        (("order_id", "order_id"), "'order_id' is named twice"),
        (42, "42 is not a way to derive a key"),
        ({"order_id"}, "not a way to derive a key"),
        (lambda order_id: "", r"must take the task's arguments, \(order_id, amount, currency\)"),
    ],
)
def test_a_wrong_key_option_is_refused_with_the_task_and_the_option(
    option: Any, words: str
) -> None:
    """When the task is bound, not at its first call."""
    with pytest.raises(ConfigurationError, match=f"task 'shop.charge': idempotency_key: .*{words}"):
        scheme(option)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("namespace", "", "it is empty"),
        ("namespace", "{tenant}", "'tenant' is not a parameter"),
        ("namespace", "{", "can't be read"),
        ("namespace", 5, "5 is not a namespace"),
        ("namespace", lambda x: x, "must take the task's arguments"),
        ("fingerprint", ("total",), "'total' is not a parameter"),
        ("fingerprint", "amount", "'amount' is not a tuple of argument names"),
        ("fingerprint", ("amount", "amount"), "named twice"),
    ],
)
def test_other_wrong_options_are_refused_as_well(option: str, value: Any, words: str) -> None:
    """The message names the option that is wrong."""
    with pytest.raises(ConfigurationError, match=f"'shop.charge': idempotency_{option}: .*{words}"):
        scheme("{order_id}", **{option: value})


def task_ids() -> st.SearchStrategy[str]:
    """UUIDs in several spellings, and anything else that a producer may call a task."""
    spelt = st.builds(
        lambda value, spell: spell(str(value)),
        st.uuids(),
        st.sampled_from([str, str.upper, lambda text: text.replace("-", ""), "{{{}}}".format]),
    )
    return st.one_of(st.uuids().map(str), spelt, st.text(max_size=400))


class TestOwner:
    @given(st.lists(st.builds(Owner, task_ids(), st.integers(0, 3)), min_size=2, max_size=4))
    def test_equal_owners_equal_bytes(self, owners: list[Owner]) -> None:
        """Two owners pack to the same bytes if they are the same, and only then."""
        for one in owners:
            for other in owners:
                assert (one.pack() == other.pack()) is (one == other)
            # Two spellings of one UUID are two task ids.
            upper = one._replace(task_id=one.task_id.upper())
            assert (one.pack() == upper.pack()) is (one == upper)

    @given(
        st.builds(Owner, st.one_of(st.uuids().map(str), st.text(max_size=60)), st.integers(0, 9))
    )
    def test_an_owner_is_read_again(self, owner: Owner) -> None:
        """Task id and nesting come back from the packed form."""
        if owner.task_id.encode("utf-8", "replace").decode() == owner.task_id:
            assert Owner.unpack(owner.pack()) == owner

    def test_long_task_ids_stay_apart(self) -> None:
        """Task ids that differ only at their end are different owners."""
        # Then
        assert Owner("x" * 500 + "1").pack() != Owner("x" * 500 + "2").pack()
        assert len(Owner("\ud800" * 500, 1).pack()) <= 255

    def test_a_uuid_is_small(self) -> None:
        """Celery's own ids take 17 bytes, and 21 where the task was replaced."""
        # Given
        task_id = str(uuid4())
        # Then
        assert len(Owner(task_id).pack()) == 17
        assert len(Owner(task_id, 1).pack()) == 21

    @given(st.binary(max_size=60))
    @example(b"U" + b"x" * 15)
    @example(b"T")
    @example(b"T\x05abc")
    def test_damage_gives_no_other_error(self, packed: bytes) -> None:
        """Bytes are read as an owner, as none, or are corrupt."""
        try:
            # When
            owner = Owner.unpack(packed)
        except RecordCorrupt:
            return
        # Then
        assert (owner is None) is (packed == b"")
