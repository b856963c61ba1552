"""The page of records inside a real Flower of each version, asked over HTTP."""

from __future__ import annotations

import html
import re
import uuid
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import redis

from celery_idempotent.core.codec import Kind, Outcome
from celery_idempotent.core.keys import Owner
from celery_idempotent.core.record import State
from celery_idempotent.core.reservation import Reservation
from celery_idempotent.core.step import Step, StepState
from celery_idempotent.core.verdicts import Renewal, Reserve, Settle
from celery_idempotent.ops.history import when
from celery_idempotent.run.journal import Journal
from celery_idempotent.stores.journal import ListedRuns, journal_key
from celery_idempotent.stores.urls import store_from_url
from celery_idempotent.testing.contract.kit import replace
from celery_idempotent.testing.servers import RedisServer
from tests.conftest import MakeSystem
from tests.support.flowers import NEWEST, VERSIONS, Answer, Browser, Flower
from tests.support.records import JSON, StoredRecords
from tests.support.system import RESULT_DB, STORE_DB
from tests.support.tasks import Settings
from tests.support.waiting import eventually
from tests.system.conftest import StartFlower, flower_folder

PREFIX = "idempotent"
ATTACK = "<script>alert('1')</script>"
#: Whoever asks may choose the token, as long as cookie and form have the same.
TOKEN = "31323334"
READS = ("", "/record", "/forget", "/resolve", "/resume", "/counts")


def settings_of(server: RedisServer, directory: Path) -> Settings:
    return {
        "broker_url": server.url(),
        "result_backend": server.url(RESULT_DB),
        "idempotency_store_url": server.url(STORE_DB),
        "test_ledger": f"{directory}/ledger",
    }


pytestmark = pytest.mark.long(0.8)


@pytest.fixture(scope="module", params=VERSIONS)
def flower(
    request: pytest.FixtureRequest,
    session_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Flower]:
    """One Flower of each version for all tests here, with the page; it has no login."""
    directory = tmp_path_factory.mktemp("flower")
    settings = settings_of(session_server, directory)
    started = Flower(flower_folder(request.param), settings, directory, tab=True)
    yield started.wait_until_ready()
    started.stop()


@pytest.fixture
def browser(flower: Flower) -> Browser:
    return flower.browser()


@pytest.fixture
def stored(redis_server: RedisServer) -> Iterator[StoredRecords]:
    """The store that Flower shows, empty."""
    url = redis_server.url(STORE_DB)
    store = store_from_url(url)
    with redis.Redis.from_url(url) as raw:
        yield StoredRecords(store, PREFIX, raw)
    store.close()


def keys(page: Answer) -> list[str]:
    """The keys in the list, from top to bottom."""
    assert page.status == 200
    table = page.text.partition('id="idempotency-table"')[2].partition("</table>")[0]
    links = re.findall(r'<a href="[^"]*/idempotency/record\?[^"]*">(.*?)</a>', table, re.DOTALL)
    return [html.unescape(link) for link in links]


def next_page(page: Answer) -> tuple[str, dict[str, str]] | None:
    """Where "Next" leads."""
    found = re.search(r'rel="next"\s+href="([^"]*)"', page.text)
    if found is None:
        return None
    parts = urlsplit(html.unescape(found[1]))
    return parts.path, {name: values[0] for name, values in parse_qs(parts.query).items()}


def rows(page: Answer) -> dict[str, str]:
    """The rows of a record's page: what stands under each title, without the markup."""
    assert page.status == 200
    table = page.text.partition('id="idempotency-record"')[2].partition("</table>")[0]
    found = re.findall(r"<th[^>]*>(.*?)</th>\s*<td[^>]*>(.*?)</td>", table, re.DOTALL)
    return {title: html.unescape(re.sub(r"<[^>]*>", "", text)).strip() for title, text in found}


# --- looking --------------------------------------------------------------------------------------


def test_a_tab_leads_to_the_page(browser: Browser, stored: StoredRecords) -> None:
    """It stands after Flower's own, on Flower's pages and on ours, and only once."""
    # When
    pages = [browser.get("/broker"), browser.get("/tasks"), browser.get("/idempotency")]
    # Then
    for page in pages:
        assert page.status == 200
        links = re.findall(r'href="(/[a-z]*)"', page.text)
        assert links.index("/idempotency") == links.index("/broker") + 1
        tabs = re.findall(r'<li[^>]*>\s*<a[^>]*href="/idempotency"', page.text)
        assert len(tabs) == 1
    assert "No records." in pages[2].text


