"""What the workers load: the tasks, and the lines that they write into the ledger."""

from __future__ import annotations

import functools
import json
import os
import time
import uuid
from collections.abc import Callable
from typing import Any

from celery import Celery, current_task, signals
from celery.backends.redis import RedisBackend
from celery.exceptions import Retry
from kombu.utils.encoding import bytes_to_str
from sqlalchemy import Column, MetaData, String, Table, create_engine, insert, select
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError

from celery_idempotent import MESSAGE_ID, IdempotentTask, StoreUnavailable
from celery_idempotent.core.record import State
from celery_idempotent.core.verdicts import Claimed, Recorded
from celery_idempotent.run.transaction import BodyTransaction
from celery_idempotent.stores.redis.store import RedisStore
from celery_idempotent.stores.sql.store import SqlStore
from tests.chaos.marks import COPY
from tests.support.ledger import Ledger
from tests.support.tasks import SETTINGS_VARIABLE

metadata = MetaData()
#: What sessions wrote: nothing but the library keeps a key from being here twice.
booked = Table(
    "chaos_booked",
    metadata,
    Column("row", String(40), primary_key=True),
    Column("key", String(80), nullable=False, index=True),
)
#: What keyed inserts wrote: the same ``key_for`` in every run of a key.
inserted = Table(
    "chaos_inserted",
    metadata,
    Column("row", String(40), primary_key=True),
    Column("key", String(80), nullable=False, index=True),
)


class Work:
    """What the bodies of one app share: the ledger, and the database for keyed inserts."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.ledger = Ledger(settings["test_ledger"])
        self.url: str = settings["chaos_database"]
        self._engine: tuple[int, Engine] | None = None

    @property
    def engine(self) -> Engine:
        """Connections of this process's own."""
        if self._engine is None or self._engine[0] != os.getpid():
            waits = {"timeout": 30} if self.url.startswith("sqlite") else {}
            self._engine = (os.getpid(), create_engine(self.url, connect_args=waits))
        return self._engine[1]

    def write(self, event: str, **fields: Any) -> None:
        """Append one event with the time, by a clock that all processes share."""
        self.ledger.write(event, at=time.monotonic(), **fields)

    def run(self, task: Any, key: str, body: Callable[[], Any]) -> Any:
        """Note when a body begins and when it ends; one that is killed never ends."""
        fields = {
            "key": key,
            "id": task.request.id,
            "token": task.idempotency.token,
            "node": task.request.hostname,
            "copy": vars(task.request).get(COPY),
        }
        self.write("begin", **fields)
        state, value = "raised", None
        try:
            value = body()
            state = "returned"
        except Retry:
            state = "retried"
            raise
        except BaseException as exc:
            value = repr(exc)
            raise
        else:
            return value
        finally:
            self.write("end", state=state, value=value, **fields)

    def effect(self, task: Any, key: str, step: str = "", asked: float = 0.0) -> str:
        """Have an effect, and give its receipt; ``asked``: when a step asked for the key."""
        receipt = uuid.uuid4().hex
        token = task.idempotency.token
        more = {"asked": asked} if step else {}
        self.write("effect", key=key, step=step, token=token, receipt=receipt, **more)
        return receipt


def make_app(settings: dict[str, Any]) -> Celery:
    """An app with all tasks, for a worker or for the producer."""
    app = Celery("chaos")
    app.conf.update(settings)
    _define(app, Work(settings))
    return app


def _define(app: Celery, work: Work) -> None:
    def task(**options: Any) -> Any:
        chosen = {"bind": True, "base": IdempotentTask, "shared": False, "max_retries": 100}
        return app.task(**{**chosen, "idempotency_key": "{key}", **options})

    @task(name="chaos.charge")
    def charge(self: Any, key: str, before: float, after: float) -> Any:
        """One effect."""

        def body() -> str:
            time.sleep(before)
            receipt = work.effect(self, key)
            time.sleep(after)
            return receipt

        return work.run(self, key, body)

    @task(name="chaos.flaky")
    def flaky(self: Any, key: str, before: float, after: float, retries: int) -> Any:
        """One effect, after so many retries."""

        def body() -> str:
            time.sleep(before)
            if self.request.retries < retries:
                raise self.retry(countdown=0.2)
            receipt = work.effect(self, key)
            time.sleep(after)
            return receipt

        return work.run(self, key, body)

    @task(name="chaos.steps")
    def steps(self: Any, key: str, before: float, after: float) -> Any:
        """Three effects, each a step, and the key asked for just before each."""

        def one(step: str) -> str:
            time.sleep(before / 3)
            asked = _still_holds(self)
            receipt = work.effect(self, key, step, asked)
            time.sleep(after / 3)
            return receipt

        def body() -> list[str]:
            return [self.idempotency.step(step, one, step) for step in ("a", "b", "c")]

        return work.run(self, key, body)

    @task(name="chaos.insert")
    def insert_row(self: Any, key: str, before: float, after: float) -> Any:
        """A row under a key that is the same in every run."""

        def body() -> str:
            time.sleep(before)
            row = self.idempotency.key_for("row")
            try:
                with work.engine.begin() as connection:
                    connection.execute(insert(inserted).values(row=row, key=key))
            except IntegrityError:
                with work.engine.connect() as connection:
                    wanted = select(inserted.c.row).where(inserted.c.row == row)
                    assert connection.scalars(wanted).one() == row
            time.sleep(after)
            return row

        return work.run(self, key, body)

    @task(name="chaos.book")
    def book(self: Any, key: str, before: float, after: float) -> Any:
        """A row in the session, committed together with the record."""

        def body() -> str:
            time.sleep(before)
            row = uuid.uuid4().hex
            self.idempotency.session.execute(insert(booked).values(row=row, key=key))
            time.sleep(after)
            return row

        return work.run(self, key, body)

    @task(name="chaos.tail", idempotency_key=MESSAGE_ID)
    def tail(self: Any, value: Any) -> Any:
        """The end of a chain or a chord: one effect for each message."""
        key = f"tail-{self.request.id}"
        return work.run(self, key, lambda: [work.effect(self, key), value])


