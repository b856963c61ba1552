"""What nobody should send and no store should hold: typed errors, bounded sizes, no code run."""

from __future__ import annotations

import base64
import inspect
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_idempotent import (
    ConfigurationError,
    IdempotencyError,
    KeyDerivationError,
    RecordCorrupt,
)
from celery_idempotent.core.canonical import canonical
from celery_idempotent.core.codec import Kind, Outcome
from celery_idempotent.core.keys import KeyScheme, record_key
from celery_idempotent.core.record import Record
from celery_idempotent.testing.contract.kit import replace
from tests.conftest import MakeSystem
from tests.support.system import STORE_DB, System, answers

LONG = "x" * 100_000

#: Headers that a broken or hostile producer may send.
BAD_HEADERS: tuple[dict[str, Any], ...] = (
    {"idempotency-key": ""},
    {"idempotency-key": 5},
    {"idempotency-key": None},
    {"idempotency-key": ["a"]},
    {"idempotency-key": {"a": 1}},
    {"idempotency-key": LONG},
    {"idempotency-key": "\x00\n{}:%\u202e"},
    {"celery-idempotency": None},
    {"celery-idempotency": "text"},
    {"celery-idempotency": []},
    {"celery-idempotency": {}},
    {"celery-idempotency": {"id": 1, "ns": 2, "key": 3}},
    {"celery-idempotency": {"id": "ID", "ns": LONG, "key": LONG, "fp": LONG}},
    {"celery-idempotency": {"id": "ID", "ns": "a", "key": [], "fp": "zz"}},
    {"celery-idempotency": {"id": "ID", "ns": None, "key": {"a": {}}, "waits": "many"}},
    {"celery-idempotency": {"id": "ID", "ns": "a", "key": "b", "waits": -1, "since": "ever"}},
)


def with_id(header: dict[str, Any], task_id: str) -> dict[str, Any]:
    """The same headers, said to be that message's own."""
    ours = header.get("celery-idempotency")
    if isinstance(ours, dict) and ours.get("id") == "ID":
        return {"celery-idempotency": {**ours, "id": task_id}}
    return header


def test_bad_headers_end_in_typed_errors(make_faulty: MakeSystem) -> None:
    """Each message is answered, by a result or a typed error; the worker goes on."""
    # Given
    system = make_faulty(idempotency_lease=300)
    worker = system.start_worker(concurrency=2)
    # When
    calls = [
        system.app.send_task(
            "shop.pay",
            (number,),
            task_id=f"bad-{number}",
            headers=with_id(header, f"bad-{number}"),
        )
        for number, header in enumerate(BAD_HEADERS)
    ]
    given = answers(calls)
    # Then
    for answer in given:
        assert isinstance(answer, (dict, IdempotencyError)), answer
    assert sum(isinstance(answer, IdempotencyError) for answer in given) >= 8
    assert system.task("pay").delay("good").get(timeout=30)["order"] == "good"
    assert system.ledger.count("effect") == sum(isinstance(answer, dict) for answer in given) + 1
    assert worker.running
    assert max(len(name) for name in system.records()) < 1000
    assert len(system.records()) < 100


def spoil(system: System, order: int, change: Any) -> None:
    """Change what the store holds for an order."""
    record = system.task("pay").idempotency_record(order)
    (name,) = (key for key in system.records() if key.endswith(b"order:%d}" % order))
    with redis.Redis.from_url(system.store.url(STORE_DB)) as client:
        packed = client.get(name)
        assert isinstance(packed, bytes)
        assert Record.unpack(packed) == record
        client.set(name, change(packed), keepttl=True)


