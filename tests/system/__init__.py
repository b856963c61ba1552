"""Tests of whole systems, with real workers on real brokers: what a user of Celery sees."""
