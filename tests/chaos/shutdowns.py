"""How long warm shutdowns of a worker take that runs Celery's own tasks, and nothing of ours.

``python -m tests.chaos.shutdowns`` starts a worker with a prefork pool again and again, and ends it
under load. Now and then that takes thirty seconds: billiard's pool has not read the last result
of a child, which waits for that. ``docs/troubleshooting.rst`` tells of it.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

from celery import Celery

from celery_idempotent.testing.servers import RedisServer

ROOT: Final = Path(__file__).parents[2]
_SERVER: Final = "SHUTDOWNS_SERVER"
#: What a body takes, in seconds, and how long after its start a worker is ended.
_BODY_S: Final = 0.08
_LIFE_S: Final = 1.5


def make_app(url: str) -> Celery:
    """Make the app of producer and worker."""
    app = Celery("shutdowns", broker=f"{url}/0", backend=f"{url}/1", set_as_current=False)
    app.conf.update(task_acks_late=True, broker_connection_retry_on_startup=True)

    @app.task(name="shutdowns.work", shared=False)
    def work(number: int) -> int:
        time.sleep(_BODY_S)
        return number

    return app


if _SERVER in os.environ:
    app = make_app(os.environ[_SERVER])


def shutdown() -> float:
    """Start a worker, end it under load, and return how long that took, in seconds."""
    with RedisServer() as server:
        url = server.url().rpartition("/")[0]
        work = make_app(url).tasks["shutdowns.work"]
        worker = subprocess.Popen(
            [*(sys.executable, "-m", "celery", "-A", "tests.chaos.shutdowns", "worker"), "-c", "2"],
            cwd=ROOT,
            env={**os.environ, _SERVER: url, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        over = threading.Event()

        def publish() -> None:
            while not over.wait(0.05):
                work.delay(0)

        work.delay(0).get(timeout=60)
        publishing = threading.Thread(target=publish)
        publishing.start()
        time.sleep(_LIFE_S)
        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        worker.wait()
        took = time.monotonic() - began
        over.set()
        publishing.join()
        return took


def main() -> None:
    """Print how long each took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=10)
    for _ in range(parser.parse_args().times):
        sys.stdout.write(f"{shutdown():.1f} s\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
