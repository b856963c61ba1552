"""Tests of what happens to a call before it is published."""
