"""How one message is told from another: by a header that it gets each time it is published."""

COPY = "chaos_copy"
