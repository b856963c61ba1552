"""FastAPI: a request that is sent again gets the first answer."""

from typing import Annotated

from celery import Celery
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPBearer

from celery_idempotent import IdempotentTask
from celery_idempotent.http import IdempotencyASGIMiddleware

celery = Celery("shop")
celery.conf.update(task_always_eager=True, idempotency_store_url="memory://")
charged = []


@celery.task(base=IdempotentTask)
def charge(user, order):
    charged.append((user, order))


api = FastAPI()
bearer = HTTPBearer(auto_error=False)
tokens = {"token-1": "ann", "token-2": "bob"}  # stands for your table of tokens


async def user_of(request: Request):
    """The user whose token it is, whichever of theirs; None: nobody that we know."""
    given = await bearer(request)
    return None if given is None else tokens.get(given.credentials)


async def signed_in(user: Annotated[str | None, Depends(user_of)]):
    if user is None:
        raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})
    return user


api.add_middleware(
    IdempotencyASGIMiddleware,
    celery=celery,
    # None, and the request goes to the API, which answers 401.
    identity=lambda scope: user_of(Request(scope)),
    # Without a key 400: the API is not called.
    required=lambda scope: scope["path"] == "/payments",
    docs_url="https://api.example.com/docs/idempotency",
)


@api.post("/payments", status_code=202)
def pay(payment: dict, request: Request, user: Annotated[str, Depends(signed_in)]):
    charge.delay(user, payment["order"])  # its key comes from the request's
    # The same for each try of this request: a name for a row, or for another API.
    return {"payment": request.scope["idempotency"].key_for("payment")}


# [end]

from fastapi.testclient import TestClient  # noqa: E402


def send(order=42, **headers):
    return TestClient(api).post("/payments", json={"order": order}, headers=headers)


def headers_of(user):
    token = next(token for token, owner in tokens.items() if owner == user)
    return {"Authorization": f"Bearer {token}"}


def refresh(user):
    revoke(user)
    tokens[f"token-{len(charged)}-{user}"] = user


def revoke(user):
    for token in [token for token, owner in tokens.items() if owner == user]:
        del tokens[token]


if __name__ == "__main__":
    key = {"Idempotency-Key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}
    first, second = (send(**headers_of("ann"), **key) for _ in range(2))
    assert first.status_code == second.status_code == 202
    assert first.json() == second.json()
    assert second.headers["Idempotency-Replayed"] == "true"
    assert charged == [("ann", 42)]

    missing = send(**headers_of("ann"))
    assert (missing.status_code, missing.json()["code"]) == (400, "missing-key")
    other = send(43, **headers_of("ann"), **key)
    assert (other.status_code, other.json()["code"]) == (422, "other-payload")
