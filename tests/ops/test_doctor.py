"""Each check of the doctor finds its fault, and is quiet where there is none."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import uuid
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from celery import Celery
from celery.beat import BeatLazyFunc
from celery.schedules import BaseSchedule, crontab
from celery_heimdall import HeimdallTask  # type: ignore[import-untyped]
from celery_singleton import Singleton  # type: ignore[import-untyped]
from kombu.common import QoS
from kombu.transport import redis as kombu_redis

from celery_idempotent import MESSAGE_ID, IdempotentTask
from celery_idempotent.errors import StoreUnavailable
from celery_idempotent.ops.doctor import Finding, examination, examine, tenants, worker
from celery_idempotent.ops.doctor.beat import check_beat, shortest_interval
from celery_idempotent.ops.doctor.broker import CelerysServers, check_broker
from celery_idempotent.ops.doctor.findings import Patient, Task
from celery_idempotent.ops.doctor.keys import check_keys
from celery_idempotent.ops.doctor.store import check_clock, check_server
from celery_idempotent.ops.doctor.times import check_times
from celery_idempotent.ops.doctor.trial import try_run
from celery_idempotent.ops.doctor.worker import check_worker
from celery_idempotent.ops.lookup import setups
from celery_idempotent.run.journal import Journal
from celery_idempotent.settings import environment_of
from celery_idempotent.stores.base import Server
from celery_idempotent.stores.memory import MemoryStore
from celery_idempotent.testing.servers import RedisServer

#: Whether this kombu lets one choose how often its Redis transport looks for late messages.
#: Where kombu knows a limit at all.
LIMITED = (
    [("eta-limited", {"worker_eta_task_limit": 1000}, {})]
    if "max_prefetch" in signature(cast(Any, QoS.__init__)).parameters
    else []
)
RESTORES_AT_CHOICE = hasattr(kombu_redis.Channel, "unacked_restore_throttle")
#: A configuration in which nothing is to be found; nothing listens there, and nothing is asked.
GOOD: dict[str, Any] = {
    "broker_url": "redis://localhost:1/0",
    "result_backend": "redis://localhost:1/1",
    "idempotency_store_url": "redis://localhost:1/2",
    "task_time_limit": 600,
    "worker_prefetch_multiplier": 1,
    "broker_transport_options": {"unacked_restore_throttle": 1},
}
AMQP = {
    "broker_url": "amqp://localhost:1//",
    "broker_transport_options": {"confirm_publish": True},
}
#: kombu looks for messages that are due again each time it can.
OFTEN = {"unacked_restore_throttle": 1}
#: Enough connections for the acknowledgements of greenlets.
GREENLETS = {
    "worker_pool": "gevent",
    "broker_transport_options": {"max_connections": 1000, **OFTEN},
}
GOOD_INFO = {
    "redis_version": "7.2.4",
    "role": "master",
    "connected_slaves": "0",
    "maxmemory": "0",
    "maxmemory_policy": "noeviction",
    "used_memory": "1000",
    "aof_enabled": "1",
}
GOOD_CONFIG = {"save": "", "appendfsync": "everysec", "min-replicas-to-write": "0"}


@pytest.fixture
def made() -> Iterator[list[Celery]]:
    apps: list[Celery] = []
    yield apps
    for app in apps:
        app.close()


def patient(
    made: list[Celery],
    conf: dict[str, Any] | None = None,
    pool: str | None = None,
    **options: Any,
) -> Patient:
    """An app with one task that is as good as can be, but for what is given."""
    app = Celery("shop", set_as_current=False)
    made.append(app)
    app.conf.update({**GOOD, **(conf or {})})
    chosen: dict[str, Any] = {
        "base": IdempotentTask,
        "idempotency_key": "order:{order}",
        **options,
    }

    @app.task(name="shop.charge", shared=False, **chosen)
    def charge(order: int = 1) -> int:
        return order

    app.finalize()
    environment = environment_of(app)
    return Patient(app, environment, [Task(t.name, t, setup) for t, setup in setups(app)], pool)


def found(patient: Patient) -> set[str]:
    """The names of what is found without asking a server."""
    checks = (check_worker, check_keys, check_times, check_beat)
    told = [finding for check in checks for finding in check(patient)]
    told += check_broker(patient, NoServers())
    return {finding.name for finding in told}


def _broker(patient: Patient) -> Iterator[Finding]:
    return check_broker(patient, NoServers())


ALL_CHECKS: tuple[Callable[[Patient], Iterator[Finding]], ...] = (
    check_worker,
    check_times,
    _broker,
)


class NoServers(CelerysServers):
    """Stands for Celery's servers, which say ``said`` of themselves; ``None``: there are none."""

    def __init__(self, said: Server | None = None) -> None:
        self.said = said

    def at(self, url: str, tls: Any = None) -> list[Server]:
        return [self.said] if self.said else []


