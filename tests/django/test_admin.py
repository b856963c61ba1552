"""The admin pages of a real project, in a real browser."""

from __future__ import annotations

import urllib.error
import urllib.request
from contextlib import suppress

import pytest

from celery_idempotent.core.keys import Owner
from celery_idempotent.core.record import State
from celery_idempotent.core.reservation import Reservation
from celery_idempotent.core.step import Step, StepState
from celery_idempotent.core.verdicts import Renewal, Reserve, Settle
from celery_idempotent.testing.contract.kit import replace
from celery_idempotent.testing.servers import _free_port
from tests.support.chromium import Chromium
from tests.support.django_system import DjangoSystem
from tests.support.records import StoredRecords
from tests.support.waiting import eventually

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
forms = [f'id="{what}"'.encode() in shown.content for what in ("forget", "resolve", "resume")]
print([shown.status_code, *forms])
print([b"queued-call" in shown.content, b"not delivered yet" in shown.content])
print([client.post(page + what + "/").status_code for what in ("forget", "resolve", "resume")])
print([client.get(page + what + "/").status_code for what in ("forget", "delete")])
add = "/admin/celery_idempotent/record/add/"
print([Client().post(page + "forget/").status_code, client.get(add).status_code])
"""


#: What somebody does who may run calls again: amiss, and as it should be.
RESUME = """
from django.contrib.admin.models import LogEntry
from django.contrib.admin.utils import quote
from django.test import Client
client = Client(enforce_csrf_checks=True)
assert client.login(username="operator", password="secret")
page = "/admin/celery_idempotent/record/" + quote("idempotent:{shop.deposit:payment:98}") + "/"
shown = client.get(page + "change/").content.decode()
print(["Begin again with step &#x27;mail&#x27;" in shown, 'id="forget"' in shown])
form = {"step": "mail", "args": "[98, 5]"}
print([client.post(page + "resume/", form).status_code, client.get(page + "resume/").status_code])
form["csrfmiddlewaretoken"] = client.cookies["csrftoken"].value
def said(**changes):
    given = {name: value for name, value in {**form, **changes}.items() if value is not None}
    return client.post(page + "resume/", given, follow=True).content.decode()
print(["no JSON" in said(args="no"), "is recorded of" in said(step="post")])
print(["Choose" in said(step=None)])
print([one.change_message for one in LogEntry.objects.all()])
print(["published again" in said(), *[one.change_message for one in LogEntry.objects.all()]])
"""


#: What somebody does who settles an outcome in a hurry, and then as it should be.
SETTLE = """
from django.contrib.auth.models import User
from django.test import Client
from django.contrib.admin.utils import quote
from celery_idempotent.django import models
client = Client()
assert client.login(username="root", password="secret")
page = "/admin/celery_idempotent/record/" + quote("idempotent:{shop.deposit:payment:99}") + "/"
shown = client.get(page + "change/").content.decode()
print(["docs/unknown-outcomes.rst" in shown, "interrupted once" in shown, "30 d more" in shown])
def said(answer):
    form = {"how": "succeeded", "answer": answer}
    return client.post(page + "resolve/", form, follow=True).content.decode()
for empty in ("", " "):
    print(["Nothing was settled. Say what the result is" in said(empty)])
