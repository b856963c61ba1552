"""An API and its worker, of one module: ``uvicorn shop:api`` and ``celery -A shop worker``."""

import uuid

from celery import Celery
from celery.result import AsyncResult
from fastapi import FastAPI

from celery_idempotent import IdempotentTask
from celery_idempotent.http import IdempotencyASGIMiddleware

app = Celery("shop")
app.conf.update(
    broker_url="redis://localhost:6379/0",
    result_backend="redis://localhost:6379/1",
    idempotency_store_url="redis://localhost:6379/2",
)


@app.task(base=IdempotentTask, idempotency_key="order:{order_id}")
def charge(order_id):
    return {"order": order_id, "receipt": uuid.uuid4().hex}


api = FastAPI()
api.add_middleware(
    IdempotencyASGIMiddleware,
    celery=app,
    identity=lambda scope: "shop",  # stands for who is signed in
)


@api.post("/orders/{order_id}/charge", status_code=202)
def begin(order_id: int):
    # A plain def: FastAPI runs it in a thread, so that publishing holds up no other request.
    return {"call": charge.delay(order_id).id}


@api.get("/calls/{call}")
def outcome(call: str):
    result = AsyncResult(call, app=app)
    return {"state": result.state, "result": result.result if result.successful() else None}