def found_at(info: dict[str, str], config: dict[str, str] | None = None) -> set[str]:
    """The names of what is found at a server that says this."""
    server = Server({**GOOD_INFO, **info}, GOOD_CONFIG if config is None else config)
    return {finding.name for finding in check_server(server, "redis://localhost")}


# --- servers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "config"),
    [
        ({}, {}),
        ({"redis_version": "6.0.0"}, {}),
        ({"redis_version": "10.1"}, {}),
        ({"redis_version": "unknown"}, {}),
        ({"maxmemory": "10000", "used_memory": "8900"}, {}),
        ({"connected_slaves": "1"}, {"min-replicas-to-write": "1"}),
        ({"aof_enabled": "1"}, {"appendfsync": "always"}),
    ],
    ids=str,
)
def test_a_good_server_is_not_spoken_of(info: dict[str, str], config: dict[str, str]) -> None:
    """It is new enough, persists, doesn't evict, and doesn't go on alone after a failover."""
    assert found_at(info, {**GOOD_CONFIG, **config}) == set()


@pytest.mark.parametrize(
    ("name", "info", "config"),
    [
        ("old-server", {"redis_version": "5.0.14"}, {}),
        ("replica", {"role": "slave"}, {}),
        ("unsafe-failover", {"connected_slaves": "2"}, {}),
        ("eviction", {"maxmemory_policy": "allkeys-lru"}, {}),
        ("eviction", {"maxmemory_policy": "volatile-ttl", "maxmemory": "1"}, {}),
        ("nearly-full", {"maxmemory": "10000", "used_memory": "9100"}, {}),
        ("no-persistence", {"aof_enabled": "0"}, {}),
        ("snapshots-only", {"aof_enabled": "0"}, {"save": "3600 1 300 100"}),
        ("late-persistence", {}, {"appendfsync": "no"}),
    ],
)
def test_each_fault_of_a_server_is_named(
    name: str, info: dict[str, str], config: dict[str, str]
) -> None:
    """That one, and no other."""
    assert found_at(info, {**GOOD_CONFIG, **config}) == {name}


@pytest.mark.parametrize(
    ("there", "wanted", "role", "names"),
    [
        ("0", 0, "master", set()),
        ("0", 1, "master", {"too-few-replicas"}),
        ("1", 1, "master", set()),
        ("1", 2, "master", {"too-few-replicas"}),
        ("0", 1, "slave", {"replica"}),
    ],
)
def test_replicas_to_wait_for_have_to_be_there(
    there: str, wanted: int, role: str, names: set[str]
) -> None:
    """As many as idempotency_wait_replicas says; a replica is found fault with once."""
    info = {**GOOD_INFO, "connected_slaves": there, "role": role}
    config = {**GOOD_CONFIG, "min-replicas-to-write": "1"}
    found = list(check_server(Server(info, config), "redis://localhost", wanted))
    assert {finding.name for finding in found} == names
    if wanted and role == "master" and names:
        assert found[0].value == f"idempotency_wait_replicas = {there}"


def test_a_server_that_tells_no_configuration_is_judged_by_what_it_says() -> None:
    """A managed server may forbid CONFIG: what INFO says is enough, what it doesn't is not held."""
    assert found_at({}, {}) == set()
    assert found_at({"aof_enabled": "0"}, {}) == {"snapshots-only"}
    assert found_at({"connected_slaves": "1"}, {}) == set()


@pytest.mark.parametrize(
    ("ahead", "doubt", "names"),
    [
        (0.0, 0.1, []),
        (5.0, 0.0, []),
        (-5.0, 0.0, []),
        (5.1, 0.0, ["clock"]),
        (-5.1, 0.0, ["clock"]),
        (7.0, 3.0, []),
        (9.0, 3.0, ["clock"]),
    ],
)
def test_a_clock_that_is_off_is_named(ahead: float, doubt: float, names: list[str]) -> None:
    """More than five seconds to either side, less what the answer may have taken."""
    assert [finding.name for finding in check_clock(ahead, doubt, "there")] == names


