"""Records in a database: a URL."""

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("shop", broker="redis://localhost:6379/0")
app.conf.idempotency_store_url = "postgresql://shop:secret@db/shop"
app.conf.idempotency_store_options = {"pool_size": 2, "timeout": 3}


@app.task(base=IdempotentTask, idempotency_key="order:{order_id}")
def charge(order_id):
    return f"receipt for {order_id}"


# [end]

from sqlalchemy import create_engine, inspect  # noqa: E402

from celery_idempotent.stores import sql  # noqa: E402

url = "sqlite:///shop.db"
app.conf.idempotency_store_url = url
app.conf.task_always_eager = True
engine = create_engine(url)
sql.create_schema(engine)
first, second = charge.delay(42), charge.delay(42)
assert first.get() == second.get() == "receipt for 42"
assert charge.idempotency_record(42).owner_id == first.id
assert set(inspect(engine).get_table_names()) == set(sql.metadata.tables)
