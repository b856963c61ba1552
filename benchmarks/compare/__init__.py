"""The same faults for every library that keeps Celery tasks from running twice, and for ours."""
