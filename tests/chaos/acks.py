"""What becomes of Celery's own tasks under gevent on a Redis broker that end at one moment.

``python -m tests.chaos.acks`` has a worker with 200 greenlets run plain tasks with ``acks_late``.
150 of them wait for the same moment, three times. A channel of kombu has ten connections to the
broker: each further greenlet that acknowledges its message at that moment gets an error, and the
message stays unacknowledged. ``--max-connections 500`` gives it enough. Nothing of ours takes part;
``docs/guarantees.rst`` tells of it.

With ``--arrival`` a message comes while all connections of a channel are in use: kombu takes it off
its queue, can't note that it holds it, and loses it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

import redis
from celery import Celery
from kombu import Connection, Consumer, Queue

from celery_idempotent.testing.servers import RedisServer

ROOT: Final = Path(__file__).parents[2]
_SETTINGS: Final = "ACKS"
_CALLS: Final = 150
_TIMES: Final = 3
_FAILED: Final = re.compile(r"^(?:[\w.]*\.)?(\w*Error: .*)$", re.MULTILINE)


def make_app(url: str, gate: str, most: int) -> Celery:
    """Make the app of producer and worker; tasks wait as long as the file ``gate`` is there."""
    app = Celery("acks", broker=f"{url}/0", backend=f"{url}/1", set_as_current=False)
    app.conf.update(
        task_acks_late=True,
        broker_connection_retry_on_startup=True,
        worker_prefetch_multiplier=1,
        redis_max_connections=500,
        broker_transport_options={"max_connections": most} if most else {},
    )

    @app.task(name="acks.work", shared=False)
    def work(number: int) -> int:
        while os.path.exists(gate):
            time.sleep(0.02)
        return number

    return app


if _SETTINGS in os.environ:
    app = make_app(*json.loads(os.environ[_SETTINGS]))


def arrival() -> dict[str, object]:
    """Have a message come while all connections of a channel are in use; say where it is then."""
    queue, came = Queue("arrival", routing_key="arrival"), list[object]()
    with (
        RedisServer() as server,
        redis.Redis.from_url(server.url()) as client,
        Connection(server.url(), transport_options={"max_connections": 3}) as connection,
        Connection(server.url()) as other,
    ):
        channel = connection.channel()

        def drain() -> str:
            try:
                connection.drain_events(timeout=1)
            except (redis.RedisError, OSError) as exc:
                return type(exc).__name__
            return ""

        with Consumer(channel, [queue], callbacks=[lambda body, _: came.append(body)]):
            drain()  # from now on it has the connection that asks for messages
            used = []
            with contextlib.suppress(redis.ConnectionError):
                while True:
                    used.append(channel.pool.get_connection())
            other.Producer().publish({}, routing_key=queue.routing_key, declare=[queue])
            error = drain()
            for one in used:
                channel.pool.release(one)
            drain()
            kept = client.llen(queue.name), client.hlen("unacked")
    return {"error": error, "received": len(came), "queued": kept[0], "unacknowledged": kept[1]}


def main() -> None:
    """Play it, and print which errors were logged, and what the broker still has."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--max-connections", type=int, default=0, help="0: kombu's default, ten")
    parser.add_argument(
        "--arrival", action="store_true", help="one message, all connections in use"
    )
    given = parser.parse_args()
    most = given.max_connections
    if given.arrival:
        sys.stdout.write(json.dumps(arrival(), indent=2) + "\n")
        return
    with RedisServer() as server, tempfile.TemporaryDirectory() as folder:
        gate, log = Path(folder, "gate"), Path(folder, "log")
        settings = [server.url().rpartition("/")[0], str(gate), most]
        work = make_app(*settings).tasks["acks.work"]
        command = [sys.executable, "-m", "celery", "-A", "tests.chaos.acks", "worker"]
        command += ["--pool", "gevent", "--concurrency", "200", "--without-gossip"]
        environment = {**os.environ, _SETTINGS: json.dumps(settings), "PYTHONPATH": str(ROOT)}
        with open(log, "wb") as out:
            worker = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
            )
        try:
            work.delay(-1).get(timeout=60)
            results = []
            for _ in range(_TIMES):
                gate.touch()
                results += [work.delay(number) for number in range(_CALLS)]
                time.sleep(2)
                gate.unlink()
                until = time.monotonic() + 15
                while time.monotonic() < until and not all(one.ready() for one in results):
                    time.sleep(0.2)
            with redis.Redis.from_url(server.url(0)) as client:
                told = {
                    "calls": len(results),
                    "unanswered": sum(not one.ready() for one in results),
                    "unacknowledged": client.hlen("unacked"),
                    "errors": dict(Counter(_FAILED.findall(log.read_text(errors="replace")))),
                }
        finally:
            worker.terminate()
            try:
                worker.wait(20)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        sys.stdout.write(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
