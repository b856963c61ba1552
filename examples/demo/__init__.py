"""The demo (``make demo``): plain Celery and IdempotentTask side by side, under the same faults."""
