"""Help for tests: the store contract, and servers and crashes to test against."""
