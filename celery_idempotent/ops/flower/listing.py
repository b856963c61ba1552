"""Long lists a page at a time, and counts that are not counted anew for each reader.

A listing goes on with its scan where the last page left it, and stops when a page has taken long
enough: no page waits until a store with millions of records has been gone through.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from celery_idempotent.ops.views import RecordView, Stats

#: So many records are on a page.
PAGE: Final = 50
#: Up to so many records a list is complete at once, and can be in order.
_SORTED: Final = 2000
#: A listing keeps no more than that.
_MOST: Final = 10_000
_PATIENCE_S: Final = 1.5
_LISTINGS: Final = 32

Batches = Iterator[list[RecordView]]


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing."""

    views: list[RecordView]
    #: From 1.
    number: int
    #: Whether there is a next page, or may be one.
    more: bool
    #: Whether it is known to be in order: what happened last comes first.
    newest_first: bool
    #: Whether the page is not full because looking for more would have taken too long.
    cut_short: bool
    #: Whether there is more than a listing keeps.
    too_many: bool


class Listing:
    """One list of records, as far as it has been read.

    Args:
        exact: what the filter's words name exactly. Where there is such a thing, the first page is
            made of it, and nothing else is read for that.
        ordered: records in their order, the newest first.
        rest: all records in no order; those that came before are left out. Where there are few,
            they are read at once and put in order: the keys that were claimed last come first.
    """

    def __init__(self, ordered: Batches, rest: Batches, exact: Sequence[RecordView] = ()) -> None:
        self._exact = list(exact)
        self._ordered = ordered
        self._rest = rest
        self._lock = threading.Lock()
        self._views: list[RecordView] = []
        self._seen: set[str] = set()
        self._done = False
        #: So many of them are in order; ``None``: the ordered ones have not all come yet.
        self._in_order: int | None = None

    def page(self, number: int) -> Page:
        """Give a page, reading as far as that takes.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        number = max(1, min(number, _MOST // PAGE))
        with self._lock:
            self._read(number * PAGE + 1)
            views = self._views[(number - 1) * PAGE : number * PAGE]
            too_many = len(self._views) >= _MOST
            short = len(views) < PAGE and not (self._done or too_many)
            return Page(
                views=views,
                number=number,
                more=len(self._views) > number * PAGE and number < _MOST // PAGE,
                newest_first=self._in_order is None or number * PAGE <= self._in_order,
                cut_short=short,
                too_many=too_many and not self._done,
            )

    def _read(self, wanted: int) -> None:
        enough = time.monotonic() + _PATIENCE_S
        if self._exact:
            self._take(iter([self._exact]), 1, enough)
            self._exact = []
            return
        self._take(self._ordered, wanted, enough)
        if len(self._views) >= wanted or time.monotonic() >= enough:
            return
        if self._in_order is None:
            self._in_order = ordered = len(self._views)
            self._take(self._rest, ordered + _SORTED, enough)
            if self._done:
                rest = sorted(self._views[ordered:], key=lambda view: view.token, reverse=True)
                self._views[ordered:] = rest
                self._in_order = _MOST
        self._take(self._rest, wanted, enough)

    def _take(self, batches: Batches, wanted: int, enough: float) -> None:
        while len(self._views) < min(wanted, _MOST) and time.monotonic() < enough:
            batch = next(batches, None)
            if batch is None:
                self._done = batches is self._rest
                return
            new = [view for view in batch if view.name not in self._seen]
            self._views.extend(new)
            self._seen.update(view.name for view in new)


class Listings:
    """The listings that readers go on with; the least used go away."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, Listing] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, listing: Listing) -> str:
        """Keep one; what it can be asked for by."""
        name = secrets.token_urlsafe(8)
        with self._lock:
            self._open[name] = listing
            while len(self._open) > _LISTINGS:
                self._open.popitem(last=False)
        return name

    def get(self, name: str | None) -> Listing | None:
        """Give one that is still kept."""
        with self._lock:
            listing = self._open.get(name or "")
            if listing is not None:
                self._open.move_to_end(name or "")
            return listing


class Counts:
    """How many records there are, counted at most once at a time and not again for a while.

    Args:
        count: goes through all records; in a large store that takes seconds.
    """

    def __init__(self, count: Callable[[], Stats]) -> None:
        self._count = count
        self._counting = threading.Lock()
        self._stats: Stats | None = None
        self._good_until = 0.0

    def get(self) -> Stats | None:
        """Count, or give what was counted a moment ago; ``None``: the first count is under way.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        if time.monotonic() < self._good_until or not self._counting.acquire(blocking=False):
            return self._stats
        try:
            began = time.monotonic()
            self._stats = self._count()
            took = time.monotonic() - began
            # What takes long is done seldom: a twentieth of the time at most.
            self._good_until = time.monotonic() + max(2.0, 20 * took)
            return self._stats
        finally:
            self._counting.release()
