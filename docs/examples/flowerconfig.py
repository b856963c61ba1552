"""flowerconfig.py: Flower with a page of idempotency records."""

from celery_idempotent.ops.flower import install

install()