def test_records_are_listed_the_latest_first(browser: Browser, stored: StoredRecords) -> None:
    """Each with its task, state and owner; counted by state."""
    # Given
    stored.done("order:1", owner="task-1")
    stored.hold("order:2", "shop.pack")
    stored.unknown("order:3")
    stored.write(f"{PREFIX}:{{shop.charge:order:4}}", b"\x01nonsense")
    # When
    page = browser.get("/idempotency")
    # Then
    assert keys(page) == ["order:3", "order:2", "order:1", "order:4"]
    assert all(text in page.text for text in ("shop.pack", "task-1", "host-1 (77)", "running"))
    counts = eventually(lambda: _counted(browser, 4), "counted").json
    assert counts["total"] == 4
    expected = {"succeeded": 1, "running": 1, "unknown": 1, "unreadable": 1}
    assert counts["states"] == expected
    assert browser.get("/api/idempotency/stats").json["tasks"] == {"shop.charge": 3, "shop.pack": 1}


def test_a_lease_that_is_over_is_marked(browser: Browser, stored: StoredRecords) -> None:
    """In the list, on the record's page and in the API: it counts as running still."""
    # Given
    over, (held, _) = stored.cut_off("order:1"), stored.hold("order:2")
    # When
    page = browser.get("/idempotency")
    # Then
    marked = page.text.partition(">order:1<")[2].partition("</tr>")[0]
    alive = page.text.partition(">order:2<")[2].partition("</tr>")[0]
    assert "lease over" in marked
    assert "lease over" not in alive
    records = browser.get("/api/idempotency/records").json["records"]
    assert {record["key"]: record["is_lease_over"] for record in records} == {
        "order:1": True,
        "order:2": False,
    }
    shown = rows(browser.get("/idempotency/record", name=over))
    assert shown["Lease"] == "over: the next delivery takes over"
    assert "Lease" not in rows(browser.get("/idempotency/record", name=held))


def test_leases_that_are_over_are_a_filter(browser: Browser, stored: StoredRecords) -> None:
    """In the list and in the API; they are listed by the store, so that nothing else is read."""
    # Given
    over = stored.cut_off("order:1")
    held, _ = stored.hold("order:2")
    lists = stored.store.run_lists
    assert lists is not None
    runs = ListedRuns([(over, 0), (held, 0)])
    lists.append_with_runs(journal_key(PREFIX), [], 100, runs)
    # Then
    assert keys(browser.get("/idempotency", state="lease-over")) == ["order:1"]
    found = browser.get("/api/idempotency/records", state="lease-over").json["records"]
    assert [record["key"] for record in found] == ["order:1"]


def _counted(browser: Browser, total: int) -> Answer | None:
    answer = browser.get("/idempotency/counts")
    counted = answer.status == 200 and answer.json["total"] == total
    return answer if counted else None


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"match": "order 42"}, ["order:42"]),
        ({"match": "42"}, ["item:42", "order:42"]),
        ({"task": "shop.pack"}, ["item:42"]),
        ({"state": "running"}, ["order:7"]),
        ({"state": "running", "match": "42"}, []),
    ],
    ids=str,
)
def test_the_list_is_filtered(
    browser: Browser, stored: StoredRecords, asked: dict[str, str], expected: list[str]
) -> None:
    """By task, by state and by parts of the key; the API filters alike."""
    # Given
    stored.done("order:42")
    stored.hold("order:7")
    stored.done("item:42", "shop.pack")
    # Then
    assert keys(browser.get("/idempotency", **asked)) == expected
    found = browser.get("/api/idempotency/records", **asked).json["records"]
    assert [record["key"] for record in found] == expected


def test_a_long_list_is_turned_over_page_by_page(browser: Browser, stored: StoredRecords) -> None:
    """Every record once, the latest first, and the filter stays."""
    # Given
    for number in range(120):
        stored.done(f"order:{number}")
    stored.done("item:1", "shop.pack")
    # When
    page = browser.get("/idempotency", match="order")
    found = [keys(page)]
    while (further := next_page(page)) is not None:
        path, query = further
        page = browser.get(path, **query)
        found.append(keys(page))
    # Then
    assert [len(part) for part in found] == [50, 50, 20]
    assert list(chain(*found)) == [f"order:{number}" for number in reversed(range(120))]
    # And in the API
    first = browser.get("/api/idempotency/records", match="order").json
    assert first["more"]
    third = browser.get("/api/idempotency/records", listing=first["listing"], page=3).json
    assert [record["key"] for record in third["records"]] == found[2]
    assert not third["more"]


