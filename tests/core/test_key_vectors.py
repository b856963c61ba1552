"""The key format is frozen: known calls have known keys, through every serializer."""

import datetime as dt
import inspect
import json
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from celery_idempotent.core.keys import MESSAGE_ID, KeyScheme, record_key
from tests.support.serializers import SERIALIZERS, round_trip

# Each vector's Python parts are expressions over these names.
NAMES = {
    "Decimal": Decimal,
    "MESSAGE_ID": MESSAGE_ID,
    "UUID": UUID,
    "date": dt.date,
    "datetime": dt.datetime,
    "time": dt.time,
    "timedelta": dt.timedelta,
    "timezone": dt.timezone,
}
FILE = Path(__file__).parents[1] / "vectors" / "keys.json"
VECTORS = json.loads(FILE.read_text(encoding="utf-8"))


def expression(text: str, **names: Any) -> Any:
    return eval(text, {**NAMES, **names})


def outcome(vector: dict[str, Any], serializer: str | None) -> dict[str, Any]:
    """What the library makes of a vector's call, in the form of the file."""
    options = expression(vector["options"])
    task = expression(f"lambda {vector['signature'][1:-1]}: None")
    args, kwargs = expression(f"call{vector['call']}", call=lambda *args, **kwargs: (args, kwargs))
    if serializer is not None:
        args, kwargs = round_trip([args, kwargs], serializer)
    scheme = KeyScheme(task_name="shop.charge", signature=inspect.signature(task), **options)
    call_key = scheme.derive(
        args, kwargs, task_id=vector.get("task_id"), explicit=vector.get("explicit")
    )
    assert call_key is not None
    return {
        "namespace": call_key.namespace,
        "key": call_key.key,
        "label": call_key.label,
        "fingerprint": call_key.fingerprint.hex(),
        "checked": call_key.checked,
        "record": record_key("idempotent", call_key),
    }


@pytest.mark.parametrize(
    ("vector", "serializer"),
    [
        pytest.param(vector, serializer, id=f"{vector['name']}-{serializer or 'producer'}")
        for vector in VECTORS
        for serializer in (None, *vector["serializers"])
    ],
)
def test_a_known_call_has_its_known_key(vector: dict[str, Any], serializer: str | None) -> None:
    """Another key for the same call would run it again, in a rolling deploy and after it.

    A change of the file is a change of the format: it wants an entry in the changelog which says
    what happens to records that exist.
    """
    assert outcome(vector, serializer) == vector["expected"]


def test_the_vectors_tell_calls_apart() -> None:
    """Two vectors with one record would show that two calls are one."""
    records = [vector["expected"]["record"] for vector in VECTORS if not vector.get("same_as")]
    assert len(records) == len(set(records))


def test_vectors_of_one_call_agree() -> None:
    """Calls that are written in another way have the record of the first."""
    records = {vector["name"]: vector["expected"]["record"] for vector in VECTORS}
    same = {v["name"]: records[v["same_as"]] for v in VECTORS if v.get("same_as")}
    assert same
    assert {name: records[name] for name in same} == same


def test_every_serializer_is_covered() -> None:
    """Each of the four has vectors."""
    assert {name for vector in VECTORS for name in vector["serializers"]} == set(SERIALIZERS)
