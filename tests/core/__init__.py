"""Tests of the core: what is decided, with no clock, no I/O and no Celery."""
