"""``idempotency_after_wait = "last"``: one runs, one waits, and the newest call is not lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery.backends.base import KeyValueStoreBackend
from celery.canvas import chord

from celery_idempotent import ConfigurationError, IdempotentTask
from celery_idempotent.settings import environment_of
from celery_idempotent.testing.deliveries import Delivered, Message, message_of
from tests.support.schedules.newest import broken, play

SCHEDULES = 60


@pytest.fixture
def app() -> Celery:
    app = Celery("latest", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(
        idempotency_store_url=f"memory://{uuid4().hex}",
        idempotency_ttl=0,
        idempotency_after_wait="last",
    )
    return app


class Index:
    """A task that indexes one thing, and during whose first run other calls come."""

    def __init__(self, app: Celery, **options: Any) -> None:
        self.ran: list[int] = []
        self.ends: dict[int, Exception] = {}
        self.meanwhile: Callable[[], object] = lambda: None

        @app.task(
            base=IdempotentTask, name="index", idempotency_key="{thing}", shared=False, **options
        )
        def index(thing: str, version: int) -> int:
            self.ran.append(version)
            meanwhile, self.meanwhile = self.meanwhile, lambda: None
            meanwhile()
            if version in self.ends:
                raise self.ends[version]
            return version

        self.task = index

    def message(self, version: int, **options: Any) -> Message:
        return message_of(self.task, ("thing", version), **options)

    def come(self, *versions: int) -> list[Message]:
        """Have calls come one after the other while version 1 runs; what they put back."""
        waiting: list[Message] = []

        def meanwhile() -> None:
            for version in versions:
                waiting.extend(put_back(self.message(version).deliver()))

        self.meanwhile = meanwhile
        assert self.message(1).deliver().get() == 1
        return waiting


def put_back(delivered: Delivered) -> list[Message]:
    """The message of a call that waits."""
    assert delivered.state == "RETRY"
    return list(delivered.published)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("idempotency_ttl", 60),
        ("idempotency_on_running", "drop"),
        ("idempotency_on_running", "raise"),
        ("idempotency_on_enqueue", "attach"),
    ],
)
def test_it_is_for_a_window_of_0_and_calls_that_wait(app: Celery, option: str, value: Any) -> None:
    """Else the newest call would be answered, refused, or not be published."""
    with pytest.raises(ConfigurationError, match='idempotency_after_wait = "last"'):

        @app.task(base=IdempotentTask, lazy=False, shared=False, **{option: value})
        def index(thing: str) -> None: ...


@pytest.mark.parametrize("first", [0, 1, 2], ids="let in first: {}".format)
def test_the_newest_call_runs_and_answers_the_others(app: Celery, first: int) -> None:
    """Whichever of those that waited comes first when the run has ended."""
    # Given
    index = Index(app)
    waiting = index.come(2, 3, 4)
    order = [waiting[first], *(one for one in waiting if one is not waiting[first])]
    # When
    results: dict[str, int] = {}
    while order:
        message = order.pop(0)
        delivered = message.deliver()
        if delivered.state == "RETRY":
            order.extend(put_back(delivered))
        else:
            results[message.task_id] = delivered.get()
    # Then
    assert index.ran == [1, 4]
    assert [results[message.task_id] for message in waiting] == [4, 4, 4]


def test_a_failure_of_the_newest_answers_the_others(app: Celery) -> None:
    """As an outcome does."""
    # Given
    index = Index(app)
    index.ends[3] = ValueError("no index")
    second, third = index.come(2, 3)
    # When
    delivered = third.deliver()
    # Then
    assert delivered.state == "FAILURE"
    assert str(second.deliver().result) == "no index"
    assert index.ran == [1, 3]


def test_a_displaced_call_does_not_wait_for_one_run_after_another(app: Celery) -> None:
    """The run that it was told of answers it, though a newer one has the key by then."""
    # Given
    index = Index(app)
    second, third = index.come(2, 3)
    (second,) = put_back(second.deliver())
    third.deliver()
    answered: list[Delivered] = []
    index.meanwhile = lambda: answered.append(second.deliver())
    # When
    index.message(4).deliver()
    # Then
    assert [one.get() for one in answered] == [3]
    assert index.ran == [1, 3, 4]


def test_a_copy_of_a_displaced_call_gets_the_same_answer(app: Celery) -> None:
    """Also after another call has run."""
    # Given
    index = Index(app)
    second, third = index.come(2, 3)
    third.deliver()
    answered = second.deliver()
    index.message(4).deliver()
    # Then
    assert answered.again().get() == answered.get() == 3
    assert index.ran == [1, 3, 4]


def test_a_displaced_member_of_a_chord_is_counted(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its part of the chord is the newer call's result, sent once."""
    # Given
    index = Index(app)
    parts: list[tuple[str, object]] = []
    monkeypatch.setattr(
        KeyValueStoreBackend,
        "on_chord_part_return",
        lambda backend, request, state, result, **_: parts.append((request.id, result)),
    )

    @app.task(name="total", shared=False)
    def total(parts: list[int]) -> int:
        return sum(parts)

    message = index.message(2, chord=chord([], total.s()).body, group_id="group")
    waiting: list[Message] = []
    index.meanwhile = lambda: waiting.extend(
        [*put_back(message.deliver()), *put_back(index.message(3).deliver())]
    )
    index.message(1).deliver()
    second, third = waiting
    # When
    third.deliver()
    # Then
    assert second.deliver().get() == 3
    assert parts == [(second.task_id, 3)]
    assert index.ran == [1, 3]


def test_two_commands_for_who_finds_the_key_free(app: Celery) -> None:
    """The place of a call that waits is kept by the claim itself, which looks again once."""
    # Given
    index = Index(app)
    store, asked = environment_of(app).store, []
    for name in ("claim", "settle", "reserve", "confirm", "reservation", "get", "note"):
        real = getattr(store, name)
        setattr(store, name, lambda *a, _n=name, _r=real, **k: (asked.append(_n), _r(*a, **k))[1])
    # When
    index.message(1).deliver()
    # Then
    assert asked == ["claim", "settle"]
    # When it has to wait
    asked.clear()
    index.meanwhile = lambda: put_back(index.message(3).deliver())
    index.message(2).deliver()
    # Then
    assert asked == ["claim", "claim", "claim", "settle"]


@pytest.mark.long(8)
def test_schedules_lose_no_newest_call() -> None:
    """Whatever is killed, lost or refused: the last call runs after it was made, all are answered.

    ``python -m tests.support.schedules.newest FIRST LAST`` plays as many as one likes.
    """
    for seed in range(1, SCHEDULES + 1):
        found = broken(play(seed))
        assert not found, f"schedule {seed}: {found}"
