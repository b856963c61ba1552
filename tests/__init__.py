"""The tests: unit, contract (each store), integration (real workers), faults, typing."""
