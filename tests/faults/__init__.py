"""Faults that are made by real processes and servers, by the numbers of scenarios.py."""