def test_a_server_that_may_not_be_asked_is_a_hint_and_nothing_else() -> None:
    """A user with least rights may be all right: what can't be seen is not held against it."""
    (finding,) = check_server(Server({}, {}), "redis://there")
    assert (finding.name, finding.level) == ("server-not-seen", "hint")


# --- a trial run ---------------------------------------------------------------------------------


class Refusing(MemoryStore):
    """A store that refuses what ``refused`` names, for a reason that nobody foresaw."""

    refused: tuple[str, ...] = ()

    def __getattribute__(self, name: str) -> Any:
        if name in object.__getattribute__(self, "refused"):
            raise StoreUnavailable("it is a Tuesday")
        return super().__getattribute__(name)


@pytest.mark.parametrize(
    ("refused", "levels"),
    [
        ((), []),
        (("step",), ["error"]),
        (("settle", "note"), ["error"]),
        (("forget",), ["error"]),
        (("scan",), ["warning"]),
        (("read_events",), ["warning"]),
        (("claim", "scan"), ["error"]),
    ],
    ids=str,
)
def test_a_trial_run_tells_what_the_store_refused(
    made: list[Celery], refused: tuple[str, ...], levels: list[str]
) -> None:
    """An error where tasks could not run; a warning where only operators can't look."""
    # Given
    store = Refusing()
    store.refused = refused
    environment = dataclasses.replace(
        patient(made).environment, store=store, journal=Journal(store, "idempotent:journal", 10)
    )
    # When
    found = list(try_run(environment))
    # Then
    assert [(finding.name, finding.level) for finding in found] == [
        ("trial-refused", level) for level in levels
    ]
    assert all("it is a Tuesday" in finding.what for finding in found)
    assert all(finding.what.startswith("a check could not ") for finding in found)


# --- settings and tasks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conf", "options"),
    [
        ({}, {}),
        ({"task_time_limit": None}, {"time_limit": 60}),
        (AMQP, {"time_limit": 1800}),
        ({"broker_transport_options": {"visibility_timeout": 601, **OFTEN}}, {}),
        (
            {"broker_transport_options": {"visibility_timeout": 3600, **OFTEN}},
            {"idempotency_ttl": 7200},
        ),
        ({}, {"max_retries": 9, "default_retry_delay": 300}),
        ({}, {"autoretry_for": (OSError,), "retry_backoff": True, "max_retries": 10}),
        ({"result_backend": None}, {"ignore_result": True}),
        ({"idempotency_on_enqueue": "attach"}, {}),
        ({"idempotency_on_enqueue": "raise"}, {}),
        ({}, {"ignore_result": True, "idempotency_on_enqueue": "publish"}),
        ({"result_backend": "db+sqlite:///results.db"}, {}),
        ({"worker_prefetch_multiplier": 4}, {}),
        ({"idempotency_store_options": {"socket_timeout": 10}}, {}),
        ({}, {"idempotency_lease": 6}),
        ({}, {"idempotency_wait_timeout": 0, "idempotency_on_running": "raise"}),
        ({}, {"idempotency_wait_timeout": 600}),
        ({"idempotency_accept": ("no-time-limit",), "idempotency_journal": 5}, {}),
    ],
    ids=str,
)
def test_a_good_configuration_is_not_spoken_of(
    made: list[Celery], conf: dict[str, Any], options: dict[str, Any]
) -> None:
    """Neither the best one, nor any that is just good enough."""
    assert found(patient(made, conf, **options)) == set()


