"""Django's outbox, relay and commands, in a real project."""

from __future__ import annotations

import json
import signal

import pytest

from tests.support.django_system import DjangoSystem
from tests.support.waiting import eventually

pytestmark = pytest.mark.system

#: What a view does, from a shell of the project.
PAY = """
from django.db import transaction
from celery_idempotent.django import outbox
from tests.django_project.celery_app import deposit
for number, fails in ((1, False), (2, True), (3, False)):
    try:
        with transaction.atomic():
            print(outbox.publish(deposit.s(number, 100)).id)
            assert not fails
    except AssertionError:
        pass
try:
    outbox.publish(deposit.s(4, 100))
except transaction.TransactionManagementError as exc:
    print(exc)
"""


def test_what_commits_is_sent_and_what_rolls_back_is_not(system: DjangoSystem) -> None:
    """Two payments of three; outside of a transaction publish() refuses."""
    # Given
    system.start_worker()
    done = system.manage("shell", "-c", PAY)
    assert done.returncode == 0, done.stderr
    first, _, third, refused = [line for line in done.stdout.splitlines() if line][-4:]
    assert "transaction.atomic()" in refused
    # When
    relay = system.start("-m", "django", "idempotency", "relay", "--interval", "0.1")
    # Then
    for task_id in (first, third):
        assert system.app.AsyncResult(task_id).get(timeout=60) == 100
    assert system.balance() == 200
    assert {entry["key"] for entry in system.ledger.entries("committed")} == {1, 3}
    # And it ends when it is told to
    relay.send_signal(signal.SIGTERM)
    assert relay.wait(30) == 0
    assert system.manage("idempotency", "relay", "--once").stdout == "sent 0\n"


def test_the_relay_logs_as_the_project_says(system: DjangoSystem) -> None:
    """An outage is told by the project's own LOGGING."""
    # Given a project without its broker
    system.settings["CELERY_BROKER_URL"] = "redis://127.0.0.1:1/0"
    system.settings["LOGGING"] = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"ours": {"format": "OURS %(message)s"}},
        "handlers": {"ours": {"class": "logging.StreamHandler", "formatter": "ours"}},
        "root": {"handlers": ["ours"], "level": "INFO"},
    }
    done = system.manage("shell", "-c", PAY)
    assert done.returncode == 0, done.stderr
    # When
    relay = system.start("-m", "django", "idempotency", "relay", "--interval", "0.1")
    # Then
    eventually(lambda: "OURS the broker is away" in system.log, "the outage is told")
    relay.send_signal(signal.SIGTERM)
    assert relay.wait(30) == 0
    assert "2 waiting" in system.manage("idempotency", "relay", "--status").stdout


def test_manage_py_lists_shows_and_forgets(system: DjangoSystem) -> None:
    """As Celery's own command does, with the project's settings."""
    # Given
    system.start_worker()
    system.send("shop.deposit", 7, 100).get(timeout=60)
    # When
    listed = eventually(lambda: system.manage("idempotency", "list").stdout, "it is listed")
    shown = system.manage("idempotency", "show", "payment:7")
    forgotten = system.manage("idempotency", "forget", "payment:7", "--yes")
    # Then
    assert "payment:7" in listed
    assert json.loads(shown.stdout.splitlines()[0])["state"] == "succeeded", shown.stderr
    assert forgotten.returncode == 0, forgotten.stderr
    again = system.send("shop.deposit", 7, 100)
    assert again.get(timeout=60) == 100
    assert system.balance() == 200
    # And what is over can be deleted, and nonsense is refused
    assert system.manage("idempotency", "purge").stdout == "0 rows deleted\n"
    assert system.manage("idempotency", "nonsense").returncode != 0
    checked = system.manage("check")
    assert checked.returncode == 0, checked.stderr
