"""What travels in a message's headers is read as it was written, and nothing else is believed."""

import pytest

from celery_idempotent.core.keys import CallKey
from celery_idempotent.core.message import (
    EXPLICIT,
    OWN,
    WaitState,
    explicit_key,
    ours_in,
    own_header,
    read_own,
)
from celery_idempotent.errors import KeyDerivationError

KEY = CallKey("shop.charge", "order:42", "", b"f" * 16, True)


def test_a_message_keeps_its_key_and_its_waits():
    """What own_header writes, read_own reads."""
    # Given
    waits = WaitState(3, 1_795_000_000_000, ("other", 2), redelivery=True)
    # When
    read = read_own({OWN: own_header("id-1", KEY, waits)}, "id-1")
    # Then
    assert read == (KEY, waits)


def test_a_call_without_a_key_says_so():
    """A producer's "not deduplicated" is not derived again by the worker."""
    assert read_own({OWN: own_header("id-1", None)}, "id-1") == (None, WaitState())


def test_headers_copied_from_another_message_are_not_believed():
    """A task that passes its own headers on gives its key to nobody."""
    # Given
    header = own_header("id-1", KEY)
    # Then
    assert read_own({OWN: header}, "id-2") is None
    assert read_own({OWN: header}, "id-1") is not None


@pytest.mark.parametrize("headers", [None, {}, {"other": 1}])
def test_a_message_of_another_producer_has_no_header_of_ours(headers):
    """Then the worker derives the key."""
    assert read_own(headers, "id-1") is None


GOOD = own_header("id-1", KEY, WaitState(1, 5, ("x", 0)))


def test_what_a_repair_drops_is_kept_over_its_waits_and_not_over_a_retry() -> None:
    """The next attempt goes on with what the first has done since."""
    waits = WaitState(publication="once", resumes=(1_767_258_000_000_000, "charge"))
    read = read_own({OWN: own_header("call", None, waits.again(since_ms=5))}, "call")
    assert read is not None
    assert read[1].resumes == waits.resumes
    assert waits.retried().resumes is None


@pytest.mark.parametrize(
    "broken",
    [
        "text",
        [1, 2],
        {**GOOD, "ns": 5},
        {**GOOD, "ns": ""},
        {**GOOD, "ns": "n" * 2000},
        {**GOOD, "key": "k" * 2000},
        {**GOOD, "key": ""},
        {**GOOD, "key": ["order:42"]},
        {**GOOD, "fp": "zz"},
        {**GOOD, "fp": "ab" * 100},
        {**GOOD, "label": "l" * 1000},
        {**GOOD, "waits": -1},
        {**GOOD, "waits": "1"},
        {**GOOD, "waits": True},
        {**GOOD, "since": 1.5},
        {**GOOD, "awaited": "x"},
        {**GOOD, "awaited": [1, 2]},
        {**GOOD, "awaited": ["x", "y"]},
        {**GOOD, "awaited": ["x"]},
        {**GOOD, "resume": 5},
        {**GOOD, "resume": [1]},
        {**GOOD, "resume": ["1", "charge"]},
        {**GOOD, "resume": [True, "charge"]},
        {**GOOD, "resume": [1, ""]},
        {**GOOD, "resume": [-1, "charge"]},
        {**GOOD, "resume": [2**64, "charge"]},
        {**GOOD, "resume": [1, "\ud800"]},
        {**GOOD, "pub": "\ud800"},
        {**GOOD, "pub": "é"},
        {**GOOD, "pub": "a" * 65},
        {**GOOD, "waits": 2**32},
        {**GOOD, "waits": 1, "since": 2**53},
        {**GOOD, "awaited": ["x", -1]},
        {**GOOD, "awaited": ["x", 2**32]},
        {**GOOD, "awaited": ["\ud800", 0]},
        {name: value for name, value in GOOD.items() if name != "fp"},
        {name: value for name, value in GOOD.items() if name != "checked"},
    ],
)
def test_a_malformed_header_is_a_typed_error(broken):
    """Whatever a network sends, it is an error that says whose header it is, or no header."""
    with pytest.raises(KeyDerivationError, match="celery-idempotency"):
        read_own({OWN: broken}, "id-1")


