"""The same as JSON, with Flower's rules for who may ask its API."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flower.api import BaseApiHandler
from tornado import web

from celery_idempotent.ops.flower import flowers
from celery_idempotent.ops.flower.handlers import AWAY, Ours, page_number

__all__ = ["ForgetApi", "RecordApi", "RecordsApi", "StatsApi"]

_NONE = "there is no such record: it was never made, or is gone"


class _Api(Ours, BaseApiHandler):
    """One address of the API."""

    def answer(self, status: int, **fields: Any) -> None:
        """Send JSON."""
        self.set_status(status)
        self.finish(fields)


class RecordsApi(_Api):
    """``GET api/idempotency/records?task=&state=&match=&page=&listing=``."""

    @web.authenticated
    async def get(self) -> None:
        number = page_number(self.get_query_argument("page", "1"))
        name = self.get_query_argument("listing", None)
        try:
            listing, page = await self.ask(self.desk.page, self.asked(), name, number)
        except AWAY as exc:
            return self.answer(503, error=str(exc))
        return self.answer(
            200,
            records=[view.as_dict() for view in page.views],
            page=page.number,
            more=page.more or page.cut_short,
            newest_first=page.newest_first,
            listing=listing,
        )


class RecordApi(_Api):
    """``GET api/idempotency/record?name=`` (in the store) or ``?key=`` (a key or a task id)."""

    @web.authenticated
    async def get(self) -> None:
        name = self.get_query_argument("name", None)
        key = self.get_query_argument("key", None)
        try:
            if name is None:
                found = await self.ask(self.desk.locate, key or "")
                if len(found) > 1:
                    names = [view.name for view in found]
                    return self.answer(300, error="several records fit: name one", names=names)
                name = found[0].name if found else ""
            detail = await self.ask(self.desk.show, name)
        except AWAY as exc:
            return self.answer(503, error=str(exc))
        if detail is None:
            return self.answer(404, error=_NONE)
        duplicates = flowers.duplicates_of(self.application, name)
        return self.answer(200, **detail.as_dict(), duplicates=asdict(duplicates))


class StatsApi(_Api):
    """``GET api/idempotency/stats``: how many there are, by state and by task."""

    @web.authenticated
    async def get(self) -> None:
        try:
            stats = await self.ask(self.desk.counts)
        except AWAY as exc:
            return self.answer(503, error=str(exc))
        if stats is None:
            return self.answer(202, error="still counting: ask again")
        return self.answer(200, total=stats.total, states=stats.states, tasks=stats.tasks)


class ForgetApi(_Api):
    """``POST api/idempotency/forget`` with ``name=``; it needs the XSRF cookie and its token."""

    @web.authenticated
    async def post(self) -> None:
        self.refuse_what_must_not_change()
        try:
            forgotten = await self.ask(self.desk.forget, self.get_body_argument("name"))
        except AWAY as exc:
            return self.answer(503, error=str(exc))
        if not forgotten:
            return self.answer(404, error=_NONE)
        return self.answer(200, message="the key is free: its next call runs")
