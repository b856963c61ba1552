"""Tests of the worker's parent process: its requests, and its start."""
