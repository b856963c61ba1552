"""Fixtures for every test: private servers, brokers, systems; and no skipping under CI=true."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import celery.app.builtins
import pytest
import redis
from celery import _state
from hypothesis import settings
from kombu.transport import memory

from celery_idempotent.stores.sql.store import SqlStore
from celery_idempotent.testing.servers import RedisServer
from tests.support.bookings import Books
from tests.support.brokers import (
    AMQP_URL,
    AMQP_VARIABLE,
    Broker,
    RabbitBroker,
    RedisBroker,
    rabbitmq_answers,
)
from tests.support.chromium import Chromium
from tests.support.databases import MYSQL, ON_A_SERVER, POSTGRESQL, Database, emptied
from tests.support.missing import NotThere
from tests.support.redises import redis_binary
from tests.support.system import System
from tests.support.warm import remember_version

IN_CI = os.environ.get("CI", "").lower() == "true"
SYSTEMS: pytest.StashKey[list[System]] = pytest.StashKey()

MakeSystem = Callable[..., System]


#: Files in memory: what tests write need not outlive the machine, and a disk takes most of it.
IN_MEMORY = Path("/dev/shm")
if os.access(IN_MEMORY, os.W_OK) and shutil.disk_usage(IN_MEMORY).free > 4 << 30:
    os.environ.setdefault("TMPDIR", str(IN_MEMORY))
    tempfile.tempdir = None  # read the variable again

remember_version()

# No test asserts how long something takes, and Hypothesis would.
settings.register_profile("ours", deadline=None)
settings.load_profile("ours")

# The assertions in the shipped contract explain themselves, as a test's own do.
pytest.register_assert_rewrite("celery_idempotent.testing.contract")

#: Celery's own tasks must be among what each test starts with, whichever test needs them first.
assert celery.app.builtins


@pytest.fixture(autouse=True)
def tasks_of_this_test_only() -> Iterator[None]:
    """Celery offers each task to every later app of the process, under its name: not in tests."""
    offered = set(_state._on_app_finalizers)
    yield
    _state._on_app_finalizers.intersection_update(offered)


@pytest.fixture(autouse=True)
def messages_of_this_test_only() -> Iterator[None]:
    """Every ``memory://`` broker of a process is the same one: what a test left in it goes."""
    yield
    memory.Channel.queues.clear()


@pytest.fixture(scope="session")
def session_server() -> Iterator[RedisServer]:
    """One private server for the whole run; use ``redis_server``, which is empty."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_server(session_server: RedisServer) -> RedisServer:
    """The run's private server, emptied: broker, results and records may all be in it."""
    with redis.Redis.from_url(session_server.url()) as client:
        client.flushall()
        client.script_flush()
    return session_server


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A server for this test alone, with every write on disk: to be killed, paused and counted."""
    with RedisServer(args=("--appendonly", "yes", "--appendfsync", "always")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_program() -> Path:
    """Redis itself, where it is installed: what all other tests run on is Valkey."""
    return redis_binary()


@pytest.fixture
def rabbit_broker() -> RabbitBroker:
    """RabbitMQ, where it runs."""
    if not rabbitmq_answers():
        raise NotThere(
            f"no RabbitMQ at {AMQP_URL.rpartition('@')[2]}: start one (rabbitmq-server -detached), "
            f"or name another with {AMQP_VARIABLE}"
        )
    return RabbitBroker()


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest, redis_server: RedisServer) -> Broker:
    """Each broker in turn."""
    if request.param == "redis":
        return RedisBroker(redis_server)
    rabbit: RabbitBroker = request.getfixturevalue("rabbit_broker")
    return rabbit


@pytest.fixture
def redis_broker(redis_server: RedisServer) -> RedisBroker:
    """Redis, for what only its transport does, or where the broker makes no difference."""
    return RedisBroker(redis_server)


@pytest.fixture(scope="session", params=[POSTGRESQL, MYSQL, "sqlite"])
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """Each kind of SQL database in turn, one for the whole run: a test empties what it uses.

    A test that is marked with ``ON_SERVERS`` runs on those behind a network only.
    """
    made = Database(request.param, tmp_path_factory.mktemp("sql"))
    yield made
    made.drop()


@pytest.fixture
def own_postgresql(tmp_path: Path) -> Iterator[Database]:
    """An empty PostgreSQL database for this test alone: to be set up in its own way."""
    made = Database("postgresql", tmp_path)
    yield made
    made.drop()


@pytest.fixture
def sql_store(database: Database) -> Iterator[SqlStore]:
    """An SQL store on each kind of database, without a record."""
    made = emptied(SqlStore.from_url(database.url))
    yield made
    made.close()


@pytest.fixture
def books(database: Database) -> Iterator[Books]:
    """What bodies write into the store's own database: see ``tests.support.bookings``."""
    made = Books(database.url)
    yield made
    made.close()


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Chromium]:
    """A headless Chromium."""
    window = Chromium(tmp_path / "chromium")
    yield window
    window.close()


