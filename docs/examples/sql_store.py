"""Records in a database: a URL, and tables that are made once."""

import tempfile
from pathlib import Path

from celery import Celery
from sqlalchemy import MetaData, create_engine, inspect

from celery_idempotent import IdempotentTask
from celery_idempotent.stores import sql

directory = Path(tempfile.mkdtemp())
url = f"sqlite:///{directory / 'shop.db'}"
my_metadata = MetaData()

# [settings]
app = Celery("shop", broker="memory://", backend="cache+memory://")
app.conf.idempotency_store_url = "postgresql://shop:secret@db/shop"
app.conf.idempotency_store_options = {"pool_size": 2, "timeout": 3}
# [end]
app.conf.idempotency_store_url = url
app.conf.task_always_eager = True

engine = create_engine(url)
# [schema]
sql.create_schema(engine)  # as `celery -A shop idempotency init-db` does
target_metadata = [my_metadata, sql.metadata]  # in Alembic's env.py
# [end of schema]

runs = []


@app.task(base=IdempotentTask, idempotency_key="order:{order_id}")
def charge(order_id):
    runs.append(order_id)
    return f"receipt for {order_id}"


assert charge.delay(42).get() == charge.delay(42).get() == "receipt for 42"
assert runs == [42]
assert set(inspect(engine).get_table_names()) == set(sql.metadata.tables)
