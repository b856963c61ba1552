"""The journal of a store on the ORM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery_idempotent.django import models
from celery_idempotent.django.rows import DjangoRows
from celery_idempotent.stores.journal import StoredEvent


class DjangoJournals:
    """A :class:`~celery_idempotent.stores.journal.JournalStore` on the ORM."""

    rows: DjangoRows

    def append_events(self, journal: str, events: Sequence[bytes], most: int) -> None:
        def work(connection: Any) -> None:
            now_ms = self.rows.read(connection).now_ms
            rows = self.rows.objects(models.Event)
            rows.bulk_create(
                [models.Event(journal=journal, stored_ms=now_ms, event=one) for one in events]
            )
            newest = rows.filter(journal=journal).order_by("-id").values_list("id", flat=True)
            first_too_old = newest[most : most + 1]
            for old in list(first_too_old):
                rows.filter(journal=journal, id__lte=old).delete()

        self.rows.operate(work)

    def read_events(self, journal: str, before: str | None, count: int) -> list[StoredEvent]:
        def work(_: Any) -> list[StoredEvent]:
            rows = self.rows.objects(models.Event).filter(journal=journal)
            if before is not None:
                rows = rows.filter(id__lt=int(before.partition("-")[2]))
            return [
                StoredEvent(f"{row.stored_ms}-{row.id}", bytes(row.event))
                for row in rows.order_by("-id")[:count]
            ]

        return self.rows.operate(work)
