"""Starts the suite: ``python -m benchmarks.graveyard``."""

from __future__ import annotations

from benchmarks.graveyard.run import main

if __name__ == "__main__":
    main()