@pytest.mark.parametrize(
    "name",
    ["idempotency-key", "Idempotency-Key", "IDEMPOTENCY_KEY", "idempotency_key"],
)
def test_an_explicit_key_is_read_in_any_spelling(name):
    """Case doesn't matter, and an underscore is a hyphen."""
    assert explicit_key({"other": 1, name: "req-7"}) == "req-7"


def test_an_explicit_key_of_bytes_is_text():
    """Some producers' libraries send header values as bytes."""
    assert explicit_key({EXPLICIT: b"req-7"}) == "req-7"


@pytest.mark.parametrize("headers", [None, {}, {"idempotency-keys": "x"}, {EXPLICIT: None}])
def test_without_an_explicit_key_there_is_none(headers):
    """And names that only look like it are not it."""
    assert explicit_key(headers) is None


def test_an_explicit_key_that_is_no_text_is_an_error():
    """A number would be the same as its text for one producer, and another key for the next."""
    with pytest.raises(KeyDerivationError, match="must be text"):
        explicit_key({EXPLICIT: 7})


@pytest.mark.parametrize("value", [b"caf\xe9", b"\xff\xfe", "req-7".encode("utf-16")])
def test_bytes_that_are_not_utf_8_are_an_error(value):
    """Decoded with another character in place of theirs, two keys would become one."""
    with pytest.raises(KeyDerivationError, match="not UTF-8"):
        explicit_key({EXPLICIT: value})


def test_both_headers_are_found_wherever_a_tracer_left_them():
    """At the top, and inside the table that hides the others from a task."""
    # Given
    own = {OWN: own_header("id-1", KEY)}
    # Then
    for headers in (own, {**own, "headers": {"trace": 1}}, {"trace": 1, "headers": own}):
        assert read_own(headers, "id-1") == (KEY, WaitState())
    for name in (EXPLICIT, "Idempotency_Key"):
        given = {name: "req-7"}
        assert explicit_key({**given, "headers": {"trace": 1}}) == "req-7"
        assert explicit_key({"trace": 1, "headers": given}) == "req-7"


def test_what_stands_at_the_top_is_newer():
    """A tracer's copy of an earlier publication's headers may still be nested."""
    # Given
    new, old = own_header("id-1", KEY, WaitState(2)), own_header("id-1", KEY, WaitState(1))
    # When
    read = read_own({OWN: new, "headers": {OWN: old}}, "id-1")
    # Then
    assert read == (KEY, WaitState(2))
    assert explicit_key({EXPLICIT: "new", "headers": {EXPLICIT: "old"}}) == "new"
    assert ours_in({OWN: new, "headers": {OWN: old, EXPLICIT: "old"}}) == {
        OWN: new,
        EXPLICIT: "old",
    }


def test_another_messages_header_does_not_hide_ones_own():
    """Copied to the top, it is passed over."""
    # Given
    other, mine = own_header("id-2", None), own_header("id-1", KEY)
    # Then
    assert read_own({OWN: other, "headers": {OWN: mine}}, "id-1") == (KEY, WaitState())


@pytest.mark.parametrize("nested", [None, [], "text", 5, {}])
def test_a_header_called_headers_may_hold_anything(nested):
    """It is somebody else's."""
    assert explicit_key({"headers": nested}) is None
    assert read_own({"headers": nested}, "id-1") is None


def test_two_explicit_keys_are_an_error():
    """One of them would be a guess; the same one twice is not."""
    with pytest.raises(KeyDerivationError, match="more than one"):
        explicit_key({EXPLICIT: "a", "Idempotency_Key": "b"})
    assert explicit_key({EXPLICIT: "a", "Idempotency_Key": b"a", "IDEMPOTENCY-KEY": None}) == "a"
