"""Measurements of the library: its cost, and a comparison with others."""
