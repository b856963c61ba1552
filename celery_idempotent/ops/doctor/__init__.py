"""What is wrong with a configuration, why it matters, and what to set instead."""

from celery_idempotent.ops.doctor.examination import examine
from celery_idempotent.ops.doctor.findings import ERROR, HINT, LEVELS, WARNING, Finding

__all__ = ["ERROR", "HINT", "LEVELS", "WARNING", "Finding", "examine"]
