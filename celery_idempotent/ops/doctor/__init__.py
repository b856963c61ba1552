"""What is wrong with a configuration, why it matters, and what to set instead."""

from celery_idempotent.ops.doctor.examination import examine
from celery_idempotent.ops.doctor.findings import Finding

__all__ = ["Finding", "examine"]
