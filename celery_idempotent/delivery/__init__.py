"""What a worker does with one message, straight down: start reading in :mod:`.guard`."""
