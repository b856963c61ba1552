"""PgBouncer in front of PostgreSQL: it gives each transaction whichever connection is free."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from sqlalchemy.engine import make_url

from celery_idempotent.testing.servers import _free_port
from tests.support.missing import NotThere
from tests.support.waiting import eventually


class Pooler:
    """A pooler in transaction mode with few connections, which its clients have to share.

    Args:
        url: the database behind it.

    Raises:
        NotThere: it isn't installed.
    """

    def __init__(self, url: str, connections: int = 2) -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            raise NotThere("no PgBouncer: apt install pgbouncer")
        target = make_url(url)
        port = _free_port()
        self.url = target.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        self._directory = Path(tempfile.mkdtemp(prefix="pooler-"))
        self._directory.chmod(0o755)
        configuration = self._directory / "pgbouncer.ini"
        user = f" user={target.username}" + (f" password={target.password}" * bool(target.password))
        configuration.write_text(
            f"[databases]\n"
            f"* = host={target.host} port={target.port or 5432}{user}\n"
            f"[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\n"
            f"listen_port = {port}\n"
            f"unix_socket_dir =\n"
            f"auth_type = any\n"
            f"pool_mode = transaction\n"
            f"default_pool_size = {connections}\n"
            # Whoever waited longest is used next, so that clients do meet on one connection.
            f"server_round_robin = 1\n"
        )
        # It refuses to run as root.
        become = ["-u", "nobody"] if os.geteuid() == 0 else []
        self._process = subprocess.Popen(
            [program, *become, str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually(lambda: _answers(port) or self._process.poll() is not None, "it listens")
        if self._process.poll() is not None:
            raise NotThere(f"PgBouncer ended with {self._process.returncode}")

    def close(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._directory)


def _answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0
