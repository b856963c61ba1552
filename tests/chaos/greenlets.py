"""Thousands of calls under gevent while the store is killed, or plain tasks that wait as long.

``python -m tests.chaos.greenlets`` has one worker with 200 greenlets run guarded tasks, and kills
the store for half a minute. With ``--plain`` the tasks are Celery's own: while the store would be
away they sleep and then retry by Celery's ``retry``, and our code has no part in it. What goes
wrong in both is Celery's, kombu's or redis-py's.

Broker and results are on one server, which is never touched; the store is on another. Each call
counts its effects there, too. Printed are the calls without an answer, those without an effect,
those with more than one, what the broker still has of them, and what the worker logged. Each call
without an answer is looked for at the broker, in the worker and its log, and in the store.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

import redis
from celery import Celery
from celery.result import AsyncResult

from celery_idempotent import IdempotentTask
from celery_idempotent.core.keys import Owner, record_key
from celery_idempotent.ops.history import History
from celery_idempotent.settings import environment_of
from celery_idempotent.testing.servers import RedisServer

ROOT: Final = Path(__file__).parents[2]
_SETTINGS: Final = "GREENLETS"
_EFFECTS: Final = "effects"
_GREENLETS: Final = 200
#: For how long nothing may be answered any more before what is left counts as unanswered.
_PATIENCE_S: Final = 75.0
#: What a body takes, in seconds.
_BODY_S: Final = 0.02
#: How a worker's log lines begin.
_LINE: Final = re.compile(r"^\[[^\]]*: (WARNING|ERROR|CRITICAL)/[^\]]*\] (.*)$")


def make_app(
    broker: str, results: str, store: str, effects: str, away: str, most: int = 0
) -> Celery:
    """Make the app of producer and worker.

    Args:
        away: a file that is there while the store is away.
        most: how many connections a channel of kombu has to the broker; 0: its default, ten.
    """
    app = Celery("greenlets", broker=broker, backend=results, set_as_current=False)
    app.conf.update(
        idempotency_store_url=store,
        broker_connection_retry_on_startup=True,
        worker_prefetch_multiplier=1,
        broker_transport_options={
            "visibility_timeout": 3600,
            **({"max_connections": most} if most else {}),
        },
        redis_socket_timeout=30.0,
    )
    client = redis.Redis.from_url(effects)

    def effect(number: int) -> int:
        time.sleep(_BODY_S)
        client.hincrby(_EFFECTS, str(number), 1)
        return number

    @app.task(base=IdempotentTask, name="greenlets.guarded", shared=False)
    def guarded(number: int) -> int:
        return effect(number)

    @app.task(
        bind=True,
        name="greenlets.plain",
        acks_late=True,
        reject_on_worker_lost=True,
        max_retries=None,
        shared=False,
    )
    def plain(self: Any, number: int) -> int:
        until = time.monotonic() + 1.0  # as long as a claim asks in place
        while os.path.exists(away):
            if time.monotonic() > until:
                raise self.retry(countdown=random.uniform(1, 8))
            time.sleep(0.05)
        return effect(number)

    return app


if _SETTINGS in os.environ:
    app = make_app(*json.loads(os.environ[_SETTINGS]))


def connections(url: str, port: int) -> int:
    """How many connections a store's server has."""
    try:
        with redis.Redis.from_url(url, socket_timeout=2.0) as client:
            return sum(int(one["laddr"].endswith(f":{port}")) for one in client.client_list()) - 1
    except redis.RedisError:
        return 0


