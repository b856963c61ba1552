from celery_idempotent.ops.flower import install

install()
