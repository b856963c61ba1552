"""The canonical form: equal where a serializer makes equal, different everywhere else."""

import copy
import datetime as dt
import enum
import math
import pickle
import re
import zoneinfo
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from itertools import combinations
from typing import Any
from uuid import UUID

import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from celery_idempotent.core.canonical import MAX_DEPTH, canonical, visible
from celery_idempotent.errors import KeyDerivationError
from tests.support.serializers import SERIALIZERS, round_trip

moderate = settings(max_examples=80, deadline=None)

UTC = dt.timezone.utc
TWO_HOURS_EAST = dt.timezone(dt.timedelta(hours=2))
ID = UUID("12345678-1234-5678-1234-567812345678")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Name(str, enum.Enum):
    ANN = "ann"


@dataclass
class Order:
    id: int
    tags: tuple[str, ...] = ()
    note: str = field(default="", repr=False, compare=False)


class Model(pydantic.BaseModel):
    id: int
    at: dt.datetime | None = None
    tags: set[str] = set()
    inner: dict[str, frozenset[int]] = {}
    rows: list[set[str]] = []


class Secretive(pydantic.BaseModel):
    token: pydantic.SecretStr


class Vault(pydantic.BaseModel):
    secrets: set[pydantic.SecretStr]


class SetOfSets(pydantic.BaseModel):
    groups: set[frozenset[int]]