def _systems(
    request: pytest.FixtureRequest, broker: Broker, server: RedisServer, directory: Path
) -> Iterator[MakeSystem]:
    made = request.node.stash.setdefault(SYSTEMS, [])

    def make(**options: Any) -> System:
        system = System(broker, server, directory, **options)
        made.append(system)
        return system

    yield make
    for system in made:
        system.close()


@pytest.fixture
def make_system(
    request: pytest.FixtureRequest, broker: Broker, redis_server: RedisServer, tmp_path: Path
) -> Iterator[MakeSystem]:
    """Make a system on each broker: ``make_system(visibility_timeout=2, idempotency_lease=30)``."""
    yield from _systems(request, broker, redis_server, tmp_path)


@pytest.fixture
def make_redis_system(
    request: pytest.FixtureRequest,
    redis_broker: RedisBroker,
    redis_server: RedisServer,
    tmp_path: Path,
) -> Iterator[MakeSystem]:
    """Make a system on Redis only."""
    yield from _systems(request, redis_broker, redis_server, tmp_path)


@pytest.fixture
def make_rabbit_system(
    request: pytest.FixtureRequest,
    rabbit_broker: RabbitBroker,
    redis_server: RedisServer,
    tmp_path: Path,
) -> Iterator[MakeSystem]:
    """Make a system on RabbitMQ only."""
    yield from _systems(request, rabbit_broker, redis_server, tmp_path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    """Skip what needs something that is not there; fail under CI=true, which has to have all."""
    with skipping_what_is_not_there():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """The same, where a test finds it out."""
    with skipping_what_is_not_there():
        return (yield)


@contextmanager
def skipping_what_is_not_there() -> Iterator[None]:
    try:
        yield
    except NotThere as exc:
        if IN_CI:
            pytest.fail(str(exc), pytrace=False)
        pytest.skip(str(exc))


#: Every test in these folders has more than one process.
WHOLE_SYSTEMS = {"faults", "system"}


@functools.cache
def is_of_a_whole_system(path: Path) -> bool:
    """Whether a module is in one of these folders."""
    return path.relative_to(Path(__file__).parent).parts[0] in WHOLE_SYSTEMS


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m unit`` look into none of these folders: nothing in them is a unit test."""
    if config.option.markexpr == "unit" and collection_path.name in WHOLE_SYSTEMS:
        return True
    return None


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Look for no garbage among what lives until the end: thousands of tests, and their modules."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark as ``unit`` whatever isn't marked as ``system``, by itself or by its folder."""
    if is_of_a_whole_system(item.path):
        item.add_marker("system")
        # A database brings this along; each version has to pass its contract, and not all systems.
        item.own_markers[:] = [it for it in item.own_markers if it is not ON_A_SERVER[1].mark]
    elif item.get_closest_marker("system") is None:
        item.add_marker("unit")


def seconds_of(item: pytest.Item) -> float:
    """About how long a test takes."""
    long = item.get_closest_marker("long")
    if long is not None:
        return float(*long.args)
    if is_of_a_whole_system(item.path):
        return 5.0
    # The contract of the stores is written in classes, and its tests are short on each database.
    is_short = item.get_closest_marker("unit") or getattr(item, "cls", None)
    return 0.01 if is_short else 1.0


def _parameters(item: pytest.Item) -> dict[str, Any]:
    """What a test is tried with in turn, by name, and which of that it is."""
    call = getattr(item, "callspec", None)
    return {} if call is None else call.params


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this Celery does not have; see that each process names the tests alike.

    The files that take longest come first: with `make test` they go to several processes, and none
    is left alone with a long one in the end. What ``-m`` leaves out is left out by then, and pytest
    has put together what shares a database, which spreads the tests of a file.
    """
    seconds: Counter[Path] = Counter()
    for item in items:
        seconds[item.path] += seconds_of(item)  # type: ignore[assignment]
    items.sort(key=lambda item: (-seconds[item.path], item.path))
    version = tuple(int(part) for part in celery.__version__.split(".")[:2])
    for_later = [
        item
        for item in items
        if any(
            version < mark.args and mark.kwargs.items() <= _parameters(item).items()
            for mark in item.iter_markers("celery_at_least")
        )
    ]
    if for_later:
        config.hook.pytest_deselected(items=for_later)
        items[:] = [item for item in items if item not in for_later]
    unstable = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if unstable:
        raise pytest.UsageError(f"names that are others in each process: {unstable}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the ledger and the workers' logs of a test that failed."""
    report: pytest.TestReport = yield
    if report.failed:
        for system in item.stash.get(SYSTEMS, []):
            report.sections.append(("ledger", str(system.ledger)))
            for worker in system.workers:
                report.sections.append((f"log of {worker.node}", worker.log[-8000:]))
    return report


def skipped(config: pytest.Config) -> list[Any]:
    """The reports of what was skipped so far, tests and whole modules."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return [] if reporter is None else reporter.stats.get("skipped", [])


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Under CI=true a skipped test is a test that did not show what it is there for: a failure."""
    if IN_CI and exitstatus == pytest.ExitCode.OK and skipped(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say why the run failed where only skipping made it fail."""
    if IN_CI and skipped(config):
        terminalreporter.section("skipped under CI=true, which counts as failed", red=True)
        for report in skipped(config):
            terminalreporter.line(report.nodeid)
