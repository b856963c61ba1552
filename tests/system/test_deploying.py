"""The recipes of docs/deploying.rst, with addresses of this machine: each answers a duplicate."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from celery import exceptions

from celery_idempotent.testing.servers import RedisServer, _free_port
from tests.conftest import SYSTEMS, MakeSystem
from tests.support import warm
from tests.support.brokers import RedisBroker
from tests.support.clusters import Cluster
from tests.support.databases import Database
from tests.support.ledger import Ledger
from tests.support.recipes import settings_of, text_of
from tests.support.replicas import Pair, Sentinel
from tests.support.tasks import make_app
from tests.support.waiting import eventually
from tests.support.workers import ROOT, Worker

pytestmark = pytest.mark.long(60)

#: The server that the recipes name where it is this machine's.
HERE = "redis://localhost:6379"


class Deployed:
    """A worker with a recipe's settings, and an app that calls its tasks."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        ledger = folder / f"ledger-{uuid.uuid4().hex[:6]}"
        self.settings = {**settings, "test_ledger": str(ledger)}
        self.ledger = Ledger(ledger)
        self.app = make_app(self.settings)
        self.workers: list[Worker] = []
        self._supervise()

    def _supervise(self) -> None:
        """Start a worker where none runs, as a supervisor would.

        One that loses its Sentinel's master may end: kombu fails as it closes the connection.
        """
        if not any(worker.running for worker in self.workers):
            self.workers.append(Worker(self.settings, concurrency=2))
            self.workers[-1].wait_until_ready()

    def charge(self, order: int, patience: float = 60) -> str:
        """Charge an order; return its receipt."""
        result = self.app.tasks["shop.charge"].delay(order)
        until = time.monotonic() + patience
        while True:
            self._supervise()
            try:
                return str(result.get(timeout=2)["receipt"])
            except exceptions.TimeoutError:
                if time.monotonic() > until:
                    raise

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.app.close()


Deploy = Callable[[dict[str, Any]], Deployed]


@pytest.fixture
def deploy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Deploy]:
    made: list[Deployed] = request.node.stash.setdefault(SYSTEMS, [])

    def start(settings: dict[str, Any]) -> Deployed:
        made.append(Deployed(settings, tmp_path))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_sentinel(deploy: Deploy, tmp_path: Path) -> None:
    """Messages, results and records: a duplicate gets its result after a failover, too."""
    # Given
    pair = Pair()
    pair.follow(pair.master.port)
    sentinel = Sentinel(tmp_path, pair.master)
    try:
        place = f"127.0.0.1:{sentinel.port}"
        names = {f"sentinel-{number}:26379": place for number in (1, 2, 3)}
        shop = deploy(settings_of("deploy_sentinel.py", names))
        receipt = shop.charge(1)
        assert shop.charge(1) == receipt
        pair.wait_until_same()
        # When
        pair.master.kill()
        eventually(lambda: sentinel.master_port() == pair.replica.port, "another master", 60)
        shop.app.close()
        shop.app = make_app(shop.settings)  # as another web process would
        # Then
        assert shop.charge(1) == receipt
        assert shop.ledger.count("effect") == 1
    finally:
        sentinel.close()
        pair.close()


def test_cluster(deploy: Deploy, redis_server: RedisServer, tmp_path: Path) -> None:
    """Records are spread over its nodes, and each duplicate finds its own."""
    # Given
    cluster = Cluster()
    try:
        broker = RedisBroker(redis_server)
        names = {
            f"node-{number}:6379": f"127.0.0.1:{server.port}"
            for number, server in enumerate(cluster.servers, start=1)
        }
        names["redis://results:6379/0"] = redis_server.url(1)
        settings = settings_of("deploy_cluster.py", names)
        assert settings["broker_url"].startswith("amqp://")
        shop = deploy({**settings, **broker.settings(60)})
        # When
        receipts = [shop.charge(order) for order in range(8)]
        # Then
        assert [shop.charge(order) for order in range(8)] == receipts
        assert shop.ledger.count("effect") == len(set(receipts)) == 8
    finally:
        cluster.close()


# --- Kubernetes -----------------------------------------------------------------------------------