@pytest.mark.parametrize(
    ("name", "conf", "options"),
    [
        ("switched-off", {}, {"idempotency_mode": "off"}),
        ("shadow", {"idempotency_mode": "shadow"}, {}),
        ("memory-with-processes", {"idempotency_store_url": "memory://doctor"}, {}),
        ("memory", {"idempotency_store_url": "memory://doctor", **GREENLETS}, {}),
        ("acks-early", {}, {"acks_late": False}),
        ("always-eager", {"task_always_eager": True}, {}),
        ("unconfirmed-publish", {"broker_url": "amqp://localhost:1//"}, {}),
        ("delivers-once", {"broker_url": "filesystem://"}, {}),
        ("delivers-once", {"broker_url": "sqla+sqlite:///messages.db"}, {}),
        *[("late-redelivery", {"broker_transport_options": {}}, {})] * RESTORES_AT_CHOICE,
        ("time-limit-not-enforced", {"worker_pool": "threads"}, {}),
        ("time-limit-not-enforced", {"worker_pool": "solo", "task_time_limit": None}, {}),
        ("key-not-chosen", {}, {"idempotency_key": None}),
        *[
            ("left-over-option", {}, option)
            for option in (
                {"once": {"keys": ["order"]}},
                {"unique_on": ["order"]},
                {"lock_expiry": 60},
                {"heimdall": {"unique": True}},
            )
        ],
        ("lost-with-its-process", {}, {"reject_on_worker_lost": False}),
        ("no-result-backend", {"result_backend": None}, {}),
        ("no-result-backend", {"result_backend": "disabled://"}, {}),
        *[
            ("enqueue-without-results", {}, {"idempotency_on_enqueue": how, "ignore_result": True})
            for how in ("attach", "raise")
        ],
        (
            "enqueue-without-results",
            {"task_ignore_result": True, "idempotency_on_enqueue": "attach"},
            {},
        ),
        ("forgetful-result-backend", {"result_backend": "rpc://"}, {}),
        ("forgetful-result-backend", {"result_backend": "cache+memory://"}, {}),
        ("task-serializer", {"task_serializer": "yaml"}, {}),
        ("result-serializer", {"result_serializer": "yaml"}, {}),
        ("result-serializer", {"result_accept_content": ["msgpack"]}, {}),
        ("pickle", {"accept_content": ["json", "pickle"]}, {}),
        *LIMITED,
        ("few-broker-connections", {"worker_pool": "gevent"}, {}),
        ("prefetch-unlimited", {"worker_prefetch_multiplier": 0}, {}),
        ("prefetch", {"worker_prefetch_multiplier": 8}, {}),
        ("short-lease", {}, {"idempotency_lease": 2.9}),
        ("short-lease", {"idempotency_store_options": {"socket_timeout": 20}}, {}),
        ("no-time-limit", {"task_time_limit": None}, {}),
        ("consumer-timeout", AMQP, {"time_limit": 1801}),
        (
            "visibility-below-lease",
            {
                "broker_transport_options": {"visibility_timeout": 30, **OFTEN},
                "task_time_limit": 20,
            },
            {},
        ),
        (
            "visibility-below-run",
            {"broker_transport_options": {"visibility_timeout": 600, **OFTEN}},
            {},
        ),
        (
            "visibility-below-countdown",
            {"broker_transport_options": {"visibility_timeout": 700, **OFTEN}},
            {"default_retry_delay": 700, "max_retries": 1},
        ),
        ("tiny-window", {}, {"idempotency_ttl": 0.1}),
        ("window-below-visibility", {}, {"idempotency_ttl": timedelta(seconds=7199)}),
        ("window-below-run", AMQP, {"idempotency_ttl": 599}),
        ("window-below-retries", AMQP, {"idempotency_ttl": 899, "max_retries": 5}),
        ("short-wait", {}, {"idempotency_wait_timeout": 599}),
        ("short-wait", {}, {"max_retries": 18}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_fault_of_a_configuration_is_named(
    made: list[Celery], name: str, conf: dict[str, Any], options: dict[str, Any]
) -> None:
    """That one, and no other."""
    assert found(patient(made, conf, **options)) == {name}


def test_without_a_result_backend_duplicates_are_not_stopped_at_the_enqueue(
    made: list[Celery],
) -> None:
    """Both are said, unless nothing is reserved in this mode."""
    conf = {"result_backend": None, "idempotency_on_enqueue": "attach"}
    assert found(patient(made, conf)) == {"no-result-backend", "enqueue-without-results"}
    shadow = patient(made, {**conf, "idempotency_mode": "shadow"})
    assert found(shadow) == {"no-result-backend", "shadow"}


def test_no_window_is_no_fault(made: list[Celery]) -> None:
    """Who sets 0 wants the next call to run."""
    assert found(patient(made, {}, idempotency_ttl=0)) == set()


def test_a_pool_that_shares_memory_may_keep_records_there(made: list[Celery]) -> None:
    """What the worker's pool is outranks what the app would use."""
    conf = {"idempotency_store_url": "memory://doctor", **GREENLETS}
    assert found(patient(made, conf, pool="celery.concurrency.gevent")) == {"memory"}
    assert found(patient(made, conf, pool="celery.concurrency.prefork")) == {
        "memory-with-processes"
    }


@pytest.mark.parametrize(
    ("info", "config", "levels"),
    [
        ({}, GOOD_CONFIG, []),
        ({"maxmemory_policy": "allkeys-lru"}, GOOD_CONFIG, ["error"]),
        ({"maxmemory_policy": "volatile-lru"}, GOOD_CONFIG, ["warning"]),
        ({"aof_enabled": "0"}, GOOD_CONFIG, ["error"]),
        ({"aof_enabled": "0"}, {**GOOD_CONFIG, "save": "3600 1"}, []),
    ],
    ids=str,
)
def test_a_broker_that_loses_calls_is_named(
    made: list[Celery], info: dict[str, str], config: dict[str, str], levels: list[str]
) -> None:
    """One that evicts, or keeps nothing on disk; snapshots are the user's choice."""
    told = check_broker(patient(made), NoServers(Server({**GOOD_INFO, **info}, config)))
    assert [(it.name, it.level) for it in told] == [("forgetful-broker", it) for it in levels]


def timed(order: int, sent_at: datetime) -> int: ...
def traced(order: int, requestId: str) -> int: ...  # noqa: N803
def numbered(order: int, id: uuid.UUID = uuid.uuid4()) -> int: ...  # noqa: B008
def stamped(order: int, timestamp: float = 0) -> int: ...
def planned(order: int, day: date, created_at: str = "") -> int: ...
def due(order: int, due: datetime) -> int: ...


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (timed, ["sent_at"]),
        (traced, ["requestId"]),
        (numbered, ["id"]),
        (stamped, ["timestamp"]),
        (planned, []),
        (due, []),
    ],
)
def test_an_argument_that_differs_each_time_is_named(
    made: list[Celery], body: Callable[..., int], names: list[str]
) -> None:
    """By its name, or by a default that is made anew in each process; and the key without it."""
    # Given
    app = Celery("shop", set_as_current=False)
    made.append(app)
    app.conf.update(GOOD)
    app.task(body, base=IdempotentTask, name="shop.charge", shared=False)
    app.finalize()
    tasks = [Task(task.name, task, setup) for task, setup in setups(app)]
    # When
    (finding,) = check_keys(Patient(app, environment_of(app), tasks))
    # Then
    assert finding.name == ("volatile-argument" if names else "key-not-chosen")
    if names:
        assert names[0] in finding.what
        assert finding.value == "idempotency_key = ('order',)"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ({"once": {"keys": ["order"], "graceful": True}}, "idempotency_key = ('order',)"),
        ({"once": {"keys": []}}, "idempotency_key = lambda *args, **kwargs: 'all'"),
        ({"once": {}}, "idempotency_ttl = 0"),
        ({"unique_on": ["order"]}, "idempotency_key = ('order',)"),
        ({"lock_expiry": 60}, "idempotency_ttl = 0"),
        ({"heimdall": {"unique": True}}, "idempotency_ttl = 0"),
    ],
)
def test_an_option_of_a_lock_that_is_gone_is_named(
    made: list[Celery], option: dict[str, Any], value: str
) -> None:
    """With what stands for it here."""
    (finding,) = check_keys(patient(made, **option))
    assert next(iter(option)) in finding.what
    assert finding.value == value


