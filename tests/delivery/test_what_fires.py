"""What Celery calls for a run, a duplicate and a wait: the table in the documentation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from celery import Celery, signals

from celery_idempotent import IdempotentTask
from celery_idempotent.testing import deliver

PAGE = Path(__file__).parents[2] / "docs" / "what-fires.rst"
HANDLERS = ("before_start", "on_success", "on_failure", "on_retry", "after_return")
SIGNALS = ("task_prerun", "task_postrun", "task_success", "task_failure", "task_retry")


class Called(NamedTuple):
    """A handler or a signal, for which delivery, and what it could ask."""

    task_id: str
    name: str
    replayed: bool


class Shop:
    """A task whose handlers and signals are noted.

    Args:
        body: of the task; it gets the task, and whether it is the first run.
        options: of the task.
    """

    def __init__(self, body: Callable[[Any], Any], **options: Any) -> None:
        self.called: list[Called] = []
        self._receivers: list[tuple[Any, Any]] = []
        app = Celery(f"fires-{uuid4().hex}", broker="memory://", backend="cache+memory://")
        app.conf.idempotency_store_url = f"memory://{uuid4().hex}"
        handlers = {name: self._handler(name) for name in HANDLERS}
        base = type("Listening", (IdempotentTask,), {"abstract": True, **handlers})

        @app.task(base=base, bind=True, shared=False, idempotency_key="order:{order}", **options)
        def charge(task: Any, order: int, amount: int = 0) -> Any:
            return body(task)

        self.charge: Any = charge
        for name in SIGNALS:
            self._listen(name)

    def _handler(self, name: str) -> Any:
        def handle(task: Any, *_: Any) -> None:
            self._note(task, name)

        return handle

    def _listen(self, name: str) -> None:
        def receive(sender: Any, **_: Any) -> None:
            if sender.app is self.charge.app:
                self._note(sender, name)

        getattr(signals, name).connect(receive, weak=False)
        self._receivers.append((getattr(signals, name), receive))

    def _note(self, task: Any, name: str) -> None:
        self.called.append(Called(task.request.id, name, task.idempotency.replayed))

    def deliver(self, task_id: str, *args: Any, **options: Any) -> Any:
        """Deliver a call under this id."""
        return deliver(self.charge, (1, *args), task_id=task_id, **options)

    def of(self, task_id: str) -> tuple[list[str], str]:
        """What was called for a delivery, and whether ``replayed`` was true at the end of it."""
        mine = [it for it in self.called if it.task_id == task_id]
        return [it.name for it in mine], "yes" if mine[-1].replayed else "no"

    def close(self) -> None:
        """Listen no more."""
        for signal, receive in self._receivers:
            signal.disconnect(receive)


def works(task: Any) -> str:
    return "done"


def fails(task: Any) -> None:
    raise ValueError("declined")


def retries(task: Any) -> None:
    raise task.retry(countdown=1)


MakeShop = Callable[..., Shop]


@pytest.fixture
def make_shop() -> Iterator[MakeShop]:
    shops: list[Shop] = []

    def make(body: Callable[[Any], Any] = works, **options: Any) -> Shop:
        shops.append(Shop(body, **options))
        return shops[-1]

    yield make
    for shop in shops:
        shop.close()


def while_it_runs(make: MakeShop, **options: Any) -> Shop:
    """Deliver a duplicate while the first call runs."""

    def body(task: Any) -> None:
        if task.request.id == "first":
            shop.deliver("this")

    shop = make(body, **options)
    shop.deliver("first")
    return shop


def run(make: MakeShop) -> Shop:
    shop = make()
    shop.deliver("this")
    return shop


def failing_run(make: MakeShop) -> Shop:
    shop = make(fails)
    shop.deliver("this")
    return shop


def run_to_be_retried(make: MakeShop) -> Shop:
    shop = make(retries)
    shop.deliver("this")
    return shop


def answered(make: MakeShop) -> Shop:
    shop = make()
    shop.deliver("first")
    shop.deliver("this")
    return shop


def answered_by_a_failure(make: MakeShop) -> Shop:
    shop = make(fails, idempotency_store_failures=True)
    shop.deliver("first")
    shop.deliver("this")
    return shop


def waits(make: MakeShop) -> Shop:
    return while_it_runs(make)


def refused(make: MakeShop) -> Shop:
    return while_it_runs(make, idempotency_on_running="raise")


def dropped(make: MakeShop) -> Shop:
    return while_it_runs(make, idempotency_on_running="drop")


def mismatch(make: MakeShop) -> Shop:
    shop = make()
    shop.deliver("first", idempotency_key="k")
    shop.deliver("this", 2, idempotency_key="k")
    return shop


#: As the page names them.
DELIVERIES: dict[str, Callable[[MakeShop], Shop]] = {
    "a run that succeeds": run,
    "a run that fails": failing_run,
    "a run that asks for a retry": run_to_be_retried,
    "a duplicate that gets a result": answered,
    "a duplicate that gets a stored failure": answered_by_a_failure,
    "a wait": waits,
    "a duplicate that is refused": refused,
    "a duplicate that is dropped": dropped,
    "a key with other arguments": mismatch,
}


def printed() -> dict[str, tuple[list[str], str]]:
    """The rows of the table on the page."""
    rows = re.findall(r"^   \* - (.+)\n     - (.+)\n     - (.+)$", PAGE.read_text("utf-8"), re.M)
    return {name: (re.findall(r"``(\w+)``", called), tells) for name, called, tells in rows[1:]}


@pytest.mark.parametrize("name", DELIVERIES)
def test_the_page_says_what_is_called(name: str, make_shop: MakeShop) -> None:
    """Each row is what Celery calls for such a delivery, in its order."""
    # When
    called, replayed = DELIVERIES[name](make_shop).of("this")
    # Then
    assert printed()[name] == (called, replayed)


def test_the_page_has_no_other_rows() -> None:
    """Each is run here."""
    assert set(printed()) == set(DELIVERIES)
