"""Tests of a run: a key that is held, its lease, steps, transaction and journal."""
