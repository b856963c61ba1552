"""Outcomes as results: what a replay gives is what the result backend would have given."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from celery import Celery
from kombu.serialization import registry
from kombu.utils import json as kombu_json

from celery_idempotent.core.codec import Kind, Outcome
from celery_idempotent.delivery import results
from celery_idempotent.delivery.results import encode_failure, encode_result, replay
from celery_idempotent.errors import RecordCorrupt

JSON = "application/json"


@pytest.fixture
def backend() -> Iterator[Any]:
    app = Celery("results", backend="cache+memory://", set_as_current=False)
    yield app.backend
    app.close()


def packed(payload: bytes, content_type: str = JSON, encoding: str = "utf-8") -> bytes:
    return Outcome(Kind.RESULT, content_type, encoding, payload).pack()


@pytest.mark.parametrize(
    "result",
    [
        *(None, True, False, 0, 7, -7, 10**14, 10**15, 10**30, 1.5, 1e300, "", "null", "7", "ü"),
        *([], [None, 1], {}, {"null": None}, {"receipt": [7, "A-17"]}),
        *(b"raw", b"\xff", Decimal("1.10"), UUID(int=7), date(2026, 5, 1)),
        {"at": datetime(2026, 5, 1, tzinfo=timezone.utc)},
    ],
    ids=repr,
)
def test_a_replay_equals_the_first_result(backend: Any, result: Any) -> None:
    """In type too: it is what kombu's decoder gives."""
    # When
    kept = encode_result(backend, result, 1024)
    given = replay(backend, kept, "order:42")
    # Then
    assert Outcome.unpack(kept).payload == backend.encode(result).encode()
    decoded = registry.loads(registry.dumps(result, "json")[2], JSON, "utf-8", accept={JSON})
    assert (given, type(given)) == (result, type(result)) == (decoded, type(decoded))


def test_white_space_around_json_is_no_part_of_it(backend: Any) -> None:
    """An encoder of the project's own may write it."""
    assert replay(backend, packed(b'\n {"a": 1} \n'), "order:42") == {"a": 1}


@pytest.mark.parametrize("payload", [b'{"a": 1} 2', b'{"a": 1', b"7 7", b" "])
def test_more_or_less_than_one_value_is_corrupt(backend: Any, payload: bytes) -> None:
    """Its first value alone is not what was stored."""
    with pytest.raises(RecordCorrupt, match="can't be decoded"):
        replay(backend, packed(payload), "order:42")


@pytest.mark.parametrize("payload", [b"null", b"7", b'{"a": 1}'])
def test_nothing_is_read_that_the_app_does_not_accept(backend: Any, payload: bytes) -> None:
    """However simple it is."""
    backend.accept = {"application/x-msgpack"}
    with pytest.raises(RecordCorrupt, match="result_accept_content"):
        replay(backend, packed(payload), "order:42")


@pytest.mark.parametrize("payload", [b"007", b"nul", b"7 8", b"{", b"\xff"])
def test_what_is_no_json_is_corrupt(backend: Any, payload: bytes) -> None:
    """A number with zeros in front is none, whoever wrote it."""
    with pytest.raises(RecordCorrupt, match="order:42 can't be decoded"):
        replay(backend, packed(payload), "order:42")


def test_a_coder_of_the_project_is_asked_for_json() -> None:
    """A project may register its own, which reads and writes other things."""
    registry.register("json", lambda value: "[1]", lambda text: "mine", JSON, "utf-8")
    try:
        backend = Celery("own", backend="cache+memory://", set_as_current=False).backend
        kept = encode_result(backend, {"a": 1}, 1024)
        assert Outcome.unpack(kept).payload == b"[1]"
        assert replay(backend, kept, "order:42") == "mine"
    finally:
        registry.register("json", kombu_json.dumps, kombu_json.loads, JSON, "utf-8")


def test_where_kombu_keeps_its_decoders_elsewhere_it_decodes(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is looked at there is private to it, and saves time only."""

    # Given
    class Registry:
        loads = registry.loads

    monkeypatch.setattr(results, "_registry", Registry())
    kept = encode_result(backend, {"a": Decimal("1.10")}, 1024)
    # Then
    assert replay(backend, kept, "order:42") == {"a": Decimal("1.10")}


def test_what_a_type_of_the_project_cannot_read_is_corrupt(backend: Any) -> None:
    """Whatever its decoder raises."""
    text = b'{"__type__": "uuid", "__value__": 7}'
    with pytest.raises(RecordCorrupt, match="order:42 can't be decoded"):
        replay(backend, packed(text), "order:42")


def test_an_encoding_that_nobody_knows_is_corrupt(backend: Any) -> None:
    """It says what to do, like all that can't be read."""
    with pytest.raises(RecordCorrupt, match="forget the key"):
        replay(backend, packed(b"7.5", encoding="utf-1000"), "order:42")


def test_the_same_text_of_another_type_is_another_result(backend: Any) -> None:
    """Only JSON's numbers are numbers."""
    backend.accept = {JSON, "text/plain"}
    assert replay(backend, packed(b"7", "text/plain"), "order:42") == "7"


class Declined(Exception):
    """A failure of a project."""


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_a_failure_that_is_too_large_says_what_it_was(serializer: str) -> None:
    """Its type, so that a copy fails as the call did, and the beginning of its text."""
    # Given
    app = Celery("results", backend="cache+memory://", set_as_current=False)
    app.conf.update(result_serializer=serializer, result_accept_content=[serializer])
    # When
    kept = encode_failure(app.backend, Declined("no " * 1000), 1024)
    with pytest.raises(Exception, match="no no no") as raised:
        replay(app.backend, kept, "order:42")
    # Then
    assert len(kept) < 2000
    if serializer == "pickle":
        assert "Declined" in str(raised.value)
    else:
        assert type(raised.value) is Declined
        assert len(str(raised.value)) == 500
