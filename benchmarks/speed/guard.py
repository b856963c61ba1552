"""Goal 2: the guard alone, in one process, against round trips without it.

Run as a program, it measures once and prints what it found: ``measure_guard`` does so with hiredis
and without.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.speed.measure import Effort, Goal, Say, ratio, rounds

__all__ = ["measure_guard"]

_PROJECT = Path(__file__).resolve().parents[2]
#: What every body returns.
RESULT = {"id": "ch_42", "status": "paid", "amount": 100}
_CALLS = 40


def measure_guard(server: Any, quick: bool, say: Say) -> list[Goal]:
    """Measure an eager IdempotentTask, as users run it, against eager tasks with bare trips."""
    say("with hiredis")
    fast = _measured(server.url(3), quick)
    say("without hiredis")
    slow = _measured(server.url(6), quick, "--without-hiredis")

    def added(timed: dict[str, list[float]], bare: str, guarded: str) -> Any:
        return ratio(timed[bare], timed[guarded], timed["plain"])

    def parts(timed: dict[str, list[float]]) -> str:
        micro = {name: statistics.median(one) * 1e6 for name, one in timed.items()}
        return ", ".join(f"{name} {value:.0f} µs" for name, value in micro.items())

    first, replay = "guarded first", "guarded replay"
    return [
        Goal.of(
            "2a",
            "first execution: two round trips by redis-py with hiredis, whose scripts only SET, to "
            "what the guard adds (journal on, a dict as the result)",
            added(fast, "set twice", first),
            ">=",
            0.85,
            parts(fast),
        ),
        Goal.of(
            "2b",
            "replay: one round trip by redis-py with hiredis, whose script only does GET, to what "
            "the guard adds",
            added(fast, "get", replay),
            ">=",
            0.85,
        ),
        Goal.of(
            "2c",
            "two scripts that only return to our two, as redis-py times them",
            ratio(fast["trivial scripts"], fast["our scripts"]),
            ">=",
            0.85,
        ),
        Goal(
            "2d",
            "a key from three scalars, in round trips by redis-py",
            2 * statistics.median(fast["a key"]) / statistics.median(fast["trivial scripts"]),
            "<=",
            0.2,
        ),
        _figure("2e", "as 2a, both sides without hiredis", added(slow, "set twice", first)),
        _figure("2f", "as 2b, both sides without hiredis", added(slow, "get", replay)),
        _figure("2g", "as 2a, redis-py sends our own scripts", added(fast, "ours twice", first)),
        _figure("2h", "as 2b, redis-py sends our own script", added(fast, "ours once", replay)),
        _figure(
            "2i",
            "as 2a, our own scripts as packed commands over our own connections, and no guard",
            added(fast, "packed twice", first),
        ),
        _figure(
            "2j",
            "as 2b, our own script as a packed command over our own connection, and no guard",
            added(fast, "packed once", replay),
        ),
    ]


def _figure(number: str, what: str, found: Any) -> Goal:
    return Goal(number, what, found.median, bounds=(found.low, found.high))


def _measured(url: str, quick: bool, *options: str) -> dict[str, list[float]]:
    command = [sys.executable, "-m", "benchmarks.speed.guard", url, *["--quick"][: int(quick)]]
    out = subprocess.run([*command, *options], cwd=_PROJECT, check=True, stdout=subprocess.PIPE)
    found: dict[str, list[float]] = json.loads(out.stdout)
    return found


def main(url: str, quick: bool) -> dict[str, list[float]]:
    """Time all contestants in turns; seconds for each execution."""
    from celery import Celery

    from benchmarks.speed.bare import Bare
    from celery_idempotent import IdempotentTask
    from celery_idempotent.core.keys import Owner
    from celery_idempotent.settings import environment_of

    app = Celery("guard", broker="memory://", backend="cache+memory://")
    # Late acknowledgement for all, as for the guarded task: Celery does more then.
    app.conf.update(idempotency_store_url=url, task_acks_late=True)
    fresh: Iterator[int] = itertools.count()
    value = b"x" * 128  # about a record

    def plain(number: int, a: int, b: int) -> Any:
        return RESULT

    def sets(bare: Bare) -> Callable[..., Any]:
        def body(number: int, a: int, b: int) -> Any:
            bare.write_twice(f"bare:{{guard:set:{number}}}", value)
            return RESULT

        return body

    def gets(bare: Bare) -> Callable[..., Any]:
        bare.write_twice("bare:{guard:get}", value)

        def body(number: int, a: int, b: int) -> Any:
            bare.read("bare:{guard:get}")
            return RESULT

        return body

    def runs(bare: Bare, name: str) -> Callable[..., Any]:
        def body(number: int, a: int, b: int) -> Any:
            key, owner = f"bare:{{{name}:{number}}}", Owner(str(uuid.uuid4())).pack()
            token = bare.claim(key, owner)
            if isinstance(token, int):
                bare.complete(key, owner, token)
            return RESULT

        return body

    def task(name: str, body: Callable[..., Any], **options: Any) -> Any:
        return app.task(name=f"guard.{name}", shared=False, **options)(body)

    client, packed = Bare(url), Bare(url, packed=True)
    guarded = task("guarded", plain, base=IdempotentTask, idempotency_key="order:{number}")
    ours, over = task("ours", runs(client, "ours")), task("packed", runs(packed, "packed"))
    for repeated in (guarded, ours, over):
        repeated.apply((-1, 2, 3))
    journal = environment_of(app).journal

    def times(task: Any, number: int | None) -> Any:
        def run(count: int) -> None:
            for _ in range(count):
                task.apply((next(fresh) if number is None else number, 2, 3))
            if task is guarded:
                journal._send()  # else another thread would, in another contestant's turn

        return run

    setup = guarded._setup()

    def derivations(count: int) -> None:
        for _ in range(count):
            setup.scheme.derive((42, 100, "EUR"), {}, task_id="x", task=guarded)

    contestants = {
        "plain": times(task("plain", plain), None),
        "set twice": times(task("sets", sets(client)), None),
        "get": times(task("gets", gets(client)), None),
        "ours twice": times(ours, None),
        "ours once": times(ours, -1),
        "packed twice": times(over, None),
        "packed once": times(over, -1),
        "guarded first": times(guarded, None),
        "guarded replay": times(guarded, -1),
        "a key": derivations,
    }
    effort = Effort(60, 5) if quick else Effort(400)
    timed = rounds(contestants, _CALLS, effort, lambda _: None)
    pairs = [client.timed_scripts(_CALLS, 1000 * turn) for turn in range(30 if quick else 300)]
    timed["our scripts"] = [pair[0] for pair in pairs]
    timed["trivial scripts"] = [pair[1] for pair in pairs]
    environment_of(app).store.close()
    return timed


if __name__ == "__main__":
    if "--without-hiredis" in sys.argv:
        sys.modules["hiredis"] = None  # type: ignore[assignment]
    print(json.dumps(main(sys.argv[1], "--quick" in sys.argv)))
