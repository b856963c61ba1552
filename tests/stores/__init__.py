"""Tests of the stores: each against the one contract, and against each other."""