class Travels:
    """Has the method that kombu's json asks for what to send."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __json__(self) -> Any:
        if self.value == "raise":
            raise RuntimeError("secret")
        return {"value": self.value}


class Shouted(str):
    def __str__(self) -> str:
        return self.upper()


Pair = namedtuple("Pair", "first second")


# -- the frozen texts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (1, "1"),
        (-1, "-1"),
        (2**1024, hex(2**1024)),
        (1.0, "1.0"),
        (-0.0, "0.0"),
        (1e300, "1e+300"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        ("", "''"),
        ("1", "'1'"),
        ("it's", "'it\\'s'"),
        ("a\\b", "'a\\\\b'"),
        ("a\nb\x7f\u202e", "'a\\u000ab\\u007f\\u202e'"),
        ("Zoë", "'Zoë'"),
        ("\ud83d", "'\\ud83d'"),
        ("\ud83d\ude00", "'😀'"),
        (b"\x00ab", "bytes(006162)"),
        (bytearray(b"ab"), "bytes(6162)"),
        (memoryview(b"ab"), "bytes(6162)"),
        (dt.date(2020, 1, 2), "date(2020-01-02)"),
        (dt.datetime(2020, 1, 2), "datetime(2020-01-02T00:00:00)"),
        (dt.datetime(2020, 1, 2, 3, 4, 5, 6), "datetime(2020-01-02T03:04:05.000006)"),
        (dt.datetime(2020, 1, 2, tzinfo=UTC), "datetime(2020-01-02T00:00:00+00:00)"),
        (dt.datetime(2020, 1, 2, 2, tzinfo=TWO_HOURS_EAST), "datetime(2020-01-02T00:00:00+00:00)"),
        (
            dt.datetime(2020, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Paris")),
            "datetime(2020-06-30T22:00:00+00:00)",
        ),
        (dt.datetime.min.replace(tzinfo=TWO_HOURS_EAST), "datetime(0001-01-01T00:00:00+02:00)"),
        (dt.time(1, 2), "time(01:02:00)"),
        (dt.time(1, 2, 3, 4, tzinfo=TWO_HOURS_EAST), "time(01:02:03.000004+02:00)"),
        (dt.timedelta(days=-1, microseconds=1), "timedelta(-86399999999us)"),
        (Decimal("10.00"), "decimal(10)"),
        (Decimal("1E+1"), "decimal(10)"),
        (Decimal("-0.50"), "decimal(-0.5)"),
        (Decimal("-0.0"), "decimal(0)"),
        (Decimal("1.5E+999999"), "decimal(15e999998)"),
        (Decimal("-1E-30"), "decimal(-1e-30)"),
        (Decimal("-Infinity"), "decimal(-inf)"),
        (ID, "uuid(12345678123456781234567812345678)"),
        ([], "[]"),
        ((1, ["a"]), "[1,['a']]"),
        (Pair(1, 2), "[1,2]"),
        ({}, "{}"),
        ({"b": 1, "a": {}}, "{'a':{},'b':1}"),
        ({2: 1, True: 2, None: 3, 1.5: 4}, "{'1.5':4,'2':1,'null':3,'true':2}"),
        ({math.inf: 1}, "{'Infinity':1}"),
        ({Colour.RED: 1}, "{'red':1}"),
        ({b"a": 1, dt.date(2020, 1, 2): 2}, "{bytes(61):1,date(2020-01-02):2}"),
        ({(1, 2): 3}, "{[1,2]:3}"),
        (OrderedDict(b=1, a=2), "{'a':2,'b':1}"),
        (defaultdict(int, a=2), "{'a':2}"),
        (set(), "set([])"),
        ({10, 9, 2.5}, "set([10,2.5,9])"),
        (frozenset("ba"), "set(['a','b'])"),
        ({Colour.RED, Colour.BLUE}, "set(['blue','red'])"),
        ({(2,), (1,)}, "set([[1],[2]])"),
        (Colour.RED, "'red'"),
        (Level.LOW, "1"),
        (Name.ANN, "'ann'"),
        (Shouted("quiet"), "'quiet'"),
        (Order(1, ("x",), "n"), "{'id':1,'note':'n','tags':['x']}"),
        (Travels(1), "{'value':1}"),
        (
            Model(id=1, at=dt.datetime(2020, 1, 2, tzinfo=UTC), tags={"b", "a"}),
            "{'at':'2020-01-02T00:00:00Z','id':1,'inner':{},'rows':[],'tags':['a','b']}",
        ),
        (
            Model(id=1, inner={"n": frozenset([10, 9, 8])}, rows=[{"d", "c"}]),
            "{'at':null,'id':1,'inner':{'n':[10,8,9]},'rows':[['c','d']],'tags':[]}",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_each_type_has_its_text(value: Any, text: str) -> None:
    """The text of a value never changes: records that exist were named after it."""
    assert canonical(value) == text


def test_a_decimal_is_not_rounded_to_the_context() -> None:
    """Two decimals that differ beyond the context's precision have two texts."""
    # Given
    first, second = Decimal("1.000000001"), Decimal("1.000000002")

    # When
    with localcontext() as context:
        context.prec = 3
        texts = {canonical(first), canonical(second)}

    # Then
    assert texts == {"decimal(1.000000001)", "decimal(1.000000002)"}


def test_a_fold_that_json_drops_changes_nothing() -> None:
    """JSON forgets which of two equal wall clock times was meant, so the text does as well."""
    late = dt.datetime(2020, 10, 25, 2, 30, fold=1)
    assert canonical(late) == canonical(round_trip(late, "json"))


# -- what has no text ------------------------------------------------------------------------------


