"""Where each tenant has a schema of its own, its name is a part of what tells calls apart."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.djangos import set_up
from tests.support.http_app import DjangoAsgiApp, DjangoAsyncApp, DjangoWsgiApp, Reply, make_celery

set_up()

# Django has to be set up first.
from celery_idempotent.django import tenants  # noqa: E402


class Connection:
    """The connection that django-tenants turns to a tenant's schema."""

    schema_name = "north"


@pytest.mark.parametrize("make_http_app", [DjangoWsgiApp, DjangoAsgiApp, DjangoAsyncApp])
def test_users_of_two_tenants_share_no_answer(
    make_http_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tenant's first user has the number 1."""
    # Given
    monkeypatch.setattr(tenants, "connection", Connection)
    http_app = make_http_app(lambda body, run: Reply(), make_celery())
    for _ in range(2):
        assert http_app.post("a").status == 201
    assert len(http_app.calls) == 1
    # When
    monkeypatch.setattr(Connection, "schema_name", "south")
    http_app.post("a")
    # Then
    assert len(http_app.calls) == 2


@pytest.mark.parametrize("identity", [None, "", 1])
def test_what_is_no_identity_stays_none(identity: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The edge says what is wrong with it."""
    monkeypatch.setattr(tenants, "connection", Connection)
    assert tenants.identity_of_tenant(identity) == identity


def test_without_tenants_nothing_is_added() -> None:
    """Neither to an identity nor to a message."""
    options: dict[str, Any] = {}
    tenants.with_schema(options)
    assert options == {}
    assert tenants.identity_of_tenant("ann") == "ann"
