"""The shop's app and project in one. Celery's app is imported here, as Celery's guide has it."""

from shop.celery import app as celery_app

__all__ = ["celery_app"]