def test_a_record_has_a_page(browser: Browser, stored: StoredRecords) -> None:
    """What runs it, as which attempt, with which token, and how long it is still held."""
    # Given
    name, held = stored.hold("order:42", owner="task-1")
    # When
    shown = rows(browser.get("/idempotency/record", name=name))
    # Then
    assert shown["Key"] == "order:42"
    assert shown["Task"] == "shop.charge"
    assert shown["State"] == "running"
    assert shown["Owner"] == "task-1"
    assert shown["Worker"] == "host-1, process 77"
    assert shown["Token"] == str(held.token)
    assert shown["Attempt"] == "1"
    assert shown["Interruptions"] == "0"
    assert re.fullmatch(r"(\d\.\d|[12]\d|30) s", shown["Lease left"])
    assert re.fullmatch(r"1 min \d+ s", shown["Kept for"])
    assert shown["Name in the store"] == name
    assert "Result" not in shown
    # And in the API
    record = browser.get("/api/idempotency/record", name=name).json
    assert (record["owner_id"], record["token"], record["host"]) == ("task-1", held.token, "host-1")


def test_a_finished_record_shows_its_result(browser: Browser, stored: StoredRecords) -> None:
    """And how long it will go on answering."""
    # Given
    failed = b'{"exc_type": "ValueError", "exc_message": ["declined"], "exc_module": "builtins"}'
    done = stored.done("order:1")
    failure = stored.done("order:2", outcome=Outcome(Kind.FAILURE, *JSON, failed).pack())
    large = stored.done("order:3", outcome=Outcome(Kind.NOT_KEPT).pack())
    # Then
    shown = rows(browser.get("/idempotency/record", name=done))
    assert shown["Result"] == '{"receipt": 7}'
    assert re.fullmatch(r"1 min \d+ s", shown["Window left"])
    failed_rows = rows(browser.get("/idempotency/record", name=failure))
    assert failed_rows["Failure"] == "ValueError: declined"
    assert "not kept" in rows(browser.get("/idempotency/record", name=large))["Result"]


def test_an_unreadable_record_has_a_page(browser: Browser, stored: StoredRecords) -> None:
    """It says what is wrong, and offers to free the key."""
    name = f"{PREFIX}:{{shop.charge:order:4}}"
    stored.write(name, b"\x01nonsense")
    page = browser.get("/idempotency/record", name=name)
    assert "cannot be read" in rows(page)["State"]
    assert 'id="idempotency-forget"' in page.text


@pytest.mark.parametrize("page", ["/record", "/forget", "/resolve", "/resume"])
@pytest.mark.parametrize("name", [f"{PREFIX}:{{shop.charge:none}}", "celery", ""])
def test_what_is_no_record_is_not_found(
    browser: Browser, stored: StoredRecords, page: str, name: str
) -> None:
    """Nor is what is something else in the store."""
    stored.write("celery", b"a queue")
    assert browser.get(f"/idempotency{page}", name=name).status == 404
    assert browser.get("/api/idempotency/record", name=name).status == 404


def test_what_comes_from_a_network_is_shown_as_text(
    browser: Browser, stored: StoredRecords
) -> None:
    """No key, task, owner, result, or word that is searched for becomes markup."""
    # Given
    outcome = Outcome(Kind.RESULT, *JSON, f'"{ATTACK}"'.encode()).pack()
    name = stored.done(ATTACK, ATTACK, outcome, owner=ATTACK, label=f"{ATTACK}\n{ATTACK}")
    # When
    pages = [
        browser.get("/idempotency"),
        browser.get("/idempotency", match=ATTACK, task=ATTACK, state=ATTACK),
        browser.get("/idempotency", match="\"><script>alert('1')</script>"),
        browser.get("/idempotency/record", name=name),
        browser.get("/idempotency/record", name=name, done=ATTACK),
        browser.get("/idempotency/forget", name=name),
        browser.get("/idempotency/resolve", name=name),
        browser.get("/idempotency/resume", name=name),
        browser.get("/idempotency/record", name=f"{PREFIX}:{{{ATTACK}:{ATTACK}}}"),
        browser.get("/idempotency", page=ATTACK, listing=ATTACK),
    ]
    # Then
    shown = rows(pages[3])
    assert (shown["Key"], shown["Task"], shown["Owner"]) == (ATTACK, ATTACK, ATTACK)
    assert shown["Result"] == f'"{ATTACK}"'
    for page in pages:
        assert "<script>alert(" not in page.text
    answer = browser.get("/api/idempotency/record", name=name)
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.json["key"] == ATTACK


# --- acting ---------------------------------------------------------------------------------------


