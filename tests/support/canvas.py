"""Tasks that are made to be composed, with and without the library, and what each process notes.

Every body writes down how it was called and where in its composition it stood.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery, signals
from celery.canvas import maybe_signature
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.result import allow_join_result

from celery_idempotent import MESSAGE_ID, IdempotentTask
from tests.support.ledger import Ledger


def make_app(settings: dict[str, Any]) -> Celery:
    """An app with these tasks; ``test_canvas`` says whether they are ``"plain"`` or guarded."""
    guarded = {"task_cls": IdempotentTask} if settings["test_canvas"] == "guarded" else {}
    app = Celery("canvas", **guarded)
    app.conf.update(settings)
    if guarded:
        app.conf.idempotency_key = MESSAGE_ID
    _define(app, Ledger(settings["test_ledger"]))
    return app


#: What the library adds to a message, and what names the process that sent it.
_OURS = {"celery-idempotency", "idempotency-key", "origin"}


def note_message(
    ledger: Ledger, headers: dict[str, Any], body: Any, properties: dict[str, Any]
) -> None:
    """Note a message that is being sent, all of it that is Celery's."""
    embed = body[2]
    shown = {name: value for name, value in headers.items() if name not in _OURS}
    for name in ("eta", "expires"):
        shown[name] = shown[name] is not None
    ledger.write(
        "sent",
        id=headers["id"],
        call=f"{headers['task'].removeprefix('canvas.')}{headers['argsrepr']}",
        group=headers["group"],
        root=headers["root_id"],
        parent_id=headers["parent_id"],
        chord=embed["chord"] and _first_of(embed["chord"]),
        headers=json.loads(json.dumps(shown, default=repr)),
        embed=json.loads(json.dumps(embed, default=repr)),
        correlation=properties["correlation_id"],
        priority=properties.get("priority"),
    )


def _first_of(signature: dict[str, Any]) -> str | None:
    """The id of what runs first of a signature, which may be a chain."""
    while signature["kwargs"].get("tasks"):
        signature = signature["kwargs"]["tasks"][0]
    task_id: str | None = signature["options"].get("task_id")
    return task_id


@contextmanager
def noting_messages(ledger: Ledger) -> Iterator[None]:
    """Note each message that this process sends meanwhile."""

    def note(headers: dict[str, Any], body: Any, properties: Any, **_: Any) -> None:
        note_message(ledger, headers, body, properties)

    signals.before_task_publish.connect(note, weak=False)
    try:
        yield
    finally:
        signals.before_task_publish.disconnect(note)


def install(ledger: Ledger) -> None:
    """Note in a worker what it sends, and which messages it drops."""

    @signals.before_task_publish.connect(weak=False)
    def _sent(headers: dict[str, Any], body: Any, properties: Any, **_: Any) -> None:
        note_message(ledger, headers, body, properties)

    @signals.task_revoked.connect(weak=False)
    def _revoked(request: Any, terminated: bool, expired: bool, **_: Any) -> None:
        ledger.write("revoked", id=request.id, terminated=terminated, expired=expired)


def _define(app: Celery, ledger: Ledger) -> None:
    def task(name: str, **options: Any) -> Any:
        options.setdefault("bind", True)
        return app.task(name=f"canvas.{name}", shared=False, **options)

    def began(self: Any, *values: Any) -> None:
        request = self.request
        ledger.write(
            "body",
            name=self.name,
            values=values,
            id=request.id,
            parent=request.parent_id,
            root=request.root_id,
            group=request.group,
            index=request.group_index,
            retries=request.retries,
            nesting=request.replaced_task_nesting,
            stamped=sorted(request.stamped_headers or ()),
            stamps=request.stamps,
            ignores_result=request.ignore_result,
            mark=(request.headers or {}).get("mark"),
            priority=(request.delivery_info or {}).get("priority"),
            limits=request.timelimit,
        )

    _define_sums(app, task, began)
    _define_endings(app, task, began)
    _define_replacing(app, task, began)

    @task("hold")
    def hold(self: Any, gate: str, patient: bool = True) -> str:
        """Wait at a gate; one that is not patient takes a soft time limit for an answer."""
        began(self, gate)
        try:
            ledger.hold(gate)
        except SoftTimeLimitExceeded:
            if patient:
                raise
            return "too late"
        return gate


