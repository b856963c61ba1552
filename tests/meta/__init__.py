"""Tests of the tests, of the docs, of the layers, of the benchmarks and of the demo."""
