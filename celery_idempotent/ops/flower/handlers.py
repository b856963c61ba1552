"""The pages to look at: the list of records, one record; with Flower's login, in Flower's look."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

from flower.views import BaseHandler
from tornado import web
from tornado.ioloop import IOLoop
from tornado.template import BaseLoader

from celery_idempotent.errors import ConfigurationError, StoreUnavailable
from celery_idempotent.ops.flower import flowers
from celery_idempotent.ops.flower.desk import Desk
from celery_idempotent.ops.lookup import no_such_task
from celery_idempotent.ops.resume import may_be_resumed
from celery_idempotent.ops.sentences import in_its_queue, sentence
from celery_idempotent.ops.views import LEASE_OVER, LISTED, STATES, Filter, RecordDetail

T = TypeVar("T")

#: Where there is no store, or no answer.
AWAY: Final = (ConfigurationError, StoreUnavailable)
NO_RECORD: Final = "There is no such record: it was never made, or is gone"


class Ours:
    """What our pages and our API have in common, beside Flower's own base classes."""

    desk: Desk
    application: Any
    capp: Any
    request: Any
    current_user: Any

    def initialize(self, desk: Desk) -> None:
        """Take what the pages share; Tornado calls it."""
        self.desk = desk

    async def ask(self, function: Callable[..., T], *args: Any) -> T:
        """Call a method of the desk in a thread: the loop must not wait for the store."""
        call = functools.partial(function, self.capp, *args)
        return await IOLoop.current().run_in_executor(None, call)

    @property
    def read_only(self) -> bool:
        """Whether Flower was told to change nothing."""
        return bool(getattr(self.application.options, "read_only", False))

    @property
    def via(self) -> str:
        """Say for the journal who did it, as far as Flower knows."""
        user = f"{self.current_user}, " if isinstance(self.current_user, str) else ""
        return f"Flower, {user}{self.request.remote_ip}"

    def refuse_what_must_not_change(self) -> None:
        """Refuse in read-only mode, and what another site had the reader's browser send.

        Flower leaves the second check out where nobody logs in, or has none at all.

        Raises:
            HTTPError: 403.
        """
        if self.read_only:
            raise web.HTTPError(403, "Flower runs in read-only mode: nothing is changed here")
        web.RequestHandler.check_xsrf_cookie(self)  # type: ignore[arg-type]

    def asked(self) -> dict[str, str | None]:
        """Give the filter; read past Flower, which escapes what it reads.

        Raises:
            HTTPError: 400, there is no such state.
        """
        read: Any = web.RequestHandler.get_query_argument
        asked = {name: read(self, name, None) for name in ("task", "state", "match")}
        if asked["state"] and asked["state"] not in LISTED:
            # Not repeated: some Flowers write this as HTML.
            raise web.HTTPError(400, f"There is no such state, but these: {', '.join(LISTED)}")
        return asked

    def number(self) -> int:
        """Give the page's number; what is none is the first."""
        read: Any = web.RequestHandler.get_query_argument
        try:
            return max(1, int(read(self, "page", "1")))
        except ValueError:
            return 1


class OurPage(Ours, BaseHandler):
    """A page."""

    def create_template_loader(self, template_path: str) -> BaseLoader:
        """Ours knows where our templates are."""
        return self.desk.loader

    def away(self, exc: Exception) -> None:
        """Say that the store is not there; its errors have no password in them."""
        self.set_status(503)
        self.render("idempotency-away.html", why=str(exc))

    def link(self, page: str, /, **query: Any) -> str:
        """Give the address of one of our pages."""
        given = {key: value for key, value in query.items() if value not in (None, "")}
        return str(self.reverse_url(page)) + (f"?{urlencode(given)}" if given else "")

    async def detail(self, name: str) -> RecordDetail:
        """Read a record.

        Raises:
            HTTPError: 404, there is none.
            ConfigurationError, StoreUnavailable: there is no store, or no answer.
        """
        detail = await self.ask(self.desk.show, name)
        if detail is None:
            raise web.HTTPError(404, NO_RECORD)
        return detail


class RecordsView(OurPage):
    """The list, a page at a time."""

    @web.authenticated
    async def get(self) -> None:
        asked = self.asked()
        try:
            listing, page = await self.ask(
                self.desk.page, asked, self.get_query_argument("listing", None), self.number()
            )
            environment = self.desk.environment(self.capp)
            now_ms = await self.ask(self.desk.now_ms)
        except AWAY as exc:
            self.away(exc)
            return
        self.render(
            "idempotency-records.html",
            page=page,
            now_ms=now_ms,
            asked=asked,
            states=LISTED,
            counted=STATES,
            tasks=sorted(name for name in self.capp.tasks if not name.startswith("celery.")),
            no_such_task=no_such_task(self.capp, Filter(task=asked["task"])),
            where=environment.where,
            link=self.link,
            listing=listing,
            known=functools.partial(flowers.knows, self.application),
            badge=flowers.badge,
            short=flowers.short,
        )


class RecordView(OurPage):
    """One record, with all that is known of it."""

    @web.authenticated
    async def get(self) -> None:
        name = self.get_query_argument("name")
        try:
            detail = await self.detail(name)
            story = await self.ask(self.desk.story, detail.view)
        except AWAY as exc:
            self.away(exc)
            return
        self.render(
            "idempotency-record.html",
            detail=detail,
            view=detail.view,
            lease_over=LEASE_OVER,
            claimed_at=story.claimed_at,
            duplicates=flowers.duplicates_of(self.application, name, story.duplicates),
            story=[(told.at_ms / 1000, told.task_id, sentence(told)) for told in story.events],
            known=functools.partial(flowers.knows, self.application),
            done=self.get_query_argument("done", ""),
            resumable=may_be_resumed(detail),
            in_its_queue=in_its_queue,
            read_only=self.read_only,
            link=self.link,
            badge=flowers.badge,
            span=flowers.span,
        )


class CountsView(OurPage):
    """The counts, for the list to fill in when they are there."""

    @web.authenticated
    async def get(self) -> None:
        try:
            stats = await self.ask(self.desk.counts)
        except AWAY as exc:
            self.set_status(503)
            self.finish({"error": str(exc)})
            return
        if stats is None:
            self.set_status(202)
            self.finish({})
            return
        self.finish({"total": stats.total, "exact": stats.is_exact, "states": stats.states})