def _still_holds(task: Any) -> float:
    """Ask the store until it says that the run holds its key; return when that was asked."""
    while True:
        asked = time.monotonic()
        try:
            task.idempotency.check()
        except StoreUnavailable:
            time.sleep(0.1)
        else:
            return asked


def mark_messages(work: Work) -> None:
    """Give each message that is published a mark, and note it once the broker has it."""

    @signals.before_task_publish.connect(weak=False)
    def _mark(headers: dict[str, Any], **_: Any) -> None:
        headers[COPY] = uuid.uuid4().hex

    @signals.after_task_publish.connect(weak=False)
    def _sent(headers: dict[str, Any], routing_key: str, **_: Any) -> None:
        fields = {"copy": headers.get(COPY), "id": headers["id"], "queue": routing_key}
        sender = current_task.request if current_task else None
        if sender is not None and headers.get("parent_id") == sender.id != headers["id"]:
            # A link or a chain's next: who sent it, and by which delivery.
            fields.update(sender=sender.id, by=vars(sender).get(COPY))
        work.write("sent", **fields)


def _around(cls: Any, name: str, wrap: Callable[..., Any]) -> None:
    """Put ``wrap(real, *args)`` in the place of a method."""
    real = getattr(cls, name)

    @functools.wraps(real)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrap(real, *args, **kwargs)

    setattr(cls, name, wrapped)


def _watch_claims(work: Work) -> None:
    """Note which runs have got their key, and when they had asked for it."""

    def claim(real: Any, self: Any, key: str, *args: Any, **kwargs: Any) -> Any:
        asked = time.monotonic()
        verdict = real(self, key, *args, **kwargs)
        if isinstance(verdict, Claimed):
            work.write("claimed", key=_key_in(key), token=verdict.token, asked=asked)
        return verdict

    for store in (RedisStore, SqlStore):
        _around(store, "claim", claim)


def _watch_ends(work: Work) -> None:
    """Note what the store said to the end of each run, and which steps are in it."""

    def ended(key: str, event: Any, answer: Any) -> None:
        fields = {"key": _key_in(key), "token": event.record.token}
        taken = isinstance(answer, Recorded)
        work.write("settled", state=event.record.state.name.lower(), taken=taken, **fields)
        if taken and event.record.state is State.SUCCEEDED:
            work.write("recorded", step="", **fields)

    def settle(real: Any, self: Any, key: str, event: Any, *args: Any) -> Any:
        answer = real(self, key, event, *args)
        ended(key, event, answer)
        return answer

    def commit(real: Any, self: Any, event: Any) -> Any:
        answer = real(self, event)
        ended(self._lease.key, event, answer)
        return answer

    def step(real: Any, self: Any, renewal: Any, name: str, packed: bytes) -> Any:
        answer = real(self, renewal, name, packed)
        if isinstance(answer, Recorded):
            key, token = _key_in(renewal.key), renewal.held.token
            work.write("recorded", key=key, token=token, step=name)
        return answer

    _around(BodyTransaction, "commit", commit)
    for store in (RedisStore, SqlStore):
        _around(store, "settle", settle)
        _around(store, "step", step)


def _watch_answers(work: Work) -> None:
    """Note each state that the result backend gets."""

    def stored(real: Any, self: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        answer = real(self, key, value, *args, **kwargs)
        if bytes_to_str(key).startswith("celery-task-meta-"):
            meta = json.loads(value)
            work.write("stored", id=meta["task_id"], state=meta["status"], value=meta["result"])
        return answer

    _around(RedisBackend, "set", stored)


def _watch_chords(work: Work) -> None:
    """Note when Celery begins to count a chord's part, and when it is done with that."""
    real = RedisBackend.on_chord_part_return

    @functools.wraps(real)
    def counted(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if not request.group:
            return real(self, request, *args, **kwargs)
        work.write("counting", id=request.id)
        answer = real(self, request, *args, **kwargs)
        work.write("counted", id=request.id)
        return answer

    RedisBackend.on_chord_part_return = counted


def _key_in(record: str) -> str:
    """The key as the bodies write it, from the name of its record (``prefix:{task:key}``)."""
    task, _, key = record.partition(":{")[2].rstrip("}").partition(":")
    return f"tail-{key}" if task == "chaos.tail" else key


if SETTINGS_VARIABLE in os.environ:
    _settings = json.loads(os.environ[SETTINGS_VARIABLE])
    app = make_app(_settings)
    _work = Work(_settings)
    mark_messages(_work)
    _watch_claims(_work)
    _watch_ends(_work)
    _watch_answers(_work)
    _watch_chords(_work)

    @signals.worker_ready.connect
    def _ready(sender: Any, **_: Any) -> None:
        _work.write("ready", node=sender.hostname)

    @signals.worker_process_init.connect
    def _child(**_: Any) -> None:
        _work.write("child", parent=os.getppid())

    @signals.task_received.connect
    def _received(request: Any, **_: Any) -> None:
        mark = request.request_dict.get(COPY)
        _work.write("received", copy=mark, id=request.id)
