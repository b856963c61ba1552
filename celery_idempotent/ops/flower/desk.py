"""What the pages of one Flower share: the store, the open listings, the counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery_idempotent.ops import records
from celery_idempotent.ops.flower.listing import Counts, Listing, Listings, Page
from celery_idempotent.ops.flower.seams import PatchedLoader
from celery_idempotent.ops.records import Filter, RecordDetail, RecordView, Stats
from celery_idempotent.settings import Environment, environment_of

__all__ = ["Desk"]

_MOST_LOCATED = 20


class Desk:
    """The records of one app, as its Flower shows them. Its methods block: call them in a thread.

    Args:
        loader: loads the pages' templates.
    """

    def __init__(self, loader: PatchedLoader) -> None:
        self.loader = loader
        self.listings = Listings()
        self._counts: Counts | None = None

    def environment(self, app: Any) -> Environment:
        """Give the app's store and prefix.

        Raises:
            ConfigurationError: it has none.
        """
        return environment_of(app)

    def page(
        self, app: Any, asked: Mapping[str, str | None], name: str | None, number: int
    ) -> tuple[str, Page]:
        """Give a page of the list that is asked for, and the name under which it goes on.

        Raises:
            ConfigurationError, StoreUnavailable: there is no store, or no answer.
        """
        environment = self.environment(app)
        listing = self.listings.get(name)
        if listing is None or name is None:
            wanted = Filter(asked["task"], asked["state"], asked["match"])
            batches = records.batches(environment.store, environment.prefix, wanted)
            listing = Listing(batches)
            name = self.listings.open(listing)
        return name, listing.page(number)

    def counts(self, app: Any) -> Stats | None:
        """Count the records, or give what was counted a moment ago; ``None``: not yet counted.

        Raises:
            ConfigurationError, StoreUnavailable: there is no store, or no answer.
        """
        environment = self.environment(app)
        if self._counts is None:
            self._counts = Counts(lambda: records.count(environment.store, environment.prefix))
        return self._counts.get()

    def show(self, app: Any, name: str) -> RecordDetail | None:
        """Read one record by its name.

        Raises:
            ConfigurationError, StoreUnavailable: there is no store, or no answer.
        """
        environment = self.environment(app)
        return records.show(environment.store, environment.prefix, name)

    def locate(self, app: Any, text: str) -> list[RecordView]:
        """Find records by key or task id.

        Raises:
            ConfigurationError, StoreUnavailable: there is no store, or no answer.
        """
        environment = self.environment(app)
        tasks = [name for name in app.tasks if not name.startswith("celery.")]
        found = records.locate(environment.store, environment.prefix, text, tasks)
        return [view for view, _ in zip(found, range(_MOST_LOCATED), strict=False)]

    def forget(self, app: Any, name: str) -> bool:
        """Free a key; whether there was a record.

        Raises:
            ConfigurationError, StoreUnavailable: there is no store, or no answer.
        """
        environment = self.environment(app)
        return records.forget(environment.store, environment.prefix, name, environment.horizon)
