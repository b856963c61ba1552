"""What ``manage.py check`` says of names: before any worker starts."""

from __future__ import annotations

from uuid import uuid4

import pytest
from celery import Celery

from tests.support.djangos import set_up

set_up()

# Django has to be set up first.
from celery_idempotent.django import checks  # noqa: E402


@pytest.mark.parametrize(
    ("settings", "options", "words"),
    [
        ({}, {}, []),
        ({"idempotency_tll": 1}, {}, ["idempotency_ttl"]),
        ({}, {"idempotency_key": "o:{order}"}, ["base=IdempotentTask"]),
    ],
)
def test_a_name_that_nothing_reads_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, int],
    options: dict[str, str],
    words: list[str],
) -> None:
    """In the settings, or on a plain task."""
    # Given
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(idempotency_store_url=f"memory://{uuid4().hex}", **settings)

    @app.task(name="plain", shared=False, **options)
    def plain(order: int) -> None:
        """Do nothing."""

    monkeypatch.setattr(checks, "celery_app", lambda: app)
    # When
    found = list(checks.check_store())
    # Then
    assert [one.id for one in found] == ["celery_idempotent.E001"] * len(words)
    assert all(word in one.msg for word, one in zip(words, found, strict=True))