def test_a_record_is_forgotten_after_it_was_asked_for(
    browser: Browser, stored: StoredRecords
) -> None:
    """First a page that says what it means; then, with the token that came with it, the deed."""
    # Given
    name = stored.done()
    before = stored.store.get(name)
    # When
    asking = browser.get("/idempotency/forget", name=name)
    # Then
    assert "happen again" in asking.text
    assert stored.store.get(name) == before
    # When
    answer = browser.post("/idempotency/forget", name=name, _xsrf=browser.xsrf)
    # Then
    assert answer.status == 303
    page = browser.get(answer.headers["Location"])
    assert "The key is free" in page.text
    record = stored.store.get(name)
    assert record is not None
    assert record.state is State.RELEASED
    assert record.owner_id is None
    assert before is not None
    assert record.token > before.token
    # When it is forgotten again
    again = browser.post("/idempotency/forget", name=name, _xsrf=browser.xsrf)
    # Then nothing happened, and that is said
    assert "was free already" in browser.get(again.headers["Location"]).text
    told = browser.post("/api/idempotency/forget", name=name, _xsrf=browser.xsrf)
    assert (told.status, told.json) == (200, {"name": name, "forgotten": False})


def test_a_key_without_a_window_is_found_by_what_is_shown(
    browser: Browser, stored: StoredRecords
) -> None:
    """It is released: that the key is free, and how its last run ended, stands beside the state."""
    # Given
    names = [stored.freed("order:1"), stored.freed("order:2", kind=Kind.FAILURE)]
    stored.done("order:3")
    # When
    page = browser.get("/idempotency", state="released")
    # Then
    assert sorted(keys(page)) == ["order:1", "order:2"]
    assert keys(browser.get("/idempotency", state="succeeded")) == ["order:3"]
    listed = browser.get("/api/idempotency/records", state="released").json["records"]
    assert {(one["name"], one["state"], one["is_free"]) for one in listed} == {
        (name, "released", True) for name in names
    }
    for name, ended in zip(names, ("succeeded", "failed"), strict=True):
        said = f"the key is free, its last run {ended}"
        assert said in page.text
        assert said in rows(browser.get("/idempotency/record", name=name))["State"]


def test_what_is_misspelt_is_pointed_out(browser: Browser, stored: StoredRecords) -> None:
    """A state is refused, as on the command line; a task may be one whose code is gone."""
    # Given
    stored.done()
    # When
    page, told = (
        browser.get(f"{api}/idempotency{records}", state="unknwn")
        for api, records in (("", ""), ("/api", "/records"))
    )
    # Then
    assert (page.status, told.status) == (400, 400)
    assert told.json["error"] == page.text
    assert "There is no such state, but these: running, retrying" in page.text
    found = browser.get("/idempotency", task="nosuch").text
    assert "No records. This app has no task nosuch." in found
    assert "no task" not in browser.get("/idempotency", state="running").text


def test_the_calls_that_are_queued_are_listed(browser: Browser, stored: StoredRecords) -> None:
    """They are a state of their own to choose, without a count: nobody counts them."""
    # Given
    stored.hold("order:1")
    for number in (1, 2):
        name, owner = f"{PREFIX}:{{shop.charge:order:{number}}}", Owner(f"task-{number}").pack()
        stored.store.reserve(name, Reserve(Reservation(owner), 10_000, attaches=False))
        stored.store.confirm(name, owner, 3_600_000)
    # When
    page = browser.get("/idempotency", state="queued")
    # Then
    assert sorted(keys(page)) == ["order:1", "order:2"]
    assert "keep others out" in page.text
    assert 'data-count="queued"' not in page.text
    listed = browser.get("/api/idempotency/records", state="queued").json["records"]
    assert {(it["state"], it["owner_id"]) for it in listed} == {
        ("queued", "task-1"),
        ("queued", "task-2"),
    }
    assert keys(browser.get("/idempotency", state="running")) == ["order:1"]


def test_a_key_that_is_only_reserved_is_found_and_freed(
    browser: Browser, stored: StoredRecords
) -> None:
    """By its key: for which call it is reserved, since when, and until when; then it is free."""
    # Given
    name, owner = f"{PREFIX}:{{shop.charge:order:42}}", Owner("task-1").pack()
    stored.store.reserve(name, Reserve(Reservation(owner), 10_000, attaches=False))
    stored.store.confirm(name, owner, 3_600_000)
    queued = stored.store.reservation(name)
    assert queued is not None
    # Then
    assert keys(browser.get("/idempotency", match="shop.charge:order:42")) == ["order:42"]
    shown = rows(browser.get("/idempotency/record", name=name))
    assert (shown["State"], shown["Owner"]) == ("queued", "task-1")
    assert f"published {when(queued.since_ms)}" in shown["Queued"]
    assert f"until {when(queued.until_ms)}" in shown["Queued"]
    found = browser.get("/api/idempotency/record", key="shop.charge:order:42").json
    assert found["queued"]["task_id"] == "task-1"
    # When
    assert "order:42" in browser.get("/idempotency/forget", name=name).text
    answer = browser.post("/idempotency/forget", name=name, _xsrf=browser.xsrf)
    # Then
    assert answer.status == 303
    assert browser.get(answer.headers["Location"]).status == 200
    assert stored.store.reservation(name) is None
    assert browser.get("/idempotency/record", name=name).status == 404