def _define_sums(app: Celery, task: Any, began: Any) -> None:
    @task("add")
    def add(self: Any, x: Any, y: Any = 0) -> Any:
        """The plainest of tasks."""
        began(self, x, y)
        return x + y

    @task("total")
    def total(self: Any, numbers: Any) -> Any:
        """What a chord's body does; in which order its parts come is Celery's own affair."""
        began(self, sorted(numbers))
        return sum(numbers)

    @task("echo")
    def echo(self: Any, *values: Any, **named: Any) -> Any:
        """Give back what came."""
        began(self, values, named)
        return values[0] if len(values) == 1 and not named else [list(values), named]

    @task("place")
    def place(self: Any, value: Any) -> list[Any]:
        """Say where the run stands in its composition."""
        began(self, value)
        return [self.request.root_id, self.request.parent_id, value]

    @task("spawn")
    def spawn(self: Any, how_many: int) -> int:
        """Call others in the body: they are its children."""
        began(self, how_many)
        for number in range(how_many):
            app.tasks["canvas.add"].delay(number, number)
        return how_many

    @task("inline")
    def inline(self: Any, other: Any) -> Any:
        """Run another signature within the body."""
        began(self)
        with allow_join_result():
            return maybe_signature(other, app=app).apply().get()

    @task("unsaid", ignore_result=True)
    def unsaid(self: Any, value: Any) -> Any:
        """A task whose result is not kept."""
        began(self, value)
        return value

    @task("odd")
    def odd(self: Any) -> Any:
        """Return what no serializer takes."""
        began(self)
        return object()


def _define_endings(app: Celery, task: Any, began: Any) -> None:
    @task("fail")
    def fail(self: Any, *values: Any) -> None:
        """Fail for good."""
        began(self, values)
        raise ValueError(f"failed for {values}")

    @task("twice")
    def twice(self: Any, value: Any, countdown: float = 0) -> Any:
        """Ask for one retry, then give back what came."""
        began(self, value)
        if not self.request.retries:
            raise self.retry(countdown=countdown)
        return value

    @task("other_way")
    def other_way(self: Any, x: Any, y: Any = 0) -> Any:
        """Ask for one retry with other arguments and options."""
        began(self, x, y)
        if not self.request.retries:
            raise self.retry(args=[x], kwargs={"y": 5}, countdown=0, priority=3, expires=60)
        return x + y

    @task("flaky", autoretry_for=(ConnectionError,), default_retry_delay=0, max_retries=2)
    def flaky(self: Any, value: Any, fails: int) -> Any:
        """Fail so many times in a way that Celery tries again by itself."""
        began(self, value)
        if self.request.retries < fails:
            raise ConnectionError(f"attempt {self.request.retries}")
        return value

    @task("never")
    def never(self: Any, value: Any) -> None:
        """Use up all retries."""
        began(self, value)
        raise self.retry(exc=KeyError(f"never {value}"), countdown=0, max_retries=1)

    @task("ignore")
    def ignore(self: Any, *values: Any) -> None:
        """Leave without a state."""
        began(self, values)
        raise Ignore

    @task("reject")
    def reject(self: Any, *values: Any) -> None:
        """Refuse the message."""
        began(self, values)
        raise Reject("not today", requeue=False)

    @task("errback_by_id")
    def errback_by_id(self: Any, failed: str) -> None:
        """The form that is sent as a message."""
        began(self, failed)

    @task("errback", bind=False)
    def errback(request: Any, exc: BaseException, traceback: Any) -> None:
        """The form that is called in the process of the failed task: Celery binds none of these."""
        what = request.id, f"{type(exc).__name__}: {exc}", bool(traceback)
        began(app.tasks["canvas.errback"], *what)

    @task("errback_fails")
    def errback_fails(self: Any, failed: str) -> None:
        """An errback that fails itself."""
        began(self, failed)
        raise RuntimeError("the errback failed")


def _define_replacing(app: Celery, task: Any, began: Any) -> None:
    @task("become")
    def become(self: Any, *values: Any, other: Any) -> Any:
        """Be replaced by another signature, which is given what came."""
        began(self, values)
        signature = maybe_signature(other, app=app)
        raise self.replace(signature.clone(values) if values else signature)

    @task("nest")
    def nest(self: Any, depth: int) -> Any:
        """Be replaced by itself, until it is done."""
        began(self, depth)
        if depth:
            raise self.replace(self.si(depth - 1) | app.tasks["canvas.add"].s(1))
        return 0

    @task("more")
    def more(self: Any, number: int) -> int:
        """Add a part to the chord of this one, with the same result: their order is chance."""
        began(self, number)
        self.add_to_chord(app.tasks["canvas.add"].si(number, 0))
        return number
