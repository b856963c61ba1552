"""The shop's app and project in one. It imports Celery's app, as Celery's guide says."""

from shop.celery import app as celery_app

__all__ = ["celery_app"]
