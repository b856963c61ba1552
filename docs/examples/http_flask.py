"""Flask, and any other WSGI application."""

from celery import Celery
from flask import Flask, request

from celery_idempotent import IdempotentTask
from celery_idempotent.http import IdempotencyWSGIMiddleware

celery = Celery("shop")
celery.conf.update(task_always_eager=True, idempotency_store_url="memory://")
charged = []


@celery.task(base=IdempotentTask)
def charge(order, amount):
    charged.append(order)


# [app]
app = Flask("shop")


@app.post("/payments")
def pay():
    charge.delay(request.json["order"], request.json["amount"])
    return {"payment": request.environ["idempotency"].key_for("payment")}, 202


app.wsgi_app = IdempotencyWSGIMiddleware(
    app.wsgi_app, celery, identity=lambda environ: environ.get("HTTP_AUTHORIZATION")
)
# [end]

client = app.test_client()
headers = {"Authorization": "Bearer ann", "Idempotency-Key": '"7f3a"'}
body = {"order": 42, "amount": 100}
first, second = (client.post("/payments", json=body, headers=headers) for _ in range(2))
assert (first.status_code, first.json) == (second.status_code, second.json)
assert second.headers["Idempotency-Replayed"] == "true"
assert charged == [42]
