"""What operators see of calls of which only the newest runs next."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from celery import Celery

from celery_idempotent import IdempotentTask
from celery_idempotent.settings import environment_of
from celery_idempotent.testing.deliveries import message_of
from tests.support.commands import Commands


@pytest.fixture
def app() -> Celery:
    app = Celery("shop", set_as_current=False)
    app.conf.update(
        broker_url="memory://",
        result_backend="cache+memory://",
        idempotency_store_url=f"memory://{uuid.uuid4().hex}",
    )
    return app


def test_why_and_show_say_which_call_runs_next(
    app: Celery, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of the one that it has displaced; and whose outcome that one got in the end."""
    # Given
    run, waiting, told = Commands(app, capsys), [], {}

    @app.task(
        base=IdempotentTask,
        name="shop.index",
        idempotency_key="product:{product}",
        idempotency_ttl=0,
        idempotency_after_wait="last",
        shared=False,
    )
    def index(product: int, version: int) -> int:
        if version == 1:
            for newer in (2, 3):
                waiting.extend(message_of(index, (7, newer)).deliver().published)
            environment_of(app).journal._send()
            told["show"] = run("show", "product:7", "--text").out
            for message in waiting:
                told[message.task_id] = run("why", message.task_id, "--text").out
        return version

    # When
    message_of(index, (7, 1)).deliver()
    second, third = waiting
    # Then
    runs_next = f"task {third.task_id}, which came "
    assert f"next: {runs_next}" in told["show"]
    assert f"Next: {runs_next}" in flat(told[second.task_id])
    assert f"Next: {runs_next}" in flat(told[third.task_id])
    # When
    third.deliver()
    second.deliver()
    environment_of(app).journal._send()
    # Then
    answered = flat(run("why", second.task_id, "--text").out)
    assert f"It is a duplicate of task {third.task_id}" in answered
    assert "next:" not in run("show", "product:7", "--text").out


def flat(written: Any) -> str:
    """What was written, whatever line each word is on."""
    return " ".join(str(written).split())
