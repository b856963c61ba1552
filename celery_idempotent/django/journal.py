"""What a store on the ORM tells: records, lists of them, steps, and the journal."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

from celery_idempotent.core.record import Record
from celery_idempotent.django import models
from celery_idempotent.django.rows import Rows, fit
from celery_idempotent.errors import StoreError
from celery_idempotent.stores.deciding import Row
from celery_idempotent.stores.journal import StoredEvent

__all__ = ["Reading"]

T = TypeVar("T")

_PAGE: Final = 500


class Reading:
    """The part of the store that changes no record."""

    alias: str

    @property
    def rows(self) -> Rows:
        raise NotImplementedError

    def _operate(self, work: Callable[[Any], T]) -> T:
        raise NotImplementedError

    def _objects(self, model: Any) -> Any:
        return model._base_manager.using(self.alias)

    def _steps_of(self, _: Any, key: str) -> dict[str, bytes]:
        rows = self._objects(models.Step).filter(record_key=fit(key))
        return {name: bytes(packed) for name, packed in rows.values_list("name", "step")}

    def get(self, key: str) -> Record | None:
        return self._read(key).record

    def peek(self, key: str) -> tuple[Record | None, int]:
        row = self._read(key)
        return row.record, row.now_ms

    def get_many(self, keys: Sequence[str]) -> list[Record | StoreError | None]:
        def work(connection: Any) -> dict[str, Row]:
            found: dict[str, Row] = {}
            for start in range(0, len(keys), _PAGE):
                found.update(self.rows.read_many(connection, keys[start : start + _PAGE]))
            return found

        found = self._operate(work)
        return [_in_list(found.get(fit(key))) for key in keys]

    def steps(self, key: str) -> dict[str, bytes]:
        def work(connection: Any) -> dict[str, bytes]:
            record = self.rows.read(connection, key).readable
            has_steps = record is not None and record.has_steps
            return self._steps_of(connection, key) if has_steps else {}

        return self._operate(work)

    def now_ms(self) -> int:
        return self._read("").now_ms

    def ttl(self, key: str) -> float | None:
        row = self._read(key)
        left = row.expires_ms - row.now_ms
        return left / 1000 if row.stamp is not None and left > 0 else None

    def scan(self, pattern: str) -> Iterator[str]:
        glob = re.sub(r"\\(.)", lambda m: f"[{m[1]}]" if m[1] in "*?[" else m[1], pattern)
        start = re.split(r"[*?\[\\]", pattern, maxsplit=1)[0]
        after = ""
        while True:
            page = self._page(start, after)
            yield from (key for key in page if fnmatch.fnmatchcase(key, glob))
            if len(page) < _PAGE:
                return
            after = page[-1]

    def _page(self, start: str, after: str) -> list[str]:
        def work(connection: Any) -> list[str]:
            now_ms = self.rows.read(connection).now_ms
            rows = self._objects(models.Record).filter(expires_ms__gt=now_ms)
            rows = rows.filter(record_key__startswith=start, record_key__gt=after)
            keys = rows.order_by("record_key").values_list("record_key", flat=True)
            return list(keys[:_PAGE])

        return self._operate(work)

    def ping(self) -> None:
        self._read("")

    def _read(self, key: str) -> Row:
        return self._operate(lambda connection: self.rows.read(connection, key))

    # --- the journal -----------------------------------------------------------------------------

    def append_events(self, journal: str, events: Sequence[bytes], most: int) -> None:
        def work(connection: Any) -> None:
            now_ms = self.rows.read(connection).now_ms
            rows = self._objects(models.Event)
            rows.bulk_create(
                [models.Event(journal=journal, stored_ms=now_ms, event=one) for one in events]
            )
            newest = rows.filter(journal=journal).order_by("-id").values_list("id", flat=True)
            first_too_old = newest[most : most + 1]
            for old in list(first_too_old):
                rows.filter(journal=journal, id__lte=old).delete()

        self._operate(work)

    def read_events(self, journal: str, before: str | None, count: int) -> list[StoredEvent]:
        def work(_: Any) -> list[StoredEvent]:
            rows = self._objects(models.Event).filter(journal=journal)
            if before is not None:
                rows = rows.filter(id__lt=int(before.partition("-")[2]))
            return [
                StoredEvent(f"{row.stored_ms}-{row.id}", bytes(row.event))
                for row in rows.order_by("-id")[:count]
            ]

        return self._operate(work)


def _in_list(row: Row | None) -> Record | StoreError | None:
    try:
        return None if row is None else row.record
    except StoreError as exc:
        return exc
