"""Admin pages that list, search, show, free and settle keys, and run their calls again."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timezone
from itertools import islice
from typing import Any, Final

from django.contrib import admin, messages
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Value
from django.http import Http404, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.views.decorators.http import require_POST

from celery_idempotent.core.record import Record, State
from celery_idempotent.core.step import name_of
from celery_idempotent.django import models
from celery_idempotent.django.project import celery_app
from celery_idempotent.django.store import DjangoStore
from celery_idempotent.errors import IdempotencyError, StoreError
from celery_idempotent.ops import records, resume, settle
from celery_idempotent.ops.history import History, JournalEntry
from celery_idempotent.ops.sentences import duration, in_its_queue, sentence, times
from celery_idempotent.ops.unsettled import RUNBOOK
from celery_idempotent.ops.views import HELD, LEASE_OVER, RecordDetail
from celery_idempotent.settings import Environment, environment_of
from celery_idempotent.stores.deciding import LONGEST

#: How many events of a record are shown.
_STORY: Final = 100
_HOW: Final = {
    "succeeded": State.SUCCEEDED,
    "failed": State.FAILED,
    "rerun": State.RELEASED,
}


class _OnlyToRead(admin.ModelAdmin):
    """Pages without editing: only the store and the outbox write these rows."""

    def has_add_permission(self, request: Any, *_: Any) -> bool:
        return False

    def has_change_permission(self, request: Any, *_: Any) -> bool:
        return False

    def has_delete_permission(self, request: Any, *_: Any) -> bool:
        return False


@admin.register(models.Record)
class RecordAdmin(_OnlyToRead):
    """The records of a store ``django://``; the records of other stores are not shown here."""

    list_display = ("shown_key", "task", "shown_state", "owner_id", "claimed", "expires")
    list_filter = ("state", "task")
    search_fields = ("key", "task", "owner_id", "record_key")
    ordering = ("-token",)
    show_full_result_count = False
    list_per_page = 50

    def has_module_permission(self, request: Any) -> bool:
        """Whether the records are on the index page."""
        return _environment() is not None and super().has_module_permission(request)

    def get_queryset(self, request: Any) -> Any:
        """Return the rows that have not expired, from the store's database."""
        environment = _environment()
        if environment is None:
            return models.Record._base_manager.none()
        store: Any = environment.store
        rows = models.Record._base_manager.using(store.alias).defer("record")
        now_ms = Value(store.now_ms(), models.Record._meta.get_field("expires_ms"))
        return rows.annotate(now_ms=now_ms).filter(expires_ms__gt=now_ms).order_by(*self.ordering)

    @admin.display(description="key", ordering="key")
    def shown_key(self, row: Any) -> str:
        """The key, cut to the width of a cell."""
        return row.key if len(row.key) <= 80 else f"{row.key[:77]}..."

    @admin.display(description="state", ordering="state")
    def shown_state(self, row: Any) -> str:
        """The state, and whether a run's lease is over."""
        if row.state not in HELD:
            return str(row.state)
        with suppress(StoreError):  # reads one more column, of the few that are held
            if Record.unpack(bytes(row.record)).until_ms <= row.now_ms:
                return f"{row.state}, lease over"
        return str(row.state)

    @admin.display(description="claimed", ordering="token")
    def claimed(self, row: Any) -> datetime | None:
        """When it was claimed last, unless it was freed since; the token is that instant."""
        if not row.owner_id:
            return None
        return datetime.fromtimestamp(row.token / 1e6, timezone.utc)

    @admin.display(description="kept until", ordering="expires_ms")
    def expires(self, row: Any) -> datetime:
        """When the record expires."""
        return datetime.fromtimestamp(row.expires_ms / 1e3, timezone.utc)

    def get_urls(self) -> list[Any]:
        """Add the pages that free and settle a key, and run its call again."""
        site = self.admin_site.admin_view
        own = [
            path(f"<path:object_id>/{name}/", site(require_POST(view)), name=f"idempotency_{name}")
            for name, view in (
                ("forget", self.forget_view),
                ("resolve", self.resolve_view),
                ("resume", self.resume_view),
            )
        ]
        return own + super().get_urls()

    # --- one record ------------------------------------------------------------------------------

    def change_view(
        self, request: Any, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Show a record, with the calls that were answered with its outcome."""
        name = unquote(object_id)
        if not self.has_view_permission(request):
            raise PermissionDenied
        environment = _environment()
        detail = None
        if environment is not None:
            detail = records.show(environment.store, environment.prefix, name)
        if environment is None or detail is None:
            raise Http404("there is no such record; it may have expired")
        claimed = History(environment.store, environment.prefix).claimed_at(detail.view)
        story = _story(environment, name)
        told = [
            (
                datetime.fromtimestamp(event.at_ms / 1000, timezone.utc),
                event.task_id or "",
                sentence(event),
            )
            for event in story
        ]
        context = {
            **self.admin_site.each_context(request),
            "title": f"{detail.view.task} {detail.view.key}",
            "opts": self.opts,
            "detail": detail,
            "view": detail.view,
            "lease_over": LEASE_OVER,
            "lease_left": duration(detail.lease_left),
            "kept_for": duration(detail.window_left),
            "interrupted": detail.view.interruptions and times(detail.view.interruptions),
            "runbook": RUNBOOK,
            "claimed": claimed and datetime.fromtimestamp(claimed, timezone.utc),
            "duplicates": [one.task_id for one in story if one.what == "deduplicated"],
            "story": told,
            "queued": detail.queued and in_its_queue(detail.queued),
            "may_forget": request.user.has_perm("celery_idempotent.forget_record"),
            "may_resolve": detail.view.state == "unknown"
            and request.user.has_perm("celery_idempotent.resolve_record"),
            "may_resume": resume.may_be_resumed(detail)
            and request.user.has_perm("celery_idempotent.resume_record"),
            "starts": [(step.name, name_of(step.name)) for step in detail.steps],
            **{
                f"{deed}_url": reverse(
                    f"{self.admin_site.name}:idempotency_{deed}", args=[quote(name)]
                )
                for deed in ("forget", "resolve", "resume")
            },
        }
        return TemplateResponse(request, "celery_idempotent/record.html", context)

    def forget_view(self, request: Any, object_id: str) -> HttpResponse:
        """Free a key, so that its next call runs."""
        environment, detail = self._asked(request, object_id, "forget_record")
        done = settle.forget(environment, detail.view, f"admin: {request.user}")
        if done:
            self._log(request, detail.view.name, "freed")
            messages.success(request, "The key is free: its next call runs.")
        else:
            messages.warning(request, "The key was free already.")
        return self._back(object_id)

    def resolve_view(self, request: Any, object_id: str) -> HttpResponse:
        """Settle an unknown outcome."""
        environment, detail = self._asked(request, object_id, "resolve_record")
        how = _HOW.get(request.POST.get("how", ""))
        answer: Any = request.POST.get("answer", "")
        if how is None:
            messages.error(request, "Choose how the run ended.")
            return self._back(object_id)
        if how is State.SUCCEEDED:
            try:
                answer = settle.read_result(answer)
            except ValueError as exc:
                messages.error(request, f"Nothing was settled. {exc}")
                return self._back(object_id)
        try:
            settle.resolve(
                celery_app(), environment, detail.view, how, answer, f"admin: {request.user}"
            )
        except IdempotencyError as exc:
            messages.error(request, str(exc))
        else:
            self._log(request, detail.view.name, f"resolved: {request.POST['how']}")
            messages.success(request, "The outcome is settled.")
        return self._back(object_id)

    def resume_view(self, request: Any, object_id: str) -> HttpResponse:
        """Run a call again, from one of its steps on or behind the finished ones."""
        environment, detail = self._asked(request, object_id, "resume_record")
        step = request.POST.get("step")
        if step is None:
            messages.error(request, "Choose where it goes on.")
            return self._back(object_id)
        app = celery_app()
        app.loader.import_default_modules()
        try:
            given = resume.Arguments.read(
                request.POST.get("args", ""), request.POST.get("kwargs", "")
            )
            plan = resume.plan(app, environment, detail.view, step or None, given)
            sent = resume.resume(app, environment, plan, f"admin: {request.user}")
        except (IdempotencyError, ValueError) as exc:
            messages.error(request, str(exc))
            return self._back(object_id)
        self._log(request, detail.view.name, f"resumed {plan.text}")
        messages.success(
            request,
            "Its call is published again."
            if sent
            else "The key is free, and its next run goes on behind the steps below. Its arguments "
            "are not known: call the task again with the same key.",
        )
        return self._back(object_id)

    def _asked(
        self, request: Any, object_id: str, permission: str
    ) -> tuple[Environment, RecordDetail]:
        if not request.user.has_perm(f"celery_idempotent.{permission}"):
            raise PermissionDenied
        environment = _environment()
        if environment is not None:
            detail = records.show(environment.store, environment.prefix, unquote(object_id))
            if detail is not None:
                return environment, detail
        raise Http404("there is no such record; it may have expired")

    def _log(self, request: Any, name: str, what: str) -> None:
        row = models.Record(record_key=name[:LONGEST], key=name)
        self.log_change(request, row, what)

    def _back(self, object_id: str) -> HttpResponse:
        name = f"{self.admin_site.name}:celery_idempotent_record_change"
        return HttpResponseRedirect(reverse(name, args=[object_id]))


@admin.register(models.Message)
class MessageAdmin(_OnlyToRead):
    """The calls that wait in the outbox."""

    list_display = ("task", "task_id", "created", "due", "attempts", "error")
    search_fields = ("task", "task_id")
    ordering = ("id",)


def _environment() -> Environment | None:
    """Return the store and its times; ``None`` if it is not one of the project's databases."""
    try:
        environment = environment_of(celery_app())
    except IdempotencyError:
        return None
    return environment if isinstance(environment.store, DjangoStore) else None


def _story(environment: Environment, name: str) -> list[JournalEntry]:
    events = History(environment.store, environment.prefix).events()
    return list(islice((told for told in events if told.name == name), _STORY))
