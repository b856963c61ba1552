"""What ``make demo`` runs: plain Celery and IdempotentTask side by side, under the same faults."""
