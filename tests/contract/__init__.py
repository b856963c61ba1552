"""Every store against the one contract, and against each other."""