print([row.state for row in models.Record.objects.all()])
told = said("null")
print(["The outcome is settled." in told, "The key was resolved as succeeded" in told])
print([row.state for row in models.Record.objects.all()])
print(["The key payment:99 of shop.deposit is succeeded" in said("null")])
"""


def leave_unknown(alias: str) -> None:
    """A record whose run was cut off, and nobody knows how it ended."""
    from celery_idempotent.django.store import DjangoStore

    StoredRecords(DjangoStore(alias), "idempotent").unknown("payment:99", "shop.deposit")


def leave_reserved(alias: str) -> None:
    """A key that is reserved for a call in its queue."""
    from celery_idempotent.django.store import DjangoStore

    store, key = DjangoStore(alias), "idempotent:{shop.deposit:payment:7}"
    owner = Owner("queued-call").pack()
    store.reserve(key, Reserve(Reservation(owner), 10_000, attaches=False))
    store.confirm(key, owner, 3_600_000)


def leave_cut_off(alias: str) -> None:
    """A record that counts as running, and whose lease is over."""
    from celery_idempotent.django.store import DjangoStore

    StoredRecords(DjangoStore(alias), "idempotent").cut_off("payment:98", "shop.deposit")


def leave_steps(alias: str) -> None:
    """A call that was cut off behind two of its steps."""
    from celery_idempotent.django.store import DjangoStore

    store = DjangoStore(alias)
    name, held = StoredRecords(store, "idempotent").hold("payment:98", "shop.deposit")
    for order, step in enumerate(("pay", "mail")):
        packed = Step(StepState.DONE, order, b"").pack()
        store.step(Renewal(name, held, 30_000, 3_600_000), step, packed)
    store.settle(name, Settle(replace(held, state=State.RUNNING), 0, 3_600_000))


def test_a_call_is_run_again_by_who_may(system: DjangoSystem) -> None:
    """From a step on, once: with a permission of its own, and never from another site's page."""
    # Given
    from django.contrib.auth.models import Permission, User

    from celery_idempotent.django.store import DjangoStore

    operator = User.objects.db_manager(system.alias).create_user(
        "operator", password="secret", is_staff=True
    )
    names = ("view_record", "resume_record")
    operator.user_permissions.set(Permission.objects.using(system.alias).filter(codename__in=names))
    leave_steps(system.alias)
    # When
    tried = system.manage("shell", "-c", RESUME)
    # Then
    assert tried.returncode == 0, tried.stderr
    assert tried.stdout.strip().splitlines()[-6:] == [
        "[True, False]",
        "[403, 405]",
        "[True, True]",
        "[True]",
        "[]",
        "[True, \"resumed from step 'mail'\"]",
    ]
    name = "idempotent:{shop.deposit:payment:98}"
    assert set(DjangoStore(system.alias).steps(name)) == {"pay"}
    # And the call runs
    system.start_worker()
    system.ledger.wait_for("start", key=98)
    system.ledger.wait_for("committed", key=98)
    assert system.ledger.count("start", key=98) == 1


def test_an_outcome_is_settled_by_what_was_said(system: DjangoSystem) -> None:
    """An empty result settles nothing: null has to be said, for every duplicate would get it.

    Times and events are told in the words of the commands, and a key as it is written.
    """
    # Given
    from django.contrib.auth.models import User

    User.objects.db_manager(system.alias).create_superuser("root", password="secret")
    leave_unknown(system.alias)
    # When
    tried = system.manage("shell", "-c", SETTLE)
    # Then
    assert tried.returncode == 0, tried.stderr
    assert tried.stdout.strip().splitlines()[-7:] == [
        "[True, True, True]",
        "[True]",
        "[True]",
        "['unknown']",
        "[True, True]",
        "['succeeded']",
        "[True]",
    ]


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
    leave_cut_off(system.alias)
    port = _free_port()
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
    # Then a run that is not kept alive any more is marked, in the list and on its page
    assert chromium.text.count("running, lease over") == 1
    chromium.follow("payment:98")
    assert chromium.find("#lease-over").text == "over: the next delivery takes over"
    chromium.open(f"{url}celery_idempotent/record/")
    # When she looks for one
    chromium.find("#searchbar").send_keys("payment:7")
    chromium.leave_by(chromium.find("#changelist-search input[type='submit']"))
    assert "payment:8" not in chromium.text
    chromium.follow("payment:7")
    # Then she sees whose it is, and who got its answer too
    assert chromium.find("#state").text == "succeeded"
    eventually(lambda: _again(chromium) and "It is a duplicate of" in chromium.text, "the journal")
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
    chromium.find("#looked").click()
    chromium.leave_by(chromium.find("#resolve input[type='submit']"))
    assert chromium.find("#state").text == "succeeded"
    assert chromium.find("#result").text == "41"
    assert system.send("shop.deposit", 99, 100).get(timeout=60) == 41


def _again(chromium: Chromium) -> bool:
    chromium.open(chromium.address)
    return True


def test_who_may_look_may_not_touch(system: DjangoSystem) -> None:
    """Forgetting and settling have permissions of their own; nobody edits, adds or deletes.

    What they see has the call for which the key is reserved, too.
    """
    # Given
    from django.contrib.auth.models import Permission, User

    viewer = User.objects.db_manager(system.alias).create_user(
        "viewer", password="secret", is_staff=True
    )
    allowed = Permission.objects.using(system.alias).get(codename="view_record")
    viewer.user_permissions.add(allowed)
    system.start_worker()
    system.send("shop.deposit", 7, 100).get(timeout=60)
    leave_reserved(system.alias)
    # When
    tried = system.manage("shell", "-c", TRY)
    # Then
    assert tried.returncode == 0, tried.stderr
    assert tried.stdout.strip().splitlines()[-5:] == [
        "[200, False, False, False]",
        "[True, True]",
        "[403, 403, 403]",
        "[405, 403]",
        "[302, 403]",
    ]
