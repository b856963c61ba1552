"""The parts of the store contract, by what is being done to a record."""