@pytest.mark.parametrize("api", ["", "/api"])
@pytest.mark.parametrize("deed", ["forget", "resolve"])
def test_another_sites_page_can_change_nothing(
    flower: Flower, stored: StoredRecords, api: str, deed: str
) -> None:
    """Without the token, with a wrong one, or with one that belongs to no cookie."""
    # Given
    name = stored.unknown()
    before = stored.store.get(name)
    stranger, victim = flower.browser(), flower.browser()
    stranger.get("/idempotency/forget", name=name)
    victim.get("/idempotency/forget", name=name)
    form = {"name": name, "how": "rerun"}
    # When
    answers = [
        flower.browser().post(f"{api}/idempotency/{deed}", **form),
        flower.browser().post(f"{api}/idempotency/{deed}", **form, _xsrf=stranger.xsrf),
        victim.post(f"{api}/idempotency/{deed}", **form),
        victim.post(f"{api}/idempotency/{deed}", **form, _xsrf="1234"),
        victim.post(f"{api}/idempotency/{deed}", **form, _xsrf=stranger.xsrf),
    ]
    # Then
    assert [answer.status for answer in answers] == [403] * 5
    assert stored.store.get(name) == before
    assert victim.post(f"{api}/idempotency/{deed}", **form, _xsrf=victim.xsrf).status < 400
    assert stored.store.get(name) != before


def test_a_look_changes_nothing(browser: Browser, stored: StoredRecords) -> None:
    """What changes something can't be done by following a link."""
    name = stored.unknown()
    before = stored.store.get(name)
    for deed in ("forget", "resolve", "resume"):
        browser.get(f"/idempotency/{deed}", name=name, how="rerun")
        assert browser.get(f"/api/idempotency/{deed}", name=name, how="rerun").status == 405
    assert stored.store.get(name) == before


def test_only_records_are_forgotten(browser: Browser, stored: StoredRecords) -> None:
    """A queue of the broker in the same database is left alone."""
    stored.write("celery", b"a queue")
    token = _token(browser, stored)
    assert browser.post("/idempotency/forget", name="celery", _xsrf=token).status == 404
    assert browser.post("/api/idempotency/forget", name="celery", _xsrf=token).status == 404
    assert stored.raw is not None
    assert stored.raw.get("celery") == b"a queue"


def _token(browser: Browser, stored: StoredRecords) -> str:
    browser.get("/idempotency/forget", name=stored.done(f"order:{uuid.uuid4().hex}"))
    return browser.xsrf


@pytest.mark.parametrize(
    ("how", "answer", "state"),
    [
        ("succeeded", '{"receipt": 8}', State.SUCCEEDED),
        ("failed", "it never arrived", State.RELEASED),
        ("rerun", "", State.RELEASED),
    ],
)
def test_an_unknown_outcome_is_resolved(
    browser: Browser, stored: StoredRecords, how: str, answer: str, state: State
) -> None:
    """By what a person has found out."""
    # Given
    name = stored.unknown()
    assert 'id="idempotency-resolve"' in browser.get("/idempotency/record", name=name).text
    assert "cut off" in browser.get("/idempotency/resolve", name=name).text
    form = {"name": name, "how": how, "answer": answer, "_xsrf": browser.xsrf}
    # When
    done = browser.post("/idempotency/resolve", **form)
    # Then
    assert done.status == 303
    page = browser.get(done.headers["Location"])
    assert "It is resolved." in page.text
    assert answer in html.unescape(page.text)
    record = stored.store.get(name)
    assert record is not None
    assert record.state is state
    # And then there is nothing more to resolve
    assert browser.post("/idempotency/resolve", **form).status == 409
    assert browser.post("/api/idempotency/resolve", **form).status == 409


@pytest.mark.parametrize(
    ("how", "answer"),
    [("", ""), ("maybe", ""), ("succeeded", "no JSON"), ("succeeded", "")],
)
def test_what_is_not_clear_is_not_resolved(
    browser: Browser, stored: StoredRecords, how: str, answer: str
) -> None:
    """Neither without a way, nor with a result that is none."""
    name = stored.unknown()
    form = {"name": name, "how": how, "answer": answer, "_xsrf": _token(browser, stored)}
    for api in ("", "/api"):
        assert browser.post(f"{api}/idempotency/resolve", **form).status == 400
    found = stored.store.get(name)
    assert found is not None
    assert found.state is State.UNKNOWN


