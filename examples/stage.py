"""Starts the processes of an example, on a free port, and ends them."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running(directory, environment, *commands):
    """Run Python commands side by side, with their output in files in ``directory``."""
    processes = []
    try:
        for number, command in enumerate(commands):
            with open(directory / f"process-{number}.log", "wb") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, *command],
                        env={**os.environ, **environment},
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
        yield
    except BaseException:
        for path in sorted(directory.glob("*.log")):
            print(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}", file=sys.stderr)
        raise
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for_port(port):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise TimeoutError("the server does not answer")
