"""Tests of the Redis store: its scripts, its connections, Redis Cluster."""
