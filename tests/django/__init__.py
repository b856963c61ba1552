"""Tests of the Django app: store, outbox, middleware and admin pages."""