def test_damaged_records_run_nothing(make_faulty: MakeSystem) -> None:
    """Scenario 30: cut short or with flipped bits, a record is an error or is still an outcome."""
    # Given
    system = make_faulty(idempotency_lease=300)
    worker = system.start_worker(concurrency=2)
    pay = system.task("pay")
    changes = [
        lambda it: it[:10],
        lambda it: it[:-5],
        lambda it: b"",
        lambda it: b"\x01 is no record at all, but long enough to look like one",
        lambda it: it[:1] + b"\xff" + it[2:],
        lambda it: it[:1] + b"\x00" + it[2:],
        lambda it: it[:4] + b"\xff" * 8 + it[12:],
        lambda it: it[:24] + b"\xff" + it[25:],
        lambda it: b"\x00" + it[1:],
        lambda it: it[:-20] + bytes(byte ^ 0x55 for byte in it[-20:]),
    ]
    before = answers([pay.delay(order) for order in range(len(changes))])
    # When
    for order, change in enumerate(changes):
        spoil(system, order, change)
    given = answers([pay.delay(order) for order in range(len(changes))])
    # Then
    assert [type(answer) for answer in given].count(RecordCorrupt) >= 8
    for answer in given:
        assert isinstance(answer, (dict, IdempotencyError)), answer
    assert system.ledger.count("start") == len(changes) == len(before)
    # Then forget frees such a key
    assert pay.forget(0)
    assert pay.delay(0).get(timeout=30)["order"] == 0
    assert worker.running


class Bomb:
    """What runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_no_outcome_runs_code(make_faulty: MakeSystem, tmp_path: Path) -> None:
    """A pickle in a record is not opened where the app doesn't accept pickle."""
    # Given
    system = make_faulty(idempotency_lease=300)
    system.start_worker(concurrency=1)
    pay = system.task("pay")
    pay.delay(1).get(timeout=30)
    exploded = tmp_path / "exploded"
    payload = pickle.dumps(Bomb(exploded))
    # When
    for kind in (Kind.RESULT, Kind.FAILURE):
        outcomes = [
            Outcome(kind, "application/x-python-serialize", "binary", payload),
            Outcome(kind, "application/json", "utf-8", base64.b64encode(payload)),
        ]
        for outcome in outcomes:
            spoil(system, 1, partial(replaced, outcome=outcome.pack()))
            answer = pay.delay(1).get(timeout=30, propagate=False)
            # Then
            assert isinstance(answer, Exception), answer
    assert not exploded.exists()
    assert system.ledger.count("start") == 1


def replaced(packed: bytes, outcome: bytes) -> bytes:
    """The same record with another outcome."""
    return replace(Record.unpack(packed), outcome=outcome).pack()


def test_a_huge_result_is_not_run_again(make_faulty: MakeSystem) -> None:
    """Scenario 29: its caller gets it, a duplicate gets ResultNotKept, and nothing runs twice."""
    # Given
    system = make_faulty(idempotency_max_result_size=1000)
    system.start_worker(concurrency=1)
    echo = system.task("echo")
    # When
    first = echo.delay("a", LONG).get(timeout=30)
    (answer,) = answers([echo.delay("a", LONG)])
    # Then
    assert first == LONG
    assert type(answer).__name__ == "ResultNotKept"
    assert system.ledger.count("start") == 1
    assert max(len(dump) for dump in system.records().values()) < 2000


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.sets(st.text())
    ),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(json_like)
def test_any_argument_is_a_text_or_a_typed_error(value: Any) -> None:
    """Scenario 28: a value has a canonical form, or an error that is ours says that it has none."""
    try:
        text = canonical(value)
    except KeyDerivationError as exc:
        assert str(exc)
    else:
        assert text == canonical(value)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.from_regex(r"[a-z:{}._!\[\]()0]{0,30}", fullmatch=True))
def test_any_template_is_compiled_or_refused(template: str) -> None:
    """A template reaches for names and public paths only; all else is refused when it is bound."""
    # Given
    signature = inspect.signature(lambda a, z=None: None)
    try:
        scheme = KeyScheme(task_name="t", signature=signature, key=template)
    except ConfigurationError as exc:
        assert len(str(exc)) < 1000
        return
    # When
    try:
        key = scheme.derive(({"a": "x" * 10_000},), {"z": 5}, message_id="1")
    except KeyDerivationError as exc:
        assert len(str(exc)) < 1000
        return
    # Then
    assert key is not None
    assert len(record_key("p", key)) < 500
