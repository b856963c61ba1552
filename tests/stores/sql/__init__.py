"""Tests of the SQL store, on each kind of database."""
