"""What celery-once, celery-singleton and celery-heimdall document, played on each and on us."""
