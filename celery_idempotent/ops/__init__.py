"""For operators: what is recorded, and what can be done about it."""