def test_an_option_that_a_base_reads_is_not_left_over(made: list[Celery]) -> None:
    """Of the library itself, beside this one, or of the user's own."""

    # Given
    class Own(IdempotentTask):
        abstract = True
        once: ClassVar[dict[str, Any]] = {}

    class Singular(Singleton, IdempotentTask):
        abstract = True

    class Guarded(HeimdallTask, IdempotentTask):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return IdempotentTask.__call__(self, *args, **kwargs)

    given: list[dict[str, Any]] = [
        {"base": Own, "once": {"keys": ["order"]}},
        {"base": Singular, "unique_on": ["order"], "lock_expiry": 60},
        {"base": Guarded, "heimdall": {"unique": True}},
    ]
    # Then
    for options in given:
        assert list(check_keys(patient(made, **options))) == []


@pytest.mark.parametrize("conf", [{}, {"broker_url": "amqp://localhost:1//"}], ids=str)
def test_who_follows_the_advice_is_given_no_other(made: list[Celery], conf: dict[str, Any]) -> None:
    """Each fix is a setting that can be written as it stands, and leads to no other finding."""
    # Given
    plain = {name: None for name in GOOD if name.startswith(("task_", "worker_eta"))}
    settings = {**plain, "worker_prefetch_multiplier": 4, "broker_transport_options": {}, **conf}
    # When
    for _ in range(10):
        examined = patient(made, settings)
        told = [it for check in ALL_CHECKS for it in check(examined)]
        if not told:
            break
        before = len(told)
        name, _, value = told[0].value.partition(" = ")
        settings[name] = ast.literal_eval(value)
        examined = patient(made, settings)
        after = [it.name for check in ALL_CHECKS for it in check(examined)]
        # Then
        assert len(after) == before - 1, (told[0], after)
    assert told == []