@pytest.mark.parametrize("api", ["", "/api"])
def test_a_call_is_run_again_from_a_step_on(
    browser: Browser, flower: Flower, stored: StoredRecords, api: str
) -> None:
    """What is recorded from there goes; the message is in the broker; another page can't do it."""
    # Given
    name, held = stored.hold("order:1", "shop.echo")
    for order, step in enumerate(("pay", "mail")):
        packed = Step(StepState.DONE, order, b"").pack()
        stored.store.step(Renewal(name, held, 30_000, 100_000), step, packed)
    assert 'id="idempotency-resume"' not in browser.get("/idempotency/record", name=name).text
    form = {"name": name, "step": "mail", "args": "[1]"}
    token = _token(browser, stored)
    # Then not while it runs
    assert browser.post(f"{api}/idempotency/resume", **form, _xsrf=token).status == 409
    stored.store.settle(name, Settle(replace(held, state=State.RUNNING), 0, 100_000))
    before = stored.store.get(name)
    assert 'id="idempotency-resume"' in browser.get("/idempotency/record", name=name).text
    assert "step &#x27;mail&#x27;" in browser.get("/idempotency/resume", name=name).text or (
        "step &#39;mail&#39;" in browser.get("/idempotency/resume", name=name).text
    )
    # Then not without the token, from an unknown step, or with arguments that are none
    assert browser.post(f"{api}/idempotency/resume", **form).status == 403
    for wrong, status in (({"step": "post"}, 409), ({"args": "1"}, 400), ({"kwargs": "no"}, 400)):
        answer = browser.post(f"{api}/idempotency/resume", **{**form, **wrong}, _xsrf=token)
        assert answer.status == status
    assert stored.store.get(name) == before
    # When
    done = browser.post(f"{api}/idempotency/resume", **form, _xsrf=token)
    # Then
    if api:
        assert done.json["task_id"]
    else:
        assert "published again" in browser.get(done.headers["Location"]).text
    record = stored.store.get(name)
    assert record is not None
    assert record.state is State.RELEASED
    assert set(stored.store.steps(name)) == {"pay"}


def test_the_api_finds_shows_and_forgets(browser: Browser, stored: StoredRecords) -> None:
    """By key, by task id, by name; several that fit are named."""
    # Given
    name = stored.done("order:42", owner="task-1")
    journal = Journal(stored.store, journal_key("idempotent"), 1000)
    journal.write("succeeded", name, "shop.charge", "task-1")
    stored.done("order:7")
    stored.done("order:7", "shop.echo")
    # Then
    for asked in ({"key": "order:42"}, {"key": "task-1"}, {"name": name}):
        found = browser.get("/api/idempotency/record", **asked)
        assert (found.status, found.json["name"]) == (200, name)
        assert found.json["result"] == '{"receipt": 7}'
        assert found.json["duplicates"] == []
    several = browser.get("/api/idempotency/record", key="order:7")
    assert several.status == 300
    assert len(several.json["names"]) == 2
    assert browser.get("/api/idempotency/record", key="order:8").status == 404
    # When
    token = _token(browser, stored)
    done = browser.post("/api/idempotency/forget", name=name, _xsrf=token)
    # Then
    assert (done.status, done.json) == (200, {"name": name, "forgotten": True})
    record = stored.store.get(name)
    assert record is not None
    assert record.state is State.RELEASED
    # And the journal knows who it was
    events = browser.get("/api/idempotency/record", name=name).json["events"]
    assert (events[0]["event"], events[0]["via"]) == ("forgotten", "Flower, 127.0.0.1")


# --- with a worker --------------------------------------------------------------------------------


def test_calls_and_records_lead_to_each_other(
    browser: Browser, make_redis_system: MakeSystem
) -> None:
    """Flower's task page shows key and original, and the record's page its calls."""
    # Given
    system = make_redis_system()
    system.start_worker(concurrency=1, options=["-E"])
    charge = system.task("charge")
    # When
    original = charge.delay(42)
    original.get(timeout=30)
    duplicate = charge.delay(42)
    duplicate.get(timeout=30)
    eventually(
        lambda: "DEDUPLICATED" in browser.get(f"/task/{duplicate.id}").text, "Flower knows both"
    )
    # Then
    name = f"{PREFIX}:{{shop.charge:order:42}}"
    record_link = r'<a href="/idempotency/record\?name=[^"]*">order:42</a>'
    for call in (original, duplicate):
        assert re.search(record_link, browser.get(f"/task/{call.id}").text)
        info = browser.get(f"/api/task/info/{call.id}").json
        assert info["idempotency_key"] == "order:42"
    page = browser.get(f"/task/{duplicate.id}").text
    assert f'href="/task/{original.id}"' in page
    info = browser.get(f"/api/task/info/{duplicate.id}").json
    assert info["idempotency_original"] == original.id
    # Then the record's page leads back
    record = browser.get("/idempotency/record", name=name)
    assert f'<a href="/task/{original.id}">' in record.text
    duplicates = record.text.partition('id="idempotency-duplicates"')[2].partition("</td>")[0]
    assert f'<a href="/task/{duplicate.id}">' in duplicates
    # And the journal, once it has been told, tells its story
    eventually(
        lambda: (
            "was answered with" in browser.get("/idempotency/record", name=name).text
            or len(browser.get("/api/idempotency/record", name=name).json["events"]) >= 2
        ),
        "the journal knows both",
    )
    told = browser.get("/api/idempotency/record", name=name).json
    assert told["duplicates"] == [duplicate.id]
    assert {event["task_id"] for event in told["events"]} == {original.id, duplicate.id}


