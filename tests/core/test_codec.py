"""Packed outcomes: what is written is read again, small where it can be, and never a bomb."""

from __future__ import annotations

import zlib

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from celery_idempotent.core import codec
from celery_idempotent.core.codec import COMPRESS_OVER, Kind, Outcome
from celery_idempotent.errors import RecordCorrupt

JSON = ("application/json", "utf-8")
COMMON = [
    JSON,
    ("application/x-msgpack", "binary"),
    ("application/x-yaml", "utf-8"),
    ("application/x-python-serialize", "binary"),
]
words = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), max_size=40)
kept = st.sampled_from([Kind.RESULT, Kind.FAILURE])
payloads = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda piece, times: piece * times, st.binary(max_size=9), st.integers(0, 300)),
)


@given(kept, st.one_of(st.sampled_from(COMMON), st.tuples(words, words)), payloads)
@example(Kind.RESULT, JSON, b"x" * COMPRESS_OVER)
@example(Kind.RESULT, JSON, b"x" * (COMPRESS_OVER + 1))
@example(Kind.FAILURE, ("application/x-of-my-own", ""), b"x" * 5_000)
def test_an_outcome_is_read_again(kind: Kind, content: tuple[str, str], payload: bytes) -> None:
    """Kind, content type, encoding and payload come back, whatever serializer there was."""
    # Given
    outcome = Outcome(kind, *content, payload)
    # Then
    assert Outcome.unpack(outcome.pack()) == outcome


def test_a_success_that_is_not_kept_is_read_again() -> None:
    """It says nothing but that: two bytes."""
    # Given
    outcome = Outcome(Kind.NOT_KEPT)
    # Then
    assert len(outcome.pack()) == 2
    assert Outcome.unpack(outcome.pack()) == outcome


def test_what_is_not_kept_is_not_packed() -> None:
    """A payload that is too large does not come along by accident."""
    # When
    packed = Outcome(Kind.NOT_KEPT, *JSON, b"x" * 10_000_000).pack()
    # Then
    assert packed == Outcome(Kind.NOT_KEPT).pack()


@pytest.mark.parametrize("content", COMMON)
def test_common_content_takes_two_bytes(content: tuple[str, str]) -> None:
    """What Celery's serializers write is named by a number."""
    # Then
    assert len(Outcome(Kind.RESULT, *content, b"12345").pack()) == 2 + 5


def test_large_payloads_are_compressed() -> None:
    """Over the threshold a payload that can be made smaller is, and a small one is left."""
    # Given
    small = Outcome(Kind.RESULT, *JSON, b"x" * COMPRESS_OVER)
    large = Outcome(Kind.RESULT, *JSON, b"x" * (COMPRESS_OVER + 1))
    # Then
    assert len(small.pack()) == 2 + COMPRESS_OVER
    assert len(large.pack()) < 50


def test_what_grows_by_compression_is_left() -> None:
    """Bytes without order are stored as they are."""
    # Given
    payload = b"".join(
        zlib.crc32(bytes((n % 256, n // 256))).to_bytes(4, "big") for n in range(999)
    )
    outcome = Outcome(Kind.RESULT, *JSON, payload)
    # Then
    assert len(outcome.pack()) == 2 + len(payload)
    assert Outcome.unpack(outcome.pack()) == outcome


def test_an_unknown_content_type_is_given_as_it_is() -> None:
    """Whether it may be decoded is the result backend's to say, which knows what it accepts."""
    # Given
    packed = b"\x01\x00\x0fapplication/foo\x03bar" + b"payload"
    # Then
    assert Outcome.unpack(packed) == Outcome(Kind.RESULT, "application/foo", "bar", b"payload")


def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A payload that unpacks to more than the limit is corrupt; at the limit it is read."""
    # Given
    monkeypatch.setattr(codec, "MAX_UNPACKED", 100_000)
    at_the_limit = b"\x01\x81" + zlib.compress(b"\x00" * 100_000)
    bomb = b"\x01\x81" + zlib.compress(b"\x00" * 100_001)
    # Then
    assert len(Outcome.unpack(at_the_limit).payload) == 100_000
    with pytest.raises(RecordCorrupt, match="too large"):
        Outcome.unpack(bomb)


def test_nothing_is_packed_that_could_not_be_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A payload over the limit is not compressed: a reader could take it for a bomb."""
    # Given
    monkeypatch.setattr(codec, "MAX_UNPACKED", 100_000)
    outcome = Outcome(Kind.RESULT, *JSON, b"x" * 100_001)
    # Then
    assert Outcome.unpack(outcome.pack()) == outcome


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\x01",
        b"\x00\x01{}",
        b"\x09\x01{}",
        b"\x01\x05{}",
        b"\x01\x7f{}",
        b"\x01\x00\x0fappli",
        b"\x01\x00\x03foo\x09bar",
        b"\x01\x00\x01\xff\x00",
        b"\x01\x81not compressed",
        b"\x01\x81" + zlib.compress(b"x" * 1000)[:-1],
    ],
    ids=repr,
)
def test_what_is_no_outcome_is_corrupt(packed: bytes) -> None:
    """Cut short, of an unknown kind or coding, or broken within: the error says what to do."""
    # Then
    with pytest.raises(RecordCorrupt, match="forget the key"):
        Outcome.unpack(packed)


@given(st.binary(max_size=80))
def test_damage_gives_no_other_error(packed: bytes) -> None:
    """Bytes are read as an outcome, or are corrupt: never anything else."""
    try:
        # When
        outcome = Outcome.unpack(packed)
    except RecordCorrupt:
        return
    # Then
    assert Outcome.unpack(outcome.pack()) == outcome