def recursive() -> list[Any]:
    loop: list[Any] = []
    loop.append({"again": loop})
    return loop


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.nan, "NaN"),
        (Decimal("NaN"), "NaN"),
        (Decimal("sNaN"), "NaN"),
        ({math.nan: 1}, "NaN"),
        ([1, {"a": (2, math.nan)}], re.escape("at [1]['a'][1]: NaN")),
        (Order(1, (object(),)), re.escape("at ['tags'][0]: an object of type object")),  # type: ignore[arg-type]
        ({1: "a", "1": "b"}, "two keys of a dict are one after a serializer: '1'"),
        ({True: "a", "true": "b"}, "two keys"),
        ({None: "a", "null": "b"}, "two keys"),
        ({1, "a"}, r"mixed types \(number, str\)"),
        ({None, 1}, r"mixed types \(null, number\)"),
        ({b"a", ID}, r"mixed types \(bytes, uuid\)"),
        (object(), "type object is not data"),
        (int, "is a class, int"),
        (Model, "is a class, Model"),
        (lambda: 1, "type function is not data"),
        (iter([1]), "type list_iterator is not data"),
        (range(3), "type range is not data"),
        (1j, "type complex is not data"),
        (recursive(), "deeper than 100 levels, or contains itself"),
        (nested(MAX_DEPTH + 1), "deeper than 100 levels"),
        (Travels("raise"), r"its __json__\(\) raised RuntimeError"),
        (Secretive(token=pydantic.SecretStr("a")), "a secret"),
        (Vault(secrets={pydantic.SecretStr("a")}), "a secret"),
        (SetOfSets(groups={frozenset([1])}), "set of sets|model_dump"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_text_is_refused(value: Any, words: str) -> None:
    """An error says where in the value, and what is wrong, never what the value is."""
    with pytest.raises(KeyDerivationError, match=words) as caught:
        canonical(value)
    assert "secret'" not in str(caught.value)


def test_the_deepest_value_that_is_allowed_has_a_text() -> None:
    """Exactly MAX_DEPTH levels pass."""
    assert canonical(nested(MAX_DEPTH)) == "[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH


# -- round trips -----------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
simple = st.none() | st.booleans() | numbers | texts | st.binary(max_size=8)
zones = st.none() | st.sampled_from(
    [UTC, TWO_HOURS_EAST, dt.timezone(-dt.timedelta(hours=3, minutes=30))]
)
days = st.dates() | st.datetimes(timezones=zones)
exact = st.decimals(allow_nan=False) | st.uuids() | st.times(timezones=zones) | days
homogeneous = st.sets(texts) | st.sets(st.integers()) | st.sets(st.dates())
python_only = (
    homogeneous
    | homogeneous.map(frozenset)
    | st.timedeltas()
    | st.sampled_from([Colour.RED, Level.LOW, Name.ANN])
    | st.builds(Order, st.integers(), st.tuples(texts))
    | st.builds(Model, id=st.integers(), tags=st.sets(texts, max_size=3))
)
mixed_enum = st.sampled_from([Level.LOW, Name.ANN])


def structures(
    leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[Any] = texts
) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(inner, max_size=4).map(tuple)
            | st.dictionaries(keys, inner, max_size=4)
        ),
        max_leaves=12,
    )


# A key that JSON makes of another one would collide with it: that is an error of its own.
json_keys: st.SearchStrategy[Any] = texts.filter(
    lambda text: not re.match(r"[-\d]|true|false|null|inf|Inf", text)
)
json_keys |= st.integers() | st.booleans() | st.none()
WHAT_IT_TAKES = {
    "json": structures(simple | exact | mixed_enum, json_keys),
    "msgpack": structures(simple | mixed_enum),
    "pickle": structures(simple | exact | python_only, json_keys),
    "yaml": structures(simple | days | homogeneous, json_keys),
}


@pytest.mark.parametrize("serializer", SERIALIZERS)
@moderate
@given(data=st.data())
def test_a_serializer_does_not_change_the_text(serializer: str, data: st.DataObject) -> None:
    """Whatever a serializer takes has the same text on the worker as on the producer."""
    # Given
    value = data.draw(WHAT_IT_TAKES[serializer])
    try:
        before = canonical(value)
    except KeyDerivationError as exc:
        assert "two keys" in str(exc)  # {0: ..., False: ...} can't be, but {1: ..., True: ...} can
        return

    # When
    arrived = round_trip(value, serializer)

    # Then
    assert canonical(arrived) == before
    assert canonical(copy.deepcopy(value)) == before


