"""mismatch.py: the same order with another amount is an error."""

from shop import charge

from celery_idempotent import IdempotencyKeyMismatch

charge.delay(42, 100).get(timeout=10)
try:
    charge.delay(42, 999).get(timeout=10)
except IdempotencyKeyMismatch as error:
    print(error)
else:
    raise AssertionError("it was charged")