def test_a_project_with_a_prefix_is_told_its_own_names(
    made: list[Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Django's settings begin with CELERY_; what stands on a task does not."""
    # Given
    monkeypatch.setattr(examination, "check_store", lambda *_, **__: iter(()))
    app = patient(
        made, {"task_time_limit": None, "broker_transport_options": {}}, acks_late=False
    ).app
    monkeypatch.setattr(examination, "prefix_of", lambda app: "CELERY_")
    # When
    told = {finding.name: finding.value for finding in examine(app)}
    # Then
    options = "CELERY_BROKER_TRANSPORT_OPTIONS = {'unacked_restore_throttle': 1}"
    late = {"late-redelivery": options}
    assert told == {
        "acks-early": "acks_late = True",
        "no-time-limit": "CELERY_TASK_TIME_LIMIT = 1200",
        **(late if RESTORES_AT_CHOICE else {}),
    }


def test_a_task_that_is_off_has_no_times_to_get_wrong(made: list[Celery]) -> None:
    """Its options mean nothing."""
    options = {"idempotency_mode": "off", "idempotency_lease": 0.1, "idempotency_ttl": 0.1}
    assert found(patient(made, {"task_time_limit": None}, **options)) == {"switched-off"}


def test_many_tasks_with_one_fault_are_one_finding(made: list[Celery]) -> None:
    """It names the first of them, and counts the others."""
    # Given
    app = Celery("shop", set_as_current=False)
    made.append(app)
    app.conf.update(GOOD)

    def charge(order: int) -> int:
        return order

    for number in range(5):
        name = f"shop.charge{number}"
        app.task(charge, base=IdempotentTask, name=name, shared=False, acks_late=False)
    app.finalize()
    tasks = [Task(task.name, task, setup) for task, setup in setups(app)]
    # When
    (finding,) = check_worker(Patient(app, environment_of(app), tasks))
    # Then
    assert "shop.charge0, shop.charge1, shop.charge2 and 2 more" in finding.what


# --- tenants -------------------------------------------------------------------------------------


class TenantSettings:
    """Django's, of a project with a schema for each tenant."""

    INSTALLED_APPS = ("django_tenants", "shop")
    SHARED_APPS: tuple[str, ...] = ("django_tenants", "celery_idempotent.django")
    TENANT_APPS: tuple[str, ...] = ("shop",)


def named_by_function(order: int) -> str:
    return str(order)


@pytest.mark.parametrize(
    ("options", "is_found"),
    [
        ({}, True),
        ({"idempotency_key": ("order",)}, True),
        ({"idempotency_namespace": "payments"}, True),
        ({"idempotency_namespace": "tenant:{order}"}, False),
        ({"idempotency_namespace": named_by_function}, False),
        ({"idempotency_key": named_by_function}, False),
        ({"idempotency_key": MESSAGE_ID}, False),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_keys_that_name_no_tenant_are_found_where_there_are_some(
    made: list[Celery], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], is_found: bool
) -> None:
    """A function may name it; a message's id is nobody else's."""
    examined = patient(made, {}, **options)
    monkeypatch.setattr(tenants, "_settings", TenantSettings)
    assert [finding.name for finding in tenants.check_tenants(examined)] == (
        ["tenants-share-keys"] if is_found else []
    )


def test_tables_that_each_tenant_has_for_itself_are_found(
    made: list[Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the app is named; and a project without tenants has nothing to find."""
    # Given
    examined = patient(made, {}, idempotency_key=MESSAGE_ID)
    monkeypatch.setattr(TenantSettings, "SHARED_APPS", ("django_tenants",))
    name = "celery_idempotent.django.apps.IdempotencyConfig"
    monkeypatch.setattr(TenantSettings, "TENANT_APPS", (name,))
    # Then
    assert list(tenants.check_tenants(examined)) == []
    monkeypatch.setattr(tenants, "_settings", TenantSettings)
    assert [it.name for it in tenants.check_tenants(examined)] == ["tables-per-tenant"]


# --- periodic tasks ------------------------------------------------------------------------------


def tick(schedule: Any, **fields: Any) -> dict[str, Any]:
    """A beat_schedule with one entry."""
    entry = {"task": "shop.charge", "schedule": schedule, "args": (1,), **fields}
    return {"beat_schedule": {"every-so-often": entry}}


@pytest.mark.parametrize(
    "conf",
    [
        tick(60),
        tick(timedelta(hours=24)),
        tick(crontab(minute=0)),
        tick(crontab(minute=0, hour=0)),
        tick(60, options={"idempotency_key": "always the same"}),
        tick(60, options={"headers": {"Idempotency-Key": "always the same"}}),
    ],
    ids=str,
)
def test_a_periodic_task_that_would_run_once_a_day_is_named(
    made: list[Celery], conf: dict[str, Any]
) -> None:
    """Its key is the same at every tick, and the window is longer than from tick to tick."""
    assert found(patient(made, conf)) == {"frozen-key"}


@pytest.mark.parametrize(
    ("conf", "names"),
    [
        (tick(60), {"key-by-function"}),
        (tick(timedelta(hours=25)), set()),
        (tick(60, args=(BeatLazyFunc(int),)), set()),
        (tick(60, options={"idempotency_key": "k"}), {"frozen-key"}),
        (tick(60, options={"headers": {"idempotency-key": "k"}}), {"frozen-key"}),
    ],
)
def test_a_periodic_task_whose_key_a_function_makes_is_hinted_at(
    made: list[Celery], conf: dict[str, Any], names: set[str]
) -> None:
    """It may return the same at each tick, within a window."""
    key = lambda order: "it may tell the time"  # noqa: E731
    assert found(patient(made, conf, idempotency_key=key)) == names


@pytest.mark.parametrize(
    ("conf", "options"),
    [
        (tick(60), {"idempotency_key": MESSAGE_ID}),
        (tick(60), {"idempotency_namespace": lambda order: "it tells the time"}),
        (tick(60, args=(BeatLazyFunc(int),)), {}),
        (tick(60, args=(), kwargs={"order": BeatLazyFunc(int)}), {}),
        (tick(timedelta(hours=25)), {}),
        (tick(60), {"idempotency_mode": "off"}),
        (tick(crontab(minute=0, hour=3, day_of_week="sunday")), {}),
        (tick(60, task="celery.backend_cleanup"), {}),
        (tick(60, task="shop.unknown"), {}),
        (tick(BaseSchedule()), {}),
    ],
)
def test_a_periodic_task_that_runs_at_each_tick_is_not_spoken_of(
    made: list[Celery], conf: dict[str, Any], options: dict[str, Any]
) -> None:
    """Its key changes, or its window is over, or it isn't ours; or nobody can tell."""
    assert found(patient(made, conf, **options)) - {"switched-off"} == set()


@pytest.mark.parametrize(
    ("schedule", "interval"),
    [
        (30, 30.0),
        (timedelta(minutes=5), 300.0),
        (crontab(), 60.0),
        (crontab(minute="*/15"), 900.0),
        (crontab(minute=0, hour="9,17"), 8 * 3600.0),
        (crontab(minute=0, hour=0, day_of_month="1"), 28 * 86400.0),
        (crontab(minute="0,1", hour="0"), 60.0),
        ("no schedule", None),
    ],
    ids=str,
)
def test_the_shortest_time_between_two_ticks_counts(
    made: list[Celery], schedule: Any, interval: float | None
) -> None:
    """A crontab may tick twice in a minute, once a day."""
    assert shortest_interval(schedule, patient(made).app) == interval


# --- the examination -----------------------------------------------------------------------------


def test_a_store_that_is_away_is_one_finding_and_no_error(made: list[Celery]) -> None:
    """All that can be checked without it is checked."""
    # Given
    app = patient(made, {"worker_prefetch_multiplier": 0}).app
    # When
    names = {finding.name for finding in examine(app)}
    # Then
    assert names == {"store-away", "prefetch-unlimited"}


def test_what_is_accepted_is_not_spoken_of(
    made: list[Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name, in idempotency_accept; the rest is found as before."""
    # Given
    monkeypatch.setattr(examination, "check_store", lambda *_, **__: iter(()))
    wrong = {"task_time_limit": None, "worker_prefetch_multiplier": 0}
    app = patient(made, {**wrong, "idempotency_accept": ["no-time-limit"]}).app
    # Then
    assert [finding.name for finding in examine(app)] == ["prefetch-unlimited"]


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("late-redelivry", "Did you mean: late-redelivery"),
        ("x", "Take it out, or name one of those on the page: docs/doctor.rst"),
    ],
)
def test_a_misspelt_finding_is_accepted_by_nobody(
    made: list[Celery], monkeypatch: pytest.MonkeyPatch, name: str, advice: str
) -> None:
    """It is a finding itself."""
    # Given
    monkeypatch.setattr(examination, "check_store", lambda *_, **__: iter(()))
    app = patient(made, {"idempotency_accept": [name]}).app
    # When
    (finding,) = examine(app)
    # Then
    assert (finding.name, finding.level) == ("no-such-finding", "warning")
    assert repr(name) in finding.what
    assert finding.sentence.endswith(advice)


def test_where_kombu_knows_no_limit_nothing_is_said_of_it(
    made: list[Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting does nothing there."""

    # Given
    class OlderQoS:
        def __init__(self, callback: Any, initial_value: int) -> None:
            raise AssertionError("nobody makes one")

    monkeypatch.setattr(worker, "_qos", OlderQoS)
    # Then
    found = list(check_worker(patient(made, {"worker_eta_task_limit": 1000})))
    assert "eta-limited" not in {finding.name for finding in found}


def test_errors_come_before_warnings(made: list[Celery], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads only the first lines has read the worst."""
    # Given
    monkeypatch.setattr(examination, "check_store", lambda *_, **__: iter(()))
    app = patient(made, {"worker_prefetch_multiplier": 0, "task_serializer": "yaml"}).app
    # Then
    assert [finding.level for finding in examine(app)] == ["error", "warning"]


def test_a_finding_says_why_it_matters_and_what_to_write() -> None:
    """In its sentence as in its fields."""
    # Given
    (finding,) = check_server(
        Server({**GOOD_INFO, "maxmemory_policy": "allkeys-lfu"}, GOOD_CONFIG), "redis://there"
    )
    # Then
    assert set(finding.as_dict()) == {"name", "level", "what", "why", "fix", "value"}
    assert all(finding.as_dict().values())
    assert finding.value == "maxmemory-policy noeviction"
    assert finding.why in str(finding)
    # Where an error of a server's is the problem, which may end with a full stop
    told = dataclasses.replace(finding, what="Connection refused.")
    assert told.sentence.startswith(f"Connection refused. {finding.why} ")
    assert finding.value in str(finding)


def test_no_finding_shows_a_password(made: list[Celery]) -> None:
    """Not of the store, and not of the result backend."""
    # Given
    app = patient(
        made,
        {
            "idempotency_store_url": "redis://:hunter2@localhost:1/2",
            "result_backend": "redis://:hunter3@localhost:2/0",
        },
    ).app
    # When
    told = "\n".join(map(str, examine(app)))
    # Then
    assert "store-away" in told
    assert "result-backend-away" in told
    assert "hunter" not in told


def test_every_finding_is_tested_here() -> None:
    """No check has a name that this module doesn't know."""
    # Given
    spec = importlib.util.find_spec("celery_idempotent.ops.doctor")
    assert spec is not None
    assert spec.origin is not None
    sources = Path(spec.origin).parent.glob("*.py")
    names = {name for source in sources for name in names_in(source)}
    # Then
    assert len(names) > 25
    beside = Path(__file__).parents[1] / "system" / "test_doctor_trial.py"
    here = "".join(path.read_text(encoding="utf-8") for path in (Path(__file__), beside))
    assert {name for name in names if f'"{name}"' not in here} == set()


def names_in(source: Path) -> Iterator[str]:
    """The names of the findings that a module makes."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == Finding.__name__:
            for part in ast.walk(node.args[0]):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value


def test_a_store_that_answers_is_not_said_to_be_away(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Its tables are missing, or its URL names a database that it doesn't have."""
    # Given
    empty = tmp_path / "records.db"
    empty.touch()
    found = []
    for url in (f"sqlite:///{empty}", f"sqlite:///{empty}.db", redis_server.url(99)):
        app = Celery("shop", broker="memory://", set_as_current=False)
        app.conf.idempotency_store_url = url
        # When
        (finding,) = examination.check_store(environment_of(app))
        found.append(finding)
    # Then
    assert [it.name for it in found] == ["no-tables", "no-tables", "trial-refused"]
    assert found[0].value == found[1].value == "celery -A <your app> idempotency init-db"
    assert not any("does not answer" in it.sentence or "Start it" in it.fix for it in found)
