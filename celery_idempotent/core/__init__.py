"""What is decided, as pure functions: no clock, no I/O, no Celery."""
