"""Lets ``python -m benchmarks.compare`` start the comparison."""

from __future__ import annotations

from benchmarks.compare.run import main

if __name__ == "__main__":
    raise SystemExit(main())
