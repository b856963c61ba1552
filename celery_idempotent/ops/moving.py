"""Moves records from one store to another: each as one line of JSON."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from celery_idempotent.core.record import Record
from celery_idempotent.errors import IdempotencyError, StoreError, StoreUnavailable
from celery_idempotent.ops.views import parse_name
from celery_idempotent.stores.base import Store, quoted

_BATCH = 500


def export_records(store: Store, prefix: str) -> Iterator[str]:
    """Give each record of a store as a line, as they come; what can't be read is left out.

    A record is written with what is left of its life, of its lease, and of the wait for its retry:
    another store has another clock.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    names = store.scan(f"{quoted(prefix)}:{{*}}")
    while batch := list(islice(names, _BATCH)):
        now_ms = store.now_ms()
        for name in batch:
            line = _line(store, prefix, name, now_ms)
            if line is not None:
                yield line


def _line(store: Store, prefix: str, name: str, now_ms: int) -> str | None:
    if parse_name(prefix, name) is None:
        return None
    try:
        record, left_s = store.get(name), store.ttl(name)
    except StoreUnavailable:
        raise
    except StoreError:
        return None
    if record is None or left_s is None:
        return None  # it expired since it was found
    steps = store.steps(name) if record.has_steps else {}
    told = {
        "key": name[len(prefix) + 1 :],
        "record": base64.b64encode(record.pack()).decode(),
        "left_ms": max(0, record.until_ms - now_ms) if record.until_ms else 0,
        "ttl_ms": int(left_s * 1000),
        "steps": {step: base64.b64encode(packed).decode() for step, packed in steps.items()},
    }
    return json.dumps(told, separators=(",", ":"))


class Imported(NamedTuple):
    """What became of the lines that were imported."""

    written: int
    #: Left as they are, since the store knows them newer.
    newer: int


def import_records(store: Store, prefix: str, lines: Iterable[str]) -> Imported:
    """Write the lines of an export into a store; what is newer there stays.

    Raises:
        IdempotencyError: a line is none of an export; what came before it is written.
        StoreUnavailable: the store does not answer. It can all be done again.
    """
    written = newer = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
            name = f"{prefix}:{told['key']}"
            record = Record.unpack(base64.b64decode(told["record"], validate=True))
            left_ms, ttl_ms = int(told["left_ms"]), int(told["ttl_ms"])
            steps = {step: base64.b64decode(packed) for step, packed in told["steps"].items()}
        except (ValueError, TypeError, KeyError, AttributeError, binascii.Error) as exc:
            raise IdempotencyError(f"line {number} is no line that export has written") from exc
        if parse_name(prefix, name) is None:
            raise IdempotencyError(f"line {number} has no name of a record: {told['key']!r}")
        if ttl_ms <= 0:
            continue
        if store.put(name, record, left_ms, ttl_ms, steps):
            written += 1
        else:
            newer += 1
    return Imported(written, newer)
