"""The pages: records, one record, forgetting it; each with Flower's login and in Flower's look."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlencode

from flower.views import BaseHandler
from tornado import web
from tornado.ioloop import IOLoop
from tornado.template import BaseLoader

from celery_idempotent.errors import ConfigurationError, StoreUnavailable
from celery_idempotent.ops.flower import flowers
from celery_idempotent.ops.flower.desk import Desk
from celery_idempotent.ops.records import STATES, RecordDetail

__all__ = ["AWAY", "CountsView", "ForgetView", "Ours", "RecordView", "RecordsView", "page_number"]

T = TypeVar("T")

AWAY = (ConfigurationError, StoreUnavailable)


class Ours:
    """What our pages and our API have in common, beside Flower's own base class."""

    desk: Desk
    application: Any
    capp: Any

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

    def refuse_what_must_not_change(self) -> None:
        """Refuse in read-only mode, and what another site had the reader's browser send.

        Flower leaves the second check out where nobody logs in, or has none at all.

        Raises:
            HTTPError: 403.
        """
        if self.read_only:
            raise web.HTTPError(403, "Flower runs in read-only mode: nothing is forgotten here")
        web.RequestHandler.check_xsrf_cookie(self)  # type: ignore[arg-type]

    def asked(self) -> dict[str, str | None]:
        """Give the filter; read past Flower, which escapes what it reads."""
        read = web.RequestHandler.get_query_argument
        names = ("task", "state", "match")
        return {name: read(self, name, None) for name in names}  # type: ignore[call-overload]


class _Page(Ours, BaseHandler):
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


class RecordsView(_Page):
    """The list, a page at a time."""

    @web.authenticated
    async def get(self) -> None:
        asked = self.asked()
        number = page_number(self.get_query_argument("page", "1"))
        try:
            listing, page = await self.ask(
                self.desk.page, asked, self.get_query_argument("listing", None), number
            )
            environment = self.desk.environment(self.capp)
        except AWAY as exc:
            self.away(exc)
            return
        tasks = sorted(name for name in self.capp.tasks if not name.startswith("celery."))
        self.render(
            "idempotency-records.html",
            page=page,
            asked=asked,
            states=STATES,
            tasks=tasks,
            where=environment.where,
            link=self.link,
            listing=listing,
            known=functools.partial(flowers.knows, self.application),
            badge=flowers.badge,
        )


class RecordView(_Page):
    """One record."""

    @web.authenticated
    async def get(self) -> None:
        name = self.get_query_argument("name")
        try:
            detail = await self.ask(self.desk.show, name)
        except AWAY as exc:
            self.away(exc)
            return
        if detail is None:
            raise web.HTTPError(404, "There is no such record: it was never made, or is gone")
        self.render(
            "idempotency-record.html",
            detail=detail,
            view=detail.view,
            duplicates=flowers.duplicates_of(self.application, name),
            known=functools.partial(flowers.knows, self.application),
            forgotten=self.get_query_argument("forgotten", ""),
            read_only=self.read_only,
            link=self.link,
            badge=flowers.badge,
            span=flowers.span,
        )


class ForgetView(_Page):
    """Forgetting a record: first what it means, then the deed."""

    def set_default_headers(self) -> None:
        """As Flower's; and no other site may put this page under its reader's pointer."""
        super().set_default_headers()
        self.set_header("Content-Security-Policy", "frame-ancestors 'self'")

    @web.authenticated
    async def get(self) -> None:
        detail = await self._detail(self.get_query_argument("name"))
        if detail is not None:
            self.render(
                "idempotency-forget.html",
                detail=detail,
                view=detail.view,
                read_only=self.read_only,
                link=self.link,
                span=flowers.span,
            )

    @web.authenticated
    async def post(self) -> None:
        self.refuse_what_must_not_change()
        name = self.get_body_argument("name")
        try:
            if not await self.ask(self.desk.forget, name):
                raise web.HTTPError(404, "There is no such record: it was never made, or is gone")
        except AWAY as exc:
            self.away(exc)
            return
        self.redirect(self.link("idempotency-record", name=name, forgotten=1), status=303)

    async def _detail(self, name: str) -> RecordDetail | None:
        try:
            detail = await self.ask(self.desk.show, name)
        except AWAY as exc:
            self.away(exc)
            return None
        if detail is None:
            raise web.HTTPError(404, "There is no such record: it was never made, or is gone")
        return detail


class CountsView(_Page):
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
        self.finish({"total": stats.total, "states": stats.states})


def page_number(text: str) -> int:
    """Read a page's number; what is none is the first."""
    try:
        return max(1, int(text))
    except ValueError:
        return 1
