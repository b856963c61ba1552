"""The admin pages of a real project, in a real browser."""

from __future__ import annotations

import urllib.error
import urllib.request
from contextlib import suppress

import pytest

from celery_idempotent.core.record import Owner, Record, State
from celery_idempotent.core.verdicts import Claim, Claimed, Settle
from celery_idempotent.testing.contract.kit import replace
from tests.support.chromium import Chromium
from tests.support.django_system import DjangoSystem
from tests.support.waiting import eventually
from tests.support.webshop import free_port

pytestmark = [
    pytest.mark.system,
    pytest.mark.parametrize("system", ["postgresql"], indirect=True),
]

#: What somebody tries who may only look.
TRY = """
from django.test import Client
from celery_idempotent.django import models
client = Client()
assert client.login(username="viewer", password="secret")
(row,) = models.Record.objects.filter(task="shop.deposit")
from django.contrib.admin.utils import quote
page = f"/admin/celery_idempotent/record/{quote(row.pk)}/"
shown = client.get(page + "change/")
print([shown.status_code, b'id="forget"' in shown.content, b'id="resolve"' in shown.content])
print([client.post(page + what + "/").status_code for what in ("forget", "resolve")])
print([client.get(page + what + "/").status_code for what in ("forget", "delete")])
add = "/admin/celery_idempotent/record/add/"
print([Client().post(page + "forget/").status_code, client.get(add).status_code])
"""


def leave_unknown(alias: str) -> None:
    """A record whose run was cut off, and nobody knows how it ended."""
    from celery_idempotent.django.store import DjangoStore

    store, key = DjangoStore(alias), "idempotent:{shop.deposit:payment:99}"
    candidate = Record(State.RUNNING, 0, owner=Owner("task-99").pack(), nonce=b"12345678")
    verdict = store.claim(key, Claim(candidate, lease_ms=1000, keep_ms=3_600_000))
    assert isinstance(verdict, Claimed)
    held = replace(candidate, token=verdict.token, state=State.UNKNOWN, nonce=b"")
    store.settle(key, Settle(held, 0, 3_600_000))


@pytest.mark.timeout(240)
def test_an_operator_finds_frees_and_settles_keys(system: DjangoSystem, chromium: Chromium) -> None:
    """From the list to a key, its duplicates, and the next run; from what is unknown to that."""
    # Given a payment that was asked for twice, and one that was cut off
    from django.contrib.auth.models import User

    User.objects.db_manager(system.alias).create_superuser("root", password="secret")
    system.start_worker()
    original, duplicate = (system.send("shop.deposit", 7, 100) for _ in range(2))
    assert [one.get(timeout=60) for one in (original, duplicate)] == [100, 100]
    ids = {original.id, duplicate.id}
    system.send("shop.deposit", 8, 100).get(timeout=60)
    leave_unknown(system.alias)
    port = free_port()
    system.start("-m", "django", "runserver", "--noreload", "--insecure", str(port))
    url = f"http://127.0.0.1:{port}/admin/"

    def answers() -> bool:
        with suppress(urllib.error.URLError, ConnectionError):
            return bool(urllib.request.urlopen(url, timeout=10).status == 200)
        return False

    eventually(answers, "the site answers", timeout=60)
    # When she logs in and looks for payment 7
    chromium.open(url)
    chromium.find("#id_username").send_keys("root")
    chromium.find("#id_password").send_keys("secret")
    chromium.leave_by(chromium.find("input[type='submit']"))
    chromium.open(f"{url}celery_idempotent/record/")
    for key in ("payment:7", "payment:8", "payment:99"):
        assert key in chromium.text
    chromium.find("#searchbar").send_keys("payment:7")
    chromium.leave_by(chromium.find("#changelist-search input[type='submit']"))
    assert "payment:8" not in chromium.text
    chromium.follow("payment:7")
    # Then she sees whose it is, and who got its answer too
    assert chromium.find("#state").text == "succeeded"
    eventually(lambda: _again(chromium) and "deduplicated" in chromium.text, "the journal")
    assert {chromium.find("#duplicates li").text} < ids
    assert all(one in chromium.text for one in ids)
    chromium.screenshot("django-record")
    # When she frees it
    chromium.find("#sure").click()
    chromium.leave_by(chromium.find("#forget input[type='submit']"))
    # Then its next call runs
    assert "The key is free" in chromium.text
    assert chromium.find("#state").text == "released, the key is free"
    assert system.send("shop.deposit", 7, 100).get(timeout=60) == 100
    assert system.ledger.count("start", key=7) == 2
    # And what is unknown can be settled, once
    chromium.open(f"{url}celery_idempotent/record/?state__exact=unknown")
    chromium.follow("payment:99")
    chromium.find("#resolve input[value='succeeded']").click()
    chromium.find("#resolve input[name='answer']").send_keys("41")
    chromium.leave_by(chromium.find("#resolve input[type='submit']"))
    assert chromium.find("#state").text == "succeeded"
    assert chromium.find("#result").text == "41"
    assert system.send("shop.deposit", 99, 100).get(timeout=60) == 41


def _again(chromium: Chromium) -> bool:
    chromium.open(chromium.address)
    return True


def test_who_may_look_may_not_touch(system: DjangoSystem) -> None:
    """Forgetting and settling have permissions of their own; nobody edits, adds or deletes."""
    # Given
    from django.contrib.auth.models import Permission, User

    viewer = User.objects.db_manager(system.alias).create_user(
        "viewer", password="secret", is_staff=True
    )
    allowed = Permission.objects.using(system.alias).get(codename="view_record")
    viewer.user_permissions.add(allowed)
    system.start_worker()
    system.send("shop.deposit", 7, 100).get(timeout=60)
    # When
    tried = system.manage("shell", "-c", TRY)
    # Then
    assert tried.returncode == 0, tried.stderr
    assert tried.stdout.strip().splitlines()[-4:] == [
        "[200, False, False]",
        "[403, 403]",
        "[405, 403]",
        "[302, 403]",
    ]
