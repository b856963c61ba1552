"""FastAPI: a request that is sent again gets the first answer."""

from celery import Celery
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from celery_idempotent import IdempotentTask
from celery_idempotent.http import IdempotencyASGIMiddleware

celery = Celery("shop")
celery.conf.update(task_always_eager=True, idempotency_store_url="memory://")
charged = []


@celery.task(base=IdempotentTask)
def charge(order, amount):
    charged.append(order)


# [api]
api = FastAPI()


def caller(scope):
    """Whose key it is: a text that tells callers apart; None: nobody, the API refuses it."""
    return Request(scope).headers.get("Authorization")


api.add_middleware(
    IdempotencyASGIMiddleware,
    celery=celery,
    identity=caller,
    required=lambda scope: scope["path"].startswith("/payments"),
    docs_url="https://api.example.com/docs/idempotency",
)


@api.post("/payments", status_code=202)
def pay(payment: dict, request: Request):
    charge.delay(payment["order"], payment["amount"])  # its key comes from the request's
    # The same for each try of this request: a name for a row, or for another API.
    return {"payment": request.scope["idempotency"].key_for("payment")}


# [end]

client = TestClient(api, headers={"Authorization": "Bearer ann"})
body = {"order": 42, "amount": 100}
key = {"Idempotency-Key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}
first, second = (client.post("/payments", json=body, headers=key) for _ in range(2))
assert first.status_code == second.status_code == 202
assert first.json() == second.json()
assert second.headers["Idempotency-Replayed"] == "true"
assert charged == [42]

missing = client.post("/payments", json=body)
assert (missing.status_code, missing.json()["code"]) == (400, "missing-key")
other = client.post("/payments", json={"order": 43, "amount": 100}, headers=key)
assert (other.status_code, other.json()["code"]) == (422, "other-payload")
