"""mismatch.py: the same key for something else."""

from shop import charge

from celery_idempotent import IdempotencyKeyMismatch

charge.apply_async((42, 100), idempotency_key="req-7f3a").get(timeout=10)
try:
    charge.apply_async((42, 999), idempotency_key="req-7f3a").get(timeout=10)
except IdempotencyKeyMismatch as error:
    print(error)
else:
    raise AssertionError("it was charged")
