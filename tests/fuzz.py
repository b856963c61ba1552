"""Random histories for as long as one likes, in rounds that a seed repeats: `make fuzz`.

A round plays schedules of real deliveries (tests/support/schedules), then histories against every
store (tests/stores). `make fuzz SCHEDULE=its seed` plays a schedule that failed, and shows it.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time

from tests.support.schedules.play import broken
from tests.support.schedules.play import play as play_schedule

ROUND = (
    "tests/stores/test_histories.py",
    "tests/django/test_histories.py",
    "tests/stores/redis/test_lua.py",
)
#: Of each store in a round; the tests make do with 150.
EXAMPLES = 450
#: Schedules in a round, some 40 a second.
SCHEDULES = 2000


def play_schedules(seed: int) -> int | None:
    """Play a round's schedules; give the seed of the first that breaks a promise."""
    for number in range(seed * SCHEDULES, (seed + 1) * SCHEDULES):
        if broken(play_schedule(number)):
            return number
    return None


def show(seed: int) -> int:
    """Play one schedule, and show what happened."""
    outcome = play_schedule(seed)
    found = broken(outcome)
    print(outcome.setting, *outcome.history, *found or ["nothing found"], sep="\n")
    return bool(found)


def play(seed: int) -> subprocess.CompletedProcess[str]:
    """Play one round."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "--timeout", "1800"),
            *("-p", "no:cacheprovider", f"--hypothesis-seed={seed}", *ROUND),
        ],
        env={**os.environ, "CELERY_IDEMPOTENT_EXAMPLES": str(EXAMPLES)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


def main() -> int:
    """Play rounds until the time is over, or one fails; the exit code says which."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, help="of the first round; each next one adds one")
    parser.add_argument("--schedule", type=int, help="play only the schedule of this seed")
    options = parser.parse_args()
    if options.schedule is not None:
        return show(options.schedule)
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    began, rounds = time.monotonic(), 0
    while not rounds or time.monotonic() - began < options.minutes * 60:
        at = time.monotonic()
        rounds += 1
        failed = play_schedules(seed)
        if failed is not None:
            show(failed)
            print(f"schedule {failed} failed: make fuzz SCHEDULE={failed} plays it again")
            return 1
        played = play(seed)
        if played.returncode:
            print(played.stdout)
            print(f"round {rounds} failed: make fuzz SEED={seed} MINUTES=0 plays it again")
            return 1
        last = played.stdout.strip().rpartition("\n")[2]
        print(f"round {rounds}, seed {seed}: {last} ({time.monotonic() - at:.0f} s)", flush=True)
        seed += 1
    print(f"{rounds} rounds of {SCHEDULES} schedules and {EXAMPLES} histories, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
