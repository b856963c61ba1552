"""What travels in a message's headers is read as it was written, and nothing else is believed."""

import pytest

from celery_idempotent.core.keys import CallKey
from celery_idempotent.errors import KeyDerivationError
from celery_idempotent.headers import (
    EXPLICIT,
    OWN,
    Waits,
    explicit_key,
    own_header,
    read_own,
)

KEY = CallKey("shop.charge", "order:42", "", b"f" * 16, True)


def test_a_message_keeps_its_key_and_its_waits():
    """What own_header writes, read_own reads."""
    # Given
    waits = Waits(3, 1_795_000_000_000, ("other", 2), redelivery=True)
    # When
    read = read_own({OWN: own_header("id-1", KEY, waits)}, "id-1")
    # Then
    assert read == (KEY, waits)


def test_a_call_without_a_key_says_so():
    """A producer's "not deduplicated" is not derived again by the worker."""
    assert read_own({OWN: own_header("id-1", None)}, "id-1") == (None, Waits())


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


GOOD = own_header("id-1", KEY, Waits(1, 5, ("x", 0)))


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