# --- as it was started ----------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_login_and_prefix_are_flowers(
    start_flower: StartFlower,
    stored: StoredRecords,
    redis_server: RedisServer,
    tmp_path: Path,
    version: str,
) -> None:
    """Nothing is seen or done without the login, and every link has the prefix."""
    # Given
    options = ["--basic_auth=ann:secret", "--url_prefix=admin/flower"]
    flower = start_flower(settings_of(redis_server, tmp_path), version, tab=True, options=options)
    name = stored.done()
    nobody = flower.browser("/admin/flower")
    ann = flower.browser("/admin/flower", login="ann:secret")
    # Then nothing without the login
    nobody.headers["Cookie"] = f"_xsrf={TOKEN}"
    for page in READS:
        assert nobody.get(f"/idempotency{page}", name=name).status == 401
    for page in ("records", "record", "stats"):
        assert nobody.get(f"/api/idempotency/{page}", name=name).status in (401, 405)
    deeds = ("forget", "resolve", "resume")
    for deed in (f"{api}/idempotency/{deed}" for api in ("", "/api") for deed in deeds):
        assert nobody.post(deed, name=name, how="rerun", _xsrf=TOKEN).status in (401, 403, 405)
    found = stored.store.get(name)
    assert found is not None
    assert found.state is State.SUCCEEDED
    # Then it is all under the prefix
    assert flower.browser(login="ann:secret").get("/idempotency").status == 404
    page = ann.get("/idempotency")
    assert keys(page) == ["order:42"]
    asking = ann.get("/idempotency/forget", name=name)
    for shown in (page, ann.get("/idempotency/record", name=name), asking):
        links = re.findall(r'(?:href|action)="(/[^"]*)"', shown.text)
        assert links
        assert all(link.startswith("/admin/flower/") for link in links)
    assert '"/admin/flower/idempotency/counts"' in page.text
    # Then the API is there as far as Flower has one with a login
    expected = 405 if version == "1.2.0" else 200
    assert ann.get("/api/idempotency/records").status == expected
    # Then a script that has logged in can act there, with a token that it chose
    if version != "1.2.0":
        script = flower.browser("/admin/flower", login="ann:secret")
        script.headers |= {"Cookie": "_xsrf=1", "X-XSRFToken": "1"}
        other = stored.done("order:7")
        answer = script.post("/api/idempotency/forget", name=other)
        assert (answer.status, answer.json) == (200, {"name": other, "forgotten": True})
    # Then who has logged in can forget
    answer = ann.post("/idempotency/forget", name=name, _xsrf=ann.xsrf)
    assert answer.status == 303
    assert answer.headers["Location"].startswith("/admin/flower/idempotency/record?")
    found = stored.store.get(name)
    assert found is not None
    assert found.state is State.RELEASED


@pytest.mark.parametrize("version", VERSIONS)
def test_who_has_not_logged_in_is_sent_to_the_login(
    start_flower: StartFlower,
    stored: StoredRecords,
    redis_server: RedisServer,
    tmp_path: Path,
    version: str,
) -> None:
    """Where people log in elsewhere (OAuth), nothing is seen or done before they have."""
    # Given
    options = [
        "--auth=.*@example.org",
        "--auth_provider=flower.views.auth.GoogleAuth2LoginHandler",
        "--oauth2_key=key",
        "--oauth2_secret=secret",
        "--oauth2_redirect_uri=http://127.0.0.1/login",
    ]
    settings = settings_of(redis_server, tmp_path)
    browser = start_flower(settings, version, tab=True, options=options).browser()
    browser.headers |= {"Cookie": f"_xsrf={TOKEN}"}
    name = stored.unknown()
    before = stored.store.get(name)
    # When
    pages = [browser.get(f"/idempotency{page}", name=name) for page in READS]
    data = [browser.get(f"/api/idempotency/{page}", name=name) for page in ("records", "record")]
    deeds = [
        browser.post(f"{api}/idempotency/{deed}", name=name, how="rerun", _xsrf=TOKEN)
        for api in ("", "/api")
        for deed in ("forget", "resolve", "resume")
    ]
    # Then
    assert [page.status for page in pages] == [302] * 6
    assert all("/login" in page.headers["Location"] for page in pages)
    assert all(answer.status in (302, 405) for answer in data)
    assert all(answer.status in (403, 405) for answer in deeds)
    assert stored.store.get(name) == before


