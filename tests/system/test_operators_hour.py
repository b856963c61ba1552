"""An operator's hour: among very many records there are runs that were cut off.

An alert says so, commands find them and say what happened, and they are settled. That none of it
goes through all records is shown by what the server was asked, and not by a clock. How long each
took is printed: ``make test ARGS="-k operators_hour -s" JOBS=0``.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import prometheus_client
import pytest
import redis
import yaml

from celery_idempotent import OutcomeUnknown
from celery_idempotent.ops.metrics import Unknown
from celery_idempotent.ops.records import SAMPLED
from celery_idempotent.settings import environment_of
from celery_idempotent.testing.servers import RedisServer
from tests.conftest import MakeSystem
from tests.support.commands import Commands, Done
from tests.support.records import StoredRecords
from tests.support.system import STORE_DB
from tests.support.workers import ROOT
from tests.system.conftest import StartFlower

RECORDS: Final = 300_000
RULES: Final = ROOT / "contrib" / "prometheus" / "celery_idempotent.rules.yml"
#: An alert's expression, as far as it is understood here.
EXPRESSION: Final = re.compile(r"max by \((\w+)\) \((\w+)\) > (\d+)")
#: What a look at a few records may cost in commands; more than that would be a search.
FEW: Final = 60
TTL_MS: Final = 3_600_000


@pytest.fixture
def store() -> Iterator[RedisServer]:
    """A server for the records of this test alone."""
    with RedisServer() as server:
        yield server


def fill(stored: StoredRecords, client: redis.Redis) -> None:
    """Put many records there, each as a run that succeeded has left it."""
    name = stored.done("order:0", "shop.charge")
    packed: Any = client.get(name)
    for begin in range(0, RECORDS, 5000):
        with client.pipeline(transaction=False) as pipe:
            for number in range(begin, min(begin + 5000, RECORDS)):
                pipe.set(name.replace("order:0", f"order:{number}"), packed, px=TTL_MS)
            pipe.execute()


def firing(app: Any, alert: str) -> dict[str, float]:
    """Evaluate an alert rule as Prometheus would, by what a worker of the app serves."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    (rule,) = (one for group in groups for one in group["rules"] if one.get("alert") == alert)
    understood = EXPRESSION.fullmatch(rule["expr"])
    assert understood is not None, rule["expr"]
    by, metric, limit = understood.groups()
    registry = prometheus_client.CollectorRegistry()
    registry.register(Unknown(app))
    found: dict[str, float] = {}
    for family in registry.collect():
        for sample in family.samples:
            if sample.name == metric:
                found[sample.labels[by]] = max(sample.value, found.get(sample.labels[by], 0))
    return {label: value for label, value in found.items() if value > int(limit)}


class Watched:
    """Runs commands, and counts what each of them asks of the store's server."""

    def __init__(self, run: Commands, client: redis.Redis) -> None:
        self._run, self._client = run, client
        self.took: list[str] = []

    def __call__(self, *args: str) -> tuple[Done, dict[str, int]]:
        self._client.config_resetstat()
        began = time.perf_counter()
        done = self._run(*args)
        took = time.perf_counter() - began
        stats: Any = self._client.info("commandstats")
        asked = {name.removeprefix("cmdstat_"): int(it["calls"]) for name, it in stats.items()}
        asked.pop("config|resetstat", None)
        self.took.append(f"{took:8.3f} s  {sum(asked.values()):6} commands  {' '.join(args)}")
        return done, asked


@pytest.mark.long(30)
def test_an_operators_hour(
    make_redis_system: MakeSystem,
    store: RedisServer,
    start_flower: StartFlower,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is unknown is found, explained and settled at once, however many records there are."""
    # Given many records, and nothing that needs a person
    system = make_redis_system(store=store)
    environment = environment_of(system.app)
    client = redis.Redis.from_url(store.url(STORE_DB))
    fill(StoredRecords(environment.store, environment.prefix), client)
    alert = "CeleryIdempotencyUnknownOutcome"
    assert firing(system.app, alert) == {}
    # When two runs are killed whose effects may have happened
    worker = system.start_worker(concurrency=2)
    calls = [system.task("book").delay(order, "never") for order in (1, 2)]
    system.ledger.wait_for("effect", times=2)
    for entry in system.ledger.entries("start"):
        os.kill(entry["pid"], signal.SIGKILL)
    for call in calls:
        with pytest.raises(OutcomeUnknown):
            call.get(timeout=60)
    worker.signal(signal.SIGTERM)
    worker.wait_until_gone(90)
    # Then the alert says so
    assert firing(system.app, alert) == {"shop.book": 2}
    watched = Watched(Commands(system.app, capsys), client)
    # And they are listed, without a search
    done, asked = watched("list", "--state", "unknown")
    names = {line["key"]: line["name"] for line in done.lines}
    assert set(names) == {"order:1", "order:2"}
    assert "scan" not in asked
    assert sum(asked.values()) < FEW
    # And explained: where the run was cut off, and the commands to choose from
    done, asked = watched("why", calls[0].id, "--text")
    assert f"The run of task {calls[0].id}" in done.out
    assert all(f"--{how}" in done.out for how in ("succeeded", "rerun", "failed"))
    assert "scan" not in asked
    assert sum(asked.values()) < FEW
    # And what is not there is not searched for, either
    done, asked = watched("show", "order:none")
    assert done.code == 1
    assert "scan" not in asked
    assert sum(asked.values()) < FEW
    # And counts go through some, and no more the more there are
    done, asked = watched("stats")
    (counted,) = done.lines
    assert counted["states"]["unknown"] == 2
    read = asked.get("get", 0) + asked.get("getrange", 0)
    assert read < 2 * SAMPLED
    assert counted["exact"] or abs(counted["records"] - RECORDS) < RECORDS / 10
    # When one is settled in Flower
    browser = start_flower(system.settings, tab=True).browser()
    page = browser.get("/idempotency", state="unknown")
    assert all(f">{key}<" in page.text for key in names)
    browser.get("/idempotency/resolve", name=names["order:1"])
    answer = {"order": 1, "receipt": "seen at the bank"}
    form = {"name": names["order:1"], "how": "succeeded", "answer": json.dumps(answer)}
    assert browser.post("/idempotency/resolve", **form, _xsrf=browser.xsrf).status == 303
    # And one by a command, with the namespace: another task has such a key
    done, asked = watched("resolve", "--yes", "shop.book:order:2", "--rerun")
    assert done.code == 0, done.err
    assert "scan" not in asked
    # Then nothing is left to do, and the next calls get what was decided
    assert watched("list", "--state", "unknown")[0].lines == []
    assert firing(system.app, alert) == {}
    system.start_worker(concurrency=2)
    system.ledger.open("go")
    assert system.task("book").delay(1, "go").get(timeout=60) == answer
    assert system.task("book").delay(2, "go").get(timeout=60)["order"] == 2
    assert system.ledger.count("start", key=1) == 1
    assert system.ledger.count("start", key=2) == 2
    with capsys.disabled():
        lines = [f"\nan operator's hour, {RECORDS} records", *watched.took]
        sys.stdout.write("\n".join(lines) + "\n")
