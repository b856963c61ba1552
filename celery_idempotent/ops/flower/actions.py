"""The pages to act on: forget a record, settle it, run its call again; each asks, then does."""

from __future__ import annotations

from typing import Any, Final

from tornado import web

from celery_idempotent.core.record import State
from celery_idempotent.core.step import name_of
from celery_idempotent.errors import IdempotencyError, UnknownStep
from celery_idempotent.ops.flower import flowers
from celery_idempotent.ops.flower.handlers import AWAY, OurPage
from celery_idempotent.ops.resume import Arguments, NotResumable
from celery_idempotent.ops.settle import NotUnknown, read_result

#: How an unknown outcome can be settled.
WAYS: Final = {
    "succeeded": State.SUCCEEDED,
    "failed": State.FAILED,
    "rerun": State.RELEASED,
}


def answer_of(how: str, text: str) -> Any:
    """Read what goes with a way of settling: a result as JSON, a failure's message, or nothing.

    Raises:
        HTTPError: 400, there is no such way, or it is no JSON.
    """
    if how not in WAYS:
        raise web.HTTPError(400, f"Say how: {', '.join(WAYS)}")
    if how != "succeeded":
        return text if how == "failed" else None
    try:
        return read_result(text)
    except ValueError as exc:
        raise web.HTTPError(400, str(exc)) from exc


def arguments_of(args: str, kwargs: str) -> Arguments | None:
    """Read what a task is to be called with; ``None``: nothing was given.

    Raises:
        HTTPError: 400, it is no JSON list and object.
    """
    try:
        return Arguments.read(args, kwargs)
    except ValueError as exc:
        raise web.HTTPError(400, str(exc)) from exc


class _Action(OurPage):
    """A page that asks, and the deed."""

    template: str

    def set_default_headers(self) -> None:
        """As Flower's; and no other site may put this page under its reader's pointer."""
        super().set_default_headers()
        self.set_header("Content-Security-Policy", "frame-ancestors 'self'")

    @web.authenticated
    async def get(self) -> None:
        try:
            detail = await self.detail(self.get_query_argument("name"))
        except AWAY as exc:
            self.away(exc)
            return
        self.render(
            self.template,
            detail=detail,
            view=detail.view,
            read_only=self.read_only,
            link=self.link,
            span=flowers.span,
            name_of=name_of,
        )

    @web.authenticated
    async def post(self) -> None:
        self.refuse_what_must_not_change()
        name = self.get_body_argument("name")
        try:
            done = await self.act(name)
            # Of a key that was only reserved nothing is left.
            is_left = await self.ask(self.desk.show, name) is not None
        except AWAY as exc:
            self.away(exc)
            return
        page = self.link("idempotency-record", name=name, done=done)
        self.redirect(page if is_left else self.link("idempotency"), status=303)

    async def act(self, name: str) -> str:
        """Do it; what the record's page is to say of it."""
        raise NotImplementedError


class ForgetView(_Action):
    """Forgetting a record."""

    template = "idempotency-forget.html"

    async def act(self, name: str) -> str:
        detail = await self.detail(name)
        done = await self.ask(self.desk.forget, detail.view, self.via)
        return "forgotten" if done else "was free"


class ResolveView(_Action):
    """Settling an unknown outcome."""

    template = "idempotency-resolve.html"

    async def act(self, name: str) -> str:
        how = self.get_body_argument("how", "")
        answer = answer_of(how, self.get_body_argument("answer", ""))
        detail = await self.detail(name)
        try:
            await self.ask(self.desk.resolve, detail.view, WAYS[how], answer, self.via)
        except NotUnknown as exc:
            raise web.HTTPError(409, str(exc)) from exc
        except AWAY:
            raise
        except IdempotencyError as exc:
            raise web.HTTPError(500, str(exc)) from exc
        return "resolved"


class ResumeView(_Action):
    """Running a call again."""

    template = "idempotency-resume.html"

    async def act(self, name: str) -> str:
        step = self.get_body_argument("step", "")
        given = arguments_of(
            self.get_body_argument("args", ""), self.get_body_argument("kwargs", "")
        )
        detail = await self.detail(name)
        try:
            sent = await self.ask(self.desk.resume, detail.view, step, given, self.via)
        except (NotResumable, UnknownStep) as exc:
            raise web.HTTPError(409, str(exc)) from exc
        except AWAY:
            raise
        except IdempotencyError as exc:
            raise web.HTTPError(500, str(exc)) from exc
        return "resumed" if sent else "free"
