"""Measurements of the library: what it costs, and how it compares."""
