"""Random histories for as long as one likes, in rounds that a seed repeats: `make fuzz`."""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time

ROUND = (
    "tests/contract/test_histories.py",
    "tests/contract/test_django_histories.py",
    "tests/contract/test_differential.py",
)
#: Of each store in a round; the tests make do with 150.
EXAMPLES = 450


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
    options = parser.parse_args()
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    began, rounds = time.monotonic(), 0
    while not rounds or time.monotonic() - began < options.minutes * 60:
        at = time.monotonic()
        played = play(seed)
        rounds += 1
        if played.returncode:
            print(played.stdout)
            print(f"round {rounds} failed: make fuzz SEED={seed} MINUTES=0 plays it again")
            return 1
        last = played.stdout.strip().rpartition("\n")[2]
        print(f"round {rounds}, seed {seed}: {last} ({time.monotonic() - at:.0f} s)", flush=True)
        seed += 1
    print(f"{rounds} rounds of {EXAMPLES} histories and more, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