@moderate
@given(value=structures(simple))
@example(value={"a": (1, 1.0, True, "1", None)})
def test_all_serializers_agree(value: Any) -> None:
    """A value that every serializer takes has one text, whichever of them it came through."""
    assert len({canonical(round_trip(value, name)) for name in SERIALIZERS}) == 1


# -- injectivity -----------------------------------------------------------------------------------


def meaning(value: Any) -> Any:
    """What a value means to a task, written a second time and in another way: type and content."""
    if isinstance(value, (list, tuple)):
        return ("list", tuple(meaning(item) for item in value))
    if isinstance(value, dict):
        return ("dict", frozenset((key, meaning(item)) for key, item in value.items()))
    if isinstance(value, (set, frozenset)):
        return ("set", frozenset(meaning(item) for item in value))
    return (type(value).__name__, value)


alike = st.sampled_from(
    ["1", "1.0", "true", "null", "[1]", "{}", "1,2", "'", "''", "date(2020-01-02)", "bytes(61)"]
    + ["set([1])", "\\", "\\'", "\\\\", "\\u0000", "\x00", "a", "61"]
)
confusable = (
    alike
    | alike.map(str.encode)
    | st.sampled_from([1, 1.0, True, False, 0, 0.0, None, -1, 10, Decimal(1), Decimal("1.5")])
    | st.sampled_from([dt.date(2020, 1, 2), dt.datetime(2020, 1, 2), dt.time(0), ID])
    | st.sampled_from([dt.timedelta(0), dt.timedelta(1), frozenset([1]), frozenset()])
)
pairs = st.tuples(structures(confusable, alike), structures(confusable, alike))


@settings(max_examples=300, deadline=None)
@given(pair=pairs)
@example(pair=(["1,2"], ["1", "2"]))
@example(pair=(["','"], ["", ""]))
@example(pair=({"a": 1}, [["a", 1]]))
@example(pair=([{"a": 1}, {"b": 2}], [{"a": 1, "b": 2}]))
@example(pair=([frozenset([1])], [[1]]))
def test_two_values_share_a_text_only_if_they_mean_the_same(pair: tuple[Any, Any]) -> None:
    """No structure, tag or quote can be forged by a text inside of a value."""
    first, second = pair
    assert (canonical(first) == canonical(second)) == (meaning(first) == meaning(second))


def test_what_looks_alike_differs() -> None:
    """The values that a careless form would mix up all have texts of their own."""
    # Given
    values: list[Any] = [
        *(1, 1.0, True, "1", None, "null", "None", "true", b"1", Decimal(1), [1], {1}, {"1": 1}),
        *("", b"", [], {}, set(), 0, 0.0, False, [[]], [""], [None]),
        *(dt.date(2020, 1, 2), dt.datetime(2020, 1, 2), "2020-01-02", "date(2020-01-02)"),
        *(dt.datetime(2020, 1, 2, tzinfo=UTC), dt.time(0), dt.timedelta(0), ID, str(ID), ID.hex),
        *({"__type__": "date", "__value__": "2020-01-02"}, ["date", "2020-01-02"], 10, 1e1, "1e1"),
    ]

    # When
    texts_of_all = [canonical(value) for value in values]

    # Then
    for (first, one), (second, other) in combinations(zip(values, texts_of_all, strict=True), 2):
        assert one != other, (first, second)


# -- for the eyes of operators ---------------------------------------------------------------------


def test_what_is_shown_hides_control_and_direction_characters() -> None:
    """A label can't move an operator's cursor or turn its own text round; letters stay."""
    assert visible("Zoë \x1b[31m\u202e😀'\\") == "Zoë \\u001b[31m\\u202e😀'\\"


def test_an_equal_copy_has_the_same_text() -> None:
    """Pickling a model whose sets iterate in another order changes nothing."""
    model = Model(id=1, tags={f"tag{i}" for i in range(20)})
    assert canonical(pickle.loads(pickle.dumps(model))) == canonical(model)
