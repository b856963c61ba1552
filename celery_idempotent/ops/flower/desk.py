"""What the pages of one Flower share: the store, the open listings, the counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from celery_idempotent.core.record import State
from celery_idempotent.ops import records, resume, settle
from celery_idempotent.ops.flower.listing import Counts, Listing, Listings, Page
from celery_idempotent.ops.flower.seams import PatchedLoader
from celery_idempotent.ops.history import History, JournalEntry, newest_first
from celery_idempotent.ops.lookup import exactly, listed, look_up
from celery_idempotent.ops.views import QUEUED, Filter, RecordDetail, RecordView, Stats
from celery_idempotent.settings import Environment, environment_of

#: So many events of a record are shown.
_STORY = 100


class Story(NamedTuple):
    """What the journal knows of a record, newest first."""

    #: The last that happened.
    events: list[JournalEntry]
    #: The task ids of the calls that were answered with its outcome.
    duplicates: list[str]
    #: When the key was claimed, in seconds since 1970; ``None``: nobody has it.
    claimed_at: float | None


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
            now_ms = environment.store.now_ms()
            wanted = Filter(asked["task"], asked["state"], asked["match"], now_ms)
            listing = self._listing(app, environment, wanted)
            name = self.listings.open(listing)
        return name, listing.page(number)

    def _listing(self, app: Any, environment: Environment, wanted: Filter) -> Listing:
        known = listed(environment, wanted)
        if known is not None:
            return Listing(iter([known]), iter(()))
        where = environment.store, environment.prefix, wanted
        if wanted.state == QUEUED:
            return Listing(iter(()), records.batches(*where))
        exact = exactly(app, environment, wanted)
        return Listing(newest_first(*where), records.batches(*where), exact)

    def counts(self, app: Any) -> Stats | None:
        """Count the records, or give what was counted a moment ago; ``None``: not yet counted.

        Raises:
            ConfigurationError, StoreUnavailable: there is no store, or no answer.
        """
        environment = self.environment(app)
        if self._counts is None:
            self._counts = Counts(lambda: records.count(environment.store, environment.prefix))
        return self._counts.get()

    def now_ms(self, app: Any) -> int:
        """Give the store's clock, which says whose lease is over.

        Raises:
            ConfigurationError, StoreUnavailable: there is no store, or no answer.
        """
        return self.environment(app).store.now_ms()

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
        return look_up(app, self.environment(app), text)

    def story(self, app: Any, view: RecordView) -> Story:
        """Give what the journal knows of a record.

        Raises:
            ConfigurationError, StoreUnavailable: there is no store, or no answer.
        """
        environment = self.environment(app)
        history = History(environment.store, environment.prefix)
        events = history.of_record(view.name)[::-1]
        duplicates = (told.task_id for told in events if told.what == "deduplicated")
        names = list(dict.fromkeys(id for id in duplicates if id))
        return Story(events[:_STORY], names, history.claimed_at(view))

    def forget(self, app: Any, view: RecordView, via: str) -> bool:
        """Free a key; whether there was anything to forget.

        Raises:
            ConfigurationError, StoreUnavailable: there is no store, or no answer.
        """
        return settle.forget(self.environment(app), view, via)

    def resolve(self, app: Any, view: RecordView, how: State, answer: Any, via: str) -> str | None:
        """Settle an unknown outcome; the id of the message that undoes its steps, if there is one.

        Raises:
            NotUnknown: it is in another state.
            ConfigurationError, StoreUnavailable: there is no store, or no answer.
        """
        return settle.resolve(app, self.environment(app), view, how, answer, via)

    def resume(
        self, app: Any, view: RecordView, step: str, arguments: resume.Arguments | None, via: str
    ) -> str | None:
        """Run a call again; the id of the call that was published, if its arguments are known.

        Args:
            step: from which it is done again; empty: all that is recorded stays.

        Raises:
            NotResumable, NotPublished, UnknownStep: as :func:`.resume.resume`.
            ConfigurationError, StoreUnavailable: there is no store, or no answer.
        """
        environment = self.environment(app)
        plan = resume.plan(app, environment, view, step or None, arguments)
        return resume.resume(app, environment, plan, via)
