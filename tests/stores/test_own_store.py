"""A store of another package works by its URL: in settings, commands, doctor and a real worker."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_idempotent.errors import ConfigurationError
from celery_idempotent.stores.memory import MemoryStore
from celery_idempotent.stores.urls import store_class, store_from_url
from celery_idempotent.testing.servers import RedisServer
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "own_store.py"

APP = """
import os

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("shop", broker="{server}/0", backend="{server}/1")
app.conf.idempotency_store_url = "file://{folder}/records"
app.conf.broker_connection_retry_on_startup = True


@app.task(name="charge", base=IdempotentTask, bind=True, idempotency_key="order:{{order_id}}")
def charge(self, order_id):
    return self.idempotency.step("pay", os.getpid)
"""


def install(folder: Path, *points: str) -> None:
    """Put what pip leaves of a package with these entry points into a folder."""
    made = folder / "own_store-1.0.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: own-store\nVersion: 1.0\n")
    lines = ["[celery_idempotent.stores]", *points]
    (made / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which this process finds packages."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("own_store"):
            del sys.modules[name]


class TestInThisProcess:
    def test_a_scheme_names_a_class_of_another_package(self, packages: Path) -> None:
        """The class gets the URL, whose scheme may have a driver behind a plus, and the options."""
        # Given
        shutil.copy(EXAMPLE, packages)
        install(packages, "file = own_store:FileStore")
        # When
        store = store_from_url(f"file+here://{packages}/records", {"clock": lambda: 2_000_000})
        # Then
        assert type(store) is store_class("FILE://")
        assert store.now_ms() == 2_000

    def test_what_is_built_in_is_never_replaced(self, packages: Path) -> None:
        """A package that registers a scheme of ours is not asked."""
        # Given
        shutil.copy(EXAMPLE, packages)
        install(packages, "memory = own_store:FileStore")
        # Then
        assert store_class("memory://") is MemoryStore

    def test_an_unknown_scheme_says_which_there_are(self, packages: Path) -> None:
        """Ours, those that are installed, and how one is added; no password is shown."""
        # Given
        install(packages, "file = own_store:FileStore")
        # When
        with pytest.raises(ConfigurationError) as raised:
            store_from_url("dynamo://:s3cret@there")
        # Then
        said = str(raised.value)
        assert "redis://" in said
        assert "file://" in said
        assert "'celery_idempotent.stores'" in said
        assert "s3cret" not in said

    @pytest.mark.parametrize(
        ("value", "says"),
        [
            ("own_store_that_is_not_there:FileStore", "can't be loaded: ModuleNotFoundError"),
            ("own_store:NoSuchStore", "can't be loaded: AttributeError"),
            ("own_store:FileRows", "inherits from celery_idempotent.stores.base.Store"),
            ("own_store:TABLES", "inherits from celery_idempotent.stores.base.Store"),
        ],
    )
    def test_an_entry_point_that_is_wrong_is_said(
        self, packages: Path, value: str, says: str
    ) -> None:
        """The error names the package that registered it, and what is wrong with it."""
        # Given
        shutil.copy(EXAMPLE, packages)
        install(packages, f"file = {value}")
        # Then
        with pytest.raises(ConfigurationError, match="entry point of own-store") as raised:
            store_from_url("file:///records")
        assert says in str(raised.value)

    @pytest.mark.parametrize(
        ("url", "package", "extra"),
        [("sqlite:////records.db", "sqlalchemy", "sql"), ("django://", "django", "django")],
    )
    def test_a_missing_package_names_its_extra(self, url: str, package: str, extra: str) -> None:
        """It can be pasted."""
        # Given an interpreter that does not have it
        script = (
            f"import sys; sys.modules[{package!r}] = None\n"
            "from celery_idempotent.stores.urls import store_from_url\n"
            f"store_from_url({url!r})"
        )
        # When
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
        )
        # Then
        assert "ConfigurationError" in done.stderr
        assert f"pip install 'celery-idempotent[{extra}]'" in done.stderr


@pytest.fixture
def shop(redis_server: RedisServer, tmp_path: Path) -> Path:
    """An app in a folder whose records are in the example's store, which is installed there."""
    shutil.copy(EXAMPLE, tmp_path)
    install(tmp_path, "file = own_store:FileStore")
    server = redis_server.url().rpartition("/")[0]
    (tmp_path / "shop.py").write_text(APP.format(server=server, folder=tmp_path))
    return tmp_path


def celery(shop: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "shop", *command],
        cwd=shop,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


@contextlib.contextmanager
def worker(shop: Path) -> Iterator[Path]:
    log_path = shop / "worker.log"
    with open(log_path, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "shop", "worker", "-c", "2", "-l", "INFO"],
            cwd=shop,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        eventually(
            lambda: b" ready." in log_path.read_bytes() or process.poll() is not None,
            "the worker is ready",
            timeout=300,
        )
        yield log_path
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.system
@pytest.mark.long(15)
def test_a_worker_and_the_commands_use_it(shop: Path) -> None:
    """A duplicate gets the first call's result, commands find the record, and doctor looks."""
    # Given
    calls = "from shop import charge; print([charge.delay(42).get(timeout=30) for _ in range(2)])"
    # When
    with worker(shop) as log:
        called = subprocess.run(
            [sys.executable, "-c", calls],
            cwd=shop,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        listed = celery(shop, "idempotency", "list")
        examined = celery(shop, "idempotency", "doctor")
    # Then
    assert called.returncode == 0, called.stderr + log.read_text()
    first, second = called.stdout.strip(" []\n").split(", ")
    assert first == second
    assert "order:42" in listed.stdout, listed.stderr
    assert "store-away" not in examined.stdout
    assert "memory-with-processes" not in examined.stdout
    # And a key that was forgotten is free
    forgotten = celery(shop, "idempotency", "forget", "order:42", "--yes")
    assert forgotten.returncode == 0, forgotten.stderr
    assert "released" in celery(shop, "idempotency", "list").stdout