@pytest.mark.parametrize("version", [v for v in VERSIONS if v >= "2.1"])
def test_read_only_is_flowers(
    start_flower: StartFlower,
    stored: StoredRecords,
    redis_server: RedisServer,
    tmp_path: Path,
    version: str,
) -> None:
    """Where Flower has been told to change nothing, all can be seen and nothing forgotten."""
    # Given
    options = ["--read_only=true"]
    flower = start_flower(settings_of(redis_server, tmp_path), version, tab=True, options=options)
    browser = flower.browser()
    browser.headers["Cookie"] = f"_xsrf={TOKEN}"
    name = stored.unknown()
    before = stored.store.get(name)
    # When
    pages = [browser.get(f"/idempotency{page}", name=name) for page in READS]
    answers = [
        browser.post(f"{api}/idempotency/{deed}", name=name, how="rerun", _xsrf=TOKEN)
        for api in ("", "/api")
        for deed in ("forget", "resolve", "resume")
    ]
    # Then
    assert [page.status for page in pages] == [200] * 6
    assert not any('<form method="post"' in page.text for page in pages)
    assert 'id="idempotency-forget"' not in pages[1].text
    assert [answer.status for answer in answers] == [403] * 6
    assert all("read-only mode" in answer.text for answer in answers)
    assert stored.store.get(name) == before


def test_a_store_that_is_away_is_said_to_be(
    start_flower: StartFlower, redis_server: RedisServer, tmp_path: Path
) -> None:
    """The pages say so, and no page says the password."""
    # Given
    settings = settings_of(redis_server, tmp_path)
    settings["idempotency_store_url"] = "redis://ann:s3cret@127.0.0.1:1/0"
    browser = start_flower(settings, tab=True).browser()
    name = f"{PREFIX}:{{shop.charge:order:42}}"
    # When
    answers = [browser.get(f"/idempotency{page}", name=name) for page in READS]
    answers += [browser.get(f"/api/idempotency/{page}", name=name) for page in ("records", "stats")]
    # Then
    assert {answer.status for answer in answers} == {503}
    for answer in answers:
        assert "127.0.0.1:1" in answer.text
        assert "s3cret" not in answer.text
    assert browser.get("/tasks").status == 200


def test_the_password_is_masked(
    start_flower: StartFlower, redis_server: RedisServer, tmp_path: Path
) -> None:
    """The list says which store it shows, and not how to log in there."""
    with RedisServer() as server:
        with redis.Redis.from_url(server.url()) as client:
            client.config_set("requirepass", "s3cret")
        settings = settings_of(redis_server, tmp_path)
        settings["idempotency_store_url"] = server.url().replace("redis://", "redis://:s3cret@")
        store = store_from_url(settings["idempotency_store_url"])
        name = StoredRecords(store, PREFIX).done()
        flower = start_flower(settings, tab=True)
        browser = flower.browser()
        pages = [browser.get(f"/idempotency{page}", name=name) for page in READS]
        assert keys(pages[0]) == ["order:42"]
        assert f"redis://:**@127.0.0.1:{server.port}" in pages[0].text
        assert not any("s3cret" in page.text for page in pages)
        assert "s3cret" not in flower.log
        store.close()


def test_the_command_starts_flower_with_the_page(
    start_flower: StartFlower, redis_server: RedisServer, stored: StoredRecords, tmp_path: Path
) -> None:
    """``celery -A app idempotency flower`` takes Flower's own options, and needs no file."""
    # Given
    stored.done()
    program = (
        "from celery.bin.celery import celery, main\n"
        "from celery_idempotent.ops.cli import idempotency\n"
        "celery.add_command(idempotency)\n"
        "raise SystemExit(main())\n"
    )
    # When
    flower = start_flower(
        settings_of(redis_server, tmp_path),
        NEWEST,
        program=("-c", program),
        command=("idempotency", "flower"),
        options=["--url_prefix=flower"],
    )
    # Then
    assert keys(flower.browser("/flower").get("/idempotency")) == ["order:42"]
