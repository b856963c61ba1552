"""Tests of the operators' tools: commands, doctor, Flower's page, metrics."""