def play(
    kind: str, calls: int, seconds: float, away_s: float, max_connections: int = 0
) -> dict[str, Any]:
    """Make the calls, the store away in the middle; return what came of it."""
    with RedisServer() as broker, RedisServer() as store, tempfile.TemporaryDirectory() as folder:
        away, log = Path(folder, "away"), Path(folder, "log")
        settings = [
            broker.url(0),
            broker.url(1),
            store.url(0),
            broker.url(2),
            str(away),
            max_connections,
        ]
        app = make_app(*settings)
        environment = {**os.environ, _SETTINGS: json.dumps(settings), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "celery", "-A", "tests.chaos.greenlets", "worker"]
        command += ["--pool", "gevent", "--concurrency", str(_GREENLETS), "--loglevel", "INFO"]
        command += ["--without-gossip", "--without-mingle"]
        with open(log, "wb") as out:
            worker = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
            )
        most, over = [0], threading.Event()

        def watch() -> None:
            while not over.wait(0.5):
                most.append(connections(store.url(0), store.port))

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            task = app.tasks[f"greenlets.{kind}"]
            task.delay(-1).get(timeout=60)
            began = time.monotonic()
            given: list[AsyncResult] = []
            is_away = was_away = False
            while len(given) < calls:
                now = time.monotonic() - began
                if now > seconds / 4 and not was_away:
                    away.touch()
                    store.kill()
                    is_away = was_away = True
                if is_away and now > seconds / 4 + away_s:
                    store.restart()
                    away.unlink()
                    is_away = False
                for _ in range(min(calls, int(calls * now / seconds) + 1) - len(given)):
                    given.append(task.delay(len(given)))
                time.sleep(0.02)
            if is_away:
                time.sleep(max(0.0, seconds / 4 + away_s - (time.monotonic() - began)))
                store.restart()
                away.unlink()
            left, until = given, time.monotonic() + _PATIENCE_S
            while left and time.monotonic() < until:
                now_left = [result for result in left if not result.ready()]
                if len(now_left) < len(left):
                    until = time.monotonic() + _PATIENCE_S
                left = now_left
                time.sleep(0.5)
            with redis.Redis.from_url(settings[3]) as client:
                effects = {int(n): int(count) for n, count in client.hgetall(_EFFECTS).items()}
            with redis.Redis.from_url(settings[0]) as client:
                held, queued = kept(client)
            doing = inside(app)
            states = collections.Counter(result.state for result in given)
            failures = collections.Counter(
                repr(result.result)[:160] for result in given if result.state == "FAILURE"
            )
            return {
                "kind": kind,
                "calls": calls,
                "states": dict(states),
                "unanswered": len(left),
                "without an effect": [n for n in range(calls) if n not in effects],
                "more than one effect": sum(count > 1 for count in effects.values()),
                "held by the worker": len(held),
                "queued": len(queued),
                "accounts": [
                    {
                        **account(task, result, number, log.read_text(errors="replace")),
                        "held": held[result.id],
                        "queued": queued[result.id],
                        "in the worker": [name for name, ids in doing.items() if result.id in ids],
                        "effects": effects.get(number, 0),
                    }
                    for number, result in enumerate(given)
                    if result in left
                ],
                "failures": dict(failures),
                "connections to the store, most": max(most),
                "log": logged(log.read_text(errors="replace")),
            }
        finally:
            over.set()
            watching.join()
            worker.terminate()
            try:
                worker.wait(20)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            keep = os.environ.get("GREENLETS_LOG")
            if keep:
                Path(keep).write_bytes(log.read_bytes())


def kept(broker: redis.Redis) -> tuple[dict[str, int], dict[str, int]]:
    """Return how many messages of each call the worker holds, and how many are queued."""
    held, queued = collections.Counter[str](), collections.Counter[str]()
    for packed in broker.hvals("unacked"):
        held[json.loads(packed)[0]["headers"]["id"]] += 1
    for packed in broker.lrange("celery", 0, -1):
        queued[json.loads(packed)["headers"]["id"]] += 1
    return held, queued


def inside(app: Celery) -> dict[str, set[str]]:
    """Return the calls that the worker says to have: those that run, and those that wait."""
    asked = app.control.inspect(timeout=10.0)
    told: dict[str, set[str]] = {}
    for name in ("active", "reserved", "scheduled"):
        entries = [one for them in (getattr(asked, name)() or {}).values() for one in them]
        told[name] = {one.get("request", one)["id"] for one in entries}
    return told


def account(task: Any, result: AsyncResult, number: int, log: str) -> dict[str, Any]:
    """Say what the result backend, the worker's log, the store and its journal know of a call."""
    told: dict[str, Any] = {
        "call": number,
        "id": result.id,
        "state": result.state,
        "log": [line[:300] for line in log.splitlines() if result.id in line],
    }
    if isinstance(task, IdempotentTask):
        environment = environment_of(task.app)
        call_key = task._call_key((number,), {}, ...)
        assert call_key is not None
        key = record_key(environment.prefix, call_key)
        told["record"] = str(environment.store.get(key))
        told["slip"] = str(environment.store.slip(Owner(result.id).slip_key(key)))
        history = History(environment.store, environment.prefix).of_record(key)
        told["journal"] = [one.as_dict() for one in history]
    return told


def logged(text: str) -> dict[str, int]:
    """Count what a worker warned of, without what differs from line to line."""
    lines: collections.Counter[str] = collections.Counter()
    for line in text.splitlines():
        found = _LINE.match(line)
        if found:
            words = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d+(\.\d+)?", "#", found[2])
            lines[f"{found[1]} {words[:140]}"] += 1
    return dict(lines.most_common(20))


def main() -> None:
    """Play it, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", action="store_true", help="Celery's own tasks, without ours")
    parser.add_argument("--calls", type=int, default=6000)
    parser.add_argument("--seconds", type=float, default=60.0, help="in which they are made")
    parser.add_argument("--away", type=float, default=30.0, help="for how long the store is away")
    parser.add_argument("--max-connections", type=int, default=0, help="0: kombu's default, ten")
    given = parser.parse_args()
    kind = "plain" if given.plain else "guarded"
    came = play(kind, given.calls, given.seconds, given.away, given.max_connections)
    sys.stdout.write(json.dumps(came, indent=2) + "\n")


if __name__ == "__main__":
    main()
