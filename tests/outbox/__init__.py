"""Tests of the outbox: its rows and its relay."""
