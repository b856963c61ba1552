"""Fifty situations from public bug reports, which any library can play through an adapter."""
