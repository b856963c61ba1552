"""Plays the same faults on this library and on others that keep tasks from running twice."""
