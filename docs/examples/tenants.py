"""Tenants that number their orders alike are kept apart by the namespace."""

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("shop")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
charged = []


@app.task(
    base=IdempotentTask,
    idempotency_key="order:{order_id}",
    idempotency_namespace="tenant:{tenant_id}",
)
def charge(tenant_id, order_id):
    charged.append((tenant_id, order_id))


charge.delay("north", 1)
charge.delay("south", 1)  # another namespace: it runs
charge.delay("north", 1)  # a duplicate
assert charged == [("north", 1), ("south", 1)]
