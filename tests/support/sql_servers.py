"""A database server of one's own, PostgreSQL or MariaDB, that a test can kill and bring back."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from celery_idempotent.testing.servers import _free_port
from tests.support.missing import NotThere
from tests.support.waiting import eventually

#: Loaded before any fork: the child only calls it.
_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        _libc.prctl(1, signal.SIGKILL, 0, 0, 0)


class SqlServer(ABC):
    """A server with its data in a private directory, of which a commit survives a kill.

    Raises:
        NotThere: its programs are not on this machine; says what to install.
    """

    #: What makes its data, and what it is.
    programs: tuple[str, str]
    install: str
    #: Where else than on PATH packages put them, the newest last.
    elsewhere: str

    def __init__(self) -> None:
        self.maker, self.binary = (self._find(name) for name in self.programs)
        self.directory = Path(tempfile.mkdtemp(prefix="idem-sql-"))
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        # Database servers refuse to run as root, and root has no need to.
        self._user = "nobody" if os.geteuid() == 0 else None
        try:
            if self._user:
                os.chown(self.directory, pwd.getpwnam(self._user).pw_uid, -1)
            self._run(self.making())
            self.start()
        except BaseException:
            self.close()
            raise

    def _find(self, name: str) -> str:
        found = shutil.which(name) or shutil.which(f"/usr/sbin/{name}")
        packaged = sorted(Path("/").glob(f"{self.elsewhere}/{name}"))
        if found is None and not packaged:
            raise NotThere(f"no {name} on this machine: install it ({self.install})")
        return found or str(packaged[-1])

    @property
    @abstractmethod
    def url(self) -> str:
        """Its database, as a store takes it."""

    @abstractmethod
    def making(self) -> Sequence[str]:
        """The command that makes the data."""

    @abstractmethod
    def serving(self) -> Sequence[str]:
        """The command that is the server."""

    def start(self) -> None:
        """Start it, and return once it answers."""
        with open(self.directory / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                self.serving(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=self._user,
                preexec_fn=_die_with_parent,
            )
        eventually(self._answers_or_is_gone, f"{self.binary} answers")
        assert self._process.poll() is None, f"{self.binary} ended:\n{self.log}"

    def kill(self) -> None:
        """End it with SIGKILL, and all that it has started, as a crash of its machine would."""
        if self._process is None:
            return
        # Stopped first: it can't make another process, or see that one has gone.
        self._process.send_signal(signal.SIGSTOP)
        for child in _children(self._process.pid):
            os.kill(child, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._process = None

    def close(self) -> None:
        """End it and remove its data."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def log(self) -> str:
        """All that it has logged."""
        return (self.directory / "server.log").read_text(errors="replace")

    def _answers_or_is_gone(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            return True
        engine = create_engine(make_url(self.url))
        try:
            with engine.connect() as connection:
                return connection.scalar(text("SELECT 1")) == 1
        except DBAPIError:
            return False
        finally:
            engine.dispose()

    def _run(self, command: Sequence[str]) -> None:
        done = subprocess.run(
            command,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            user=self._user,
            check=False,
        )
        assert done.returncode == 0, done.stdout


class PostgreSQL(SqlServer):
    """PostgreSQL: a process for each connection."""

    programs = ("initdb", "postgres")
    install = "apt install postgresql"
    elsewhere = "usr/lib/postgresql/*/bin"

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://tester@127.0.0.1:{self.port}/postgres"

    def making(self) -> Sequence[str]:
        data = str(self.directory / "data")
        options = ("-U", "tester", "-A", "trust", "-N", "--locale", "C", "-E", "UTF8")
        return (self.maker, "-D", data, *options)

    def serving(self) -> Sequence[str]:
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            # A kill of its processes takes nothing that the system was given to write.
            "fsync": "off",
        }
        given = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return (self.binary, "-D", str(self.directory / "data"), *given)


class MariaDB(SqlServer):
    """MariaDB: one process."""

    programs = ("mariadb-install-db", "mariadbd")
    install = "apt install mariadb-server"
    elsewhere = "usr/local/mysql/bin"

    @property
    def url(self) -> str:
        return f"mysql+pymysql://root@127.0.0.1:{self.port}/test"

    def making(self) -> Sequence[str]:
        return (
            *(self.maker, "--no-defaults", f"--datadir={self.directory / 'data'}"),
            "--auth-root-authentication-method=normal",
        )

    def serving(self) -> Sequence[str]:
        return (
            *(self.binary, "--no-defaults", f"--datadir={self.directory / 'data'}"),
            *(f"--port={self.port}", "--bind-address=127.0.0.1"),
            *(f"--socket={self.directory / 'socket'}", f"--pid-file={self.directory / 'pid'}"),
            *("--innodb-buffer-pool-size=16M", "--innodb-log-file-size=8M"),
        )


def _children(pid: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    )
    pairs = (line.split() for line in listed.stdout.splitlines())
    return [int(child) for child, parent in pairs if int(parent) == pid]
