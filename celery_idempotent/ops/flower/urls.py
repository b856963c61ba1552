"""The addresses of the pages and of the API."""

from __future__ import annotations

from typing import Any

from tornado.web import url

from celery_idempotent.ops.flower import actions, api
from celery_idempotent.ops.flower import handlers as pages
from celery_idempotent.ops.flower.desk import Desk
from celery_idempotent.ops.flower.seams import PatchedLoader


def handlers(loader: PatchedLoader) -> list[Any]:
    """Give them, each with the desk that they share."""
    shared = {"desk": Desk(loader)}
    return [
        url(r"/idempotency", pages.RecordsView, shared, name="idempotency"),
        url(r"/idempotency/record", pages.RecordView, shared, name="idempotency-record"),
        url(r"/idempotency/forget", actions.ForgetView, shared, name="idempotency-forget"),
        url(r"/idempotency/resolve", actions.ResolveView, shared, name="idempotency-resolve"),
        url(r"/idempotency/resume", actions.ResumeView, shared, name="idempotency-resume"),
        url(r"/idempotency/counts", pages.CountsView, shared, name="idempotency-counts"),
        url(r"/api/idempotency/records", api.RecordsApi, shared),
        url(r"/api/idempotency/record", api.RecordApi, shared),
        url(r"/api/idempotency/stats", api.StatsApi, shared),
        url(r"/api/idempotency/forget", api.ForgetApi, shared),
        url(r"/api/idempotency/resolve", api.ResolveApi, shared),
        url(r"/api/idempotency/resume", api.ResumeApi, shared),
    ]