def pod() -> tuple[dict[str, str], int, list[str]]:
    """What the recipe gives a worker: its variables, its grace in seconds, its command."""
    spec = yaml.safe_load(text_of("deploy_kubernetes.yaml"))["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    variables = {it["name"]: it["value"] for it in container["env"]}
    return variables, spec["terminationGracePeriodSeconds"], container["command"]


def test_kubernetes_gives_more_time_than_a_soft_shutdown_takes() -> None:
    """Else the KILL comes first; and no shell stands between Kubernetes and the worker."""
    _, grace, command = pod()
    settings = settings_of("deploy_kubernetes.py")
    assert grace >= settings["worker_soft_shutdown_timeout"] + 10
    assert command[:4] == ["celery", "-A", "shop", "worker"]


@pytest.mark.parametrize("ends", [True, False], ids=["in time", "too late"])
def test_kubernetes_stops_a_worker(make_system: MakeSystem, ends: bool) -> None:
    """TERM: a body has some time to end; one that doesn't is handed over at once."""
    # Given
    variables, _, _ = pod()
    system = make_system(idempotency_lease=300, worker_soft_shutdown_timeout=5.0 if ends else 1.0)
    worker = system.start_worker(environment=variables)
    call = system.task("busy").delay(1, gate="go")
    system.ledger.wait_for("start")
    # When
    worker.signal(signal.SIGTERM)
    eventually(lambda: "Initiating Soft Shutdown" in worker.log, "it is asked to end")
    if ends:
        system.ledger.open("go")
        call.get(timeout=30)
    worker.wait_until_gone()
    system.ledger.open("go")
    system.start_worker(environment=variables)
    # Then
    answer = call.get(timeout=30)
    assert system.task("busy").delay(1, gate="go").get(timeout=30) == answer
    assert [it["interrupted"] for it in system.ledger.entries("start")] == [False, True][: 2 - ends]
    assert system.ledger.count("effect") == 1


# --- projects -------------------------------------------------------------------------------------


class Project:
    """Processes of a project in a folder of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
        self.environment.update(environment)
        self._started: list[warm.Process] = []

    def write(self, path: str, text: str) -> None:
        """Write one of its files."""
        target = self.folder / path
        target.parent.mkdir(exist_ok=True)
        target.write_text(text, "utf-8")

    def run(self, *command: str) -> str:
        """Run one of its commands; return what it prints."""
        done = warm.run(list(command), cwd=self.folder, env=self.environment)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def start(self, name: str, sign: str, *command: str) -> warm.Process:
        """Start a process, and return once its log has a sign that it works."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            started = warm.start(
                list(command), cwd=self.folder, env=self.environment, stdout=output
            )
        self._started.append(started)
        said = lambda: log.read_text("utf-8", "replace")  # noqa: E731
        eventually(lambda: sign in said() or started.poll() is not None, f"{name} works", 60)
        assert started.poll() is None, said()
        return started

    def stop(self) -> None:
        """Send TERM to each, as whoever runs them does."""
        for started in self._started:
            os.kill(started.pid, signal.SIGTERM)
        codes = [started.wait(30) for started in self._started]
        assert set(codes) <= {0, -signal.SIGTERM}, codes

    def close(self) -> None:
        for started in self._started:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)
                started.wait()


def test_a_django_project(redis_server: RedisServer, tmp_path: Path) -> None:
    """Tables by migrate, a worker, and two processes that make the same call."""
    # Given
    database = Database("postgresql", tmp_path)
    parts = database.parsed()
    project = Project(
        tmp_path,
        DJANGO_SETTINGS_MODULE="shop.settings",
        PGHOST=parts.host or "",
        PGUSER=parts.username or "",
        PGDATABASE=parts.database or "",
    )
    try:
        server = redis_server.url().rpartition("/")[0]
        project.write("shop/__init__.py", "from .celery import app as celery_app\n")
        project.write("shop/settings.py", text_of("deploy_django_settings.py", {HERE: server}))
        project.write("shop/celery.py", text_of("deploy_django.py"))
        project.write(
            "shop/call.py",
            "import json, django\nfrom shop.celery import charge\ndjango.setup()\n"
            "print(json.dumps(charge.delay(42).get(timeout=60)))\n",
        )
        project.run("-m", "django", "migrate")
        worker = ("-m", "celery", "-A", "shop", "worker", "--loglevel", "INFO")
        project.start("worker", " ready.", *worker, "--concurrency", "2")
        # When
        first, second = (json.loads(project.run("-m", "shop.call")) for _ in range(2))
        # Then
        assert first == second
        assert first["order"] == 42
        project.stop()
    finally:
        project.close()
        database.drop()


def test_a_fastapi_app(redis_server: RedisServer, tmp_path: Path) -> None:
    """One module is API and worker: a request that is sent again begins nothing."""
    # Given
    project = Project(tmp_path)
    try:
        server = redis_server.url().rpartition("/")[0]
        project.write("shop.py", text_of("deploy_fastapi.py", {HERE: server}))
        worker = ("-m", "celery", "-A", "shop", "worker", "--loglevel", "INFO")
        project.start("worker", " ready.", *worker, "--concurrency", "2")
        port = _free_port()
        project.start("api", "Uvicorn running", "-m", "uvicorn", "shop:api", "--port", str(port))

        def ask(path: str, key: str | None = None) -> tuple[Any, Any]:
            headers = {} if key is None else {"Idempotency-Key": f'"{key}"'}
            method = "GET" if key is None else "POST"
            url = f"http://127.0.0.1:{port}{path}"
            request = urllib.request.Request(url, headers=headers, method=method)
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.load(response), response.headers.get("Idempotency-Replayed")

        # When
        (first, _), (again, replayed) = (ask("/orders/42/charge", "try-1") for _ in range(2))
        other, _ = ask("/orders/43/charge", "try-2")
        # Then
        assert again == first
        assert replayed == "true"
        for call in (first, other):
            eventually(
                lambda: ask(f"/calls/{call['call']}")[0]["state"] == "SUCCESS",  # noqa: B023
                "it is charged",
            )
        log = (tmp_path / "worker.log").read_text("utf-8")
        assert len(re.findall(r"Task shop\.charge\[\S+\] succeeded", log)) == 2
        project.stop()
    finally:
        project.close()
