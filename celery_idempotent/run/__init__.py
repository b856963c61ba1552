"""One delivery, without Celery: claim, body, record."""
