"""The pages to act on: forget a record, settle an unknown outcome; each asks first, then does."""

from __future__ import annotations

import json
from typing import Any, Final

from tornado import web

from celery_idempotent.core.record import State
from celery_idempotent.errors import IdempotencyError
from celery_idempotent.ops.flower import flowers
from celery_idempotent.ops.flower.handlers import AWAY, NO_RECORD, OurPage
from celery_idempotent.ops.settle import NotUnknown

__all__ = ["WAYS", "ForgetView", "ResolveView", "answer_of"]

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
        return json.loads(text)
    except ValueError as exc:
        raise web.HTTPError(
            400, "The result is no JSON; a text stands in quotes, and nothing is null"
        ) from exc


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
        )

    @web.authenticated
    async def post(self) -> None:
        self.refuse_what_must_not_change()
        name = self.get_body_argument("name")
        try:
            done = await self.act(name)
        except AWAY as exc:
            self.away(exc)
            return
        self.redirect(self.link("idempotency-record", name=name, done=done), status=303)

    async def act(self, name: str) -> str:
        """Do it; what the record's page is to say of it."""
        raise NotImplementedError


class ForgetView(_Action):
    """Forgetting a record."""

    template = "idempotency-forget.html"

    async def act(self, name: str) -> str:
        detail = await self.detail(name)
        if not await self.ask(self.desk.forget, detail.view, self.via):
            raise web.HTTPError(404, NO_RECORD)
        return "forgotten"


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
