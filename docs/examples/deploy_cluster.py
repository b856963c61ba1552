"""Records in a cluster; messages in RabbitMQ, and results in a server of their own."""

from celery import Celery

app = Celery("shop")
app.conf.update(
    broker_url="amqp://shop:secret@rabbitmq:5672//",
    task_default_queue="shop",
    result_backend="redis://results:6379/0",
    # Any of its nodes: they know the others. With TLS it is rediss+cluster://
    idempotency_store_url="redis+cluster://node-1:6379,node-2:6379,node-3:6379",
)
