"""The guards of the protocol, each taken out in turn: the tests have to notice (`make mutants`)."""
