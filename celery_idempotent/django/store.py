"""Records in the project's own database, on the ORM's own connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from django.db import Error, connections

from celery_idempotent.django import models
from celery_idempotent.django.journal import DjangoJournals
from celery_idempotent.django.rows import DjangoRows, migrate_command, unavailable
from celery_idempotent.django.transaction import DjangoTransaction
from celery_idempotent.errors import ConfigurationError
from celery_idempotent.stores.base import Subscription, TransactionalStore
from celery_idempotent.stores.deciding import DecidingStore
from celery_idempotent.stores.journal import JournalStore
from celery_idempotent.stores.notifications import PostgresSubscription


class DjangoStore(DjangoJournals, DecidingStore[Any]):
    """A :class:`~celery_idempotent.stores.base.Store` on one of the project's databases.

    An operation that is called in ``transaction.atomic()`` is a part of that transaction; what a
    body's own run needs of the store goes another way while its transaction is open.

    Args:
        alias: which of ``DATABASES``.
        atomic: whether bodies run in ``transaction.atomic()``, committed with their completion.
    """

    rows: DjangoRows

    def __init__(self, alias: str = "default", *, atomic: bool = True) -> None:
        super().__init__(DjangoRows(alias))
        self.alias = alias
        self.schema_command = migrate_command(alias)
        #: Whether a transaction is opened before the body, and not when it asks for one.
        self.opens_with_body = atomic

    @classmethod
    def from_url(cls, url: str, options: Mapping[str, Any] | None = None) -> DjangoStore:
        """Make a store from ``django://`` or ``django://alias``.

        Raises:
            ConfigurationError: it is no such URL, or an option is none.
        """
        parts = urlsplit(url)
        given = dict(options or {})
        atomic = given.pop("atomic", True)
        if given or not isinstance(atomic, bool):
            raise ConfigurationError(
                "idempotency_store_options: a store django:// takes one option, atomic (True or "
                f"False), and not {sorted(given) or atomic!r}"
            )
        if parts.path not in ("", "/") or parts.query:
            raise ConfigurationError(f"{url!r}: write django:// or django://alias")
        return cls(parts.netloc or "default", atomic=atomic)

    @property
    def journals(self) -> JournalStore:
        return self

    @property
    def transactions(self) -> TransactionalStore:
        return self

    def subscribe(self) -> Subscription | None:
        if not self.rows.tells:
            return None

        def tell(key: str) -> None:
            self.rows.operate(lambda at: self.rows.tell(at, key))

        try:
            wrapper: Any = connections.create_connection(self.alias)
            wrapper.ensure_connection()
            wrapper.set_autocommit(True)
            return PostgresSubscription(wrapper.connection, tell)
        except Error as exc:
            raise unavailable(self.alias, exc) from exc

    def begin(self) -> DjangoTransaction:
        """Begin the transaction of a body."""
        return DjangoTransaction(self, self.rows)

    def purge(self) -> int:
        """Delete what has expired; return how many rows went."""

        def work(connection: Any) -> int:
            now_ms = self.rows.read(connection).now_ms
            gone = 0
            for model in (models.Record, models.Note):
                gone += self.rows.objects(model).filter(expires_ms__lte=now_ms).delete()[0]
            kept = self.rows.objects(models.Record).values("record_key")
            left_over = self.rows.objects(models.Step).exclude(record_key__in=kept)
            return gone + int(left_over.delete()[0])

        return self.rows.operate(work)
