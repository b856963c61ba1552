"""The HTTP edge: middleware that reads ``Idempotency-Key``, and answers a repeated request."""

from celery_idempotent.http.asgi import IdempotencyASGIMiddleware
from celery_idempotent.http.edge import Edge, HeldRequest, keeps_by_default
from celery_idempotent.http.wsgi import IdempotencyWSGIMiddleware

__all__ = [
    "Edge",
    "HeldRequest",
    "IdempotencyASGIMiddleware",
    "IdempotencyWSGIMiddleware",
    "keeps_by_default",
]
