"""Tests of a delivery: what a worker does with one message, in the test's own process."""
