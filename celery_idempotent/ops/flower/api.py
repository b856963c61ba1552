"""The same as JSON, with Flower's rules for who may ask its API."""

from __future__ import annotations

from typing import Any

from flower.api import BaseApiHandler
from tornado import web

from celery_idempotent.errors import IdempotencyError, UnknownStep
from celery_idempotent.ops.flower import flowers
from celery_idempotent.ops.flower.actions import WAYS, answer_of, arguments_of
from celery_idempotent.ops.flower.handlers import AWAY, NO_RECORD, Ours
from celery_idempotent.ops.resume import NotResumable
from celery_idempotent.ops.settle import NotUnknown
from celery_idempotent.ops.views import RecordView


class _Api(Ours, BaseApiHandler):
    """One address of the API."""

    def answer(self, status: int, **fields: Any) -> None:
        """Send JSON."""
        self.set_status(status)
        self.finish(fields)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Send what our own checks refuse as JSON, too; the rest is Flower's."""
        exc = (kwargs.get("exc_info") or (None, None))[1]
        if isinstance(exc, web.HTTPError) and exc.log_message:
            self.answer(status_code, error=exc.get_message())
        else:
            super().write_error(status_code, **kwargs)

    async def view(self) -> RecordView | None:
        """Give the record that a form names; answer where there is none."""
        detail = await self.ask(self.desk.show, self.get_body_argument("name"))
        if detail is None:
            self.answer(404, error=NO_RECORD)
            return None
        return detail.view


class RecordsApi(_Api):
    """``GET api/idempotency/records?task=&state=&match=&page=&listing=``."""

    @web.authenticated
    async def get(self) -> None:
        name = self.get_query_argument("listing", None)
        try:
            listing, page = await self.ask(self.desk.page, self.asked(), name, self.number())
            now_ms = await self.ask(self.desk.now_ms)
        except AWAY as exc:
            self.answer(503, error=str(exc))
            return
        self.answer(
            200,
            records=[view.as_dict(now_ms) for view in page.views],
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
        try:
            if name is None:
                found = await self.ask(self.desk.locate, self.get_query_argument("key"))
                if len(found) > 1:
                    names = [view.name for view in found]
                    self.answer(300, error="Several records fit: name one", names=names)
                    return
                name = found[0].name if found else ""
            detail = await self.ask(self.desk.show, name)
            if detail is None:
                self.answer(404, error=NO_RECORD)
                return
            story = await self.ask(self.desk.story, detail.view)
        except AWAY as exc:
            self.answer(503, error=str(exc))
            return
        duplicates = flowers.duplicates_of(self.application, name, story.duplicates)
        events = [told.as_dict() for told in story.events]
        told = {**detail.as_dict(), "claimed_at": story.claimed_at}
        self.answer(200, **told, duplicates=duplicates, events=events)


class StatsApi(_Api):
    """``GET api/idempotency/stats``: how many there are, by state and by task."""

    @web.authenticated
    async def get(self) -> None:
        try:
            stats = await self.ask(self.desk.counts)
        except AWAY as exc:
            self.answer(503, error=str(exc))
            return
        if stats is None:
            self.answer(202, error="Still counting: ask again")
        else:
            self.answer(
                200,
                total=stats.total,
                exact=stats.is_exact,
                states=stats.states,
                tasks=stats.tasks,
            )


class ForgetApi(_Api):
    """``POST api/idempotency/forget`` with ``name=``; it needs the XSRF cookie and its token."""

    @web.authenticated
    async def post(self) -> None:
        self.refuse_what_must_not_change()
        try:
            view = await self.view()
            if view is not None:
                done = await self.ask(self.desk.forget, view, self.via)
                self.answer(200, name=view.name, forgotten=done)
        except AWAY as exc:
            self.answer(503, error=str(exc))


class ResolveApi(_Api):
    """``POST api/idempotency/resolve`` with ``name=``, ``how=`` and ``answer=``, and the token."""

    @web.authenticated
    async def post(self) -> None:
        self.refuse_what_must_not_change()
        how = self.get_body_argument("how", "")
        answer = answer_of(how, self.get_body_argument("answer", ""))
        try:
            view = await self.view()
            if view is not None:
                sent = await self.ask(self.desk.resolve, view, WAYS[how], answer, self.via)
                self.answer(200, name=view.name, resolved=how, compensation=sent)
        except AWAY as exc:
            self.answer(503, error=str(exc))
        except NotUnknown as exc:
            self.answer(409, error=str(exc))
        except IdempotencyError as exc:
            self.answer(500, error=str(exc))


class ResumeApi(_Api):
    """``POST api/idempotency/resume`` with ``name=``, ``step=``, ``args=`` and ``kwargs=``."""

    @web.authenticated
    async def post(self) -> None:
        self.refuse_what_must_not_change()
        step = self.get_body_argument("step", "")
        given = arguments_of(
            self.get_body_argument("args", ""), self.get_body_argument("kwargs", "")
        )
        try:
            view = await self.view()
            if view is not None:
                sent = await self.ask(self.desk.resume, view, step, given, self.via)
                self.answer(200, name=view.name, step=step, task_id=sent)
        except AWAY as exc:
            self.answer(503, error=str(exc))
        except (NotResumable, UnknownStep) as exc:
            self.answer(409, error=str(exc))
        except IdempotencyError as exc:
            self.answer(500, error=str(exc))
