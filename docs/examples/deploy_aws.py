"""Amazon: messages by SQS; results and records in Valkey (ElastiCache), over TLS."""

from celery import Celery

VALKEY = "rediss://shop:secret@shop.cache.example.com:6379"

app = Celery("shop")
app.conf.update(
    broker_url="sqs://",  # whose credentials are the role's
    broker_transport_options={
        "region": "eu-central-1",
        "visibility_timeout": 3600,  # longer than the longest task and countdown
        "wait_time_seconds": 20,
    },
    task_default_queue="shop",
    result_backend=f"{VALKEY}/1?ssl_cert_reqs=required",
    idempotency_store_url=f"{VALKEY}/2?ssl_cert_reqs=required",
    worker_enable_remote_control=False,  # SQS has no broadcast
)
