"""Flask, and any other WSGI application."""

from celery import Celery
from flask import Flask, Request, abort, request

from celery_idempotent import IdempotentTask
from celery_idempotent.http import IdempotencyWSGIMiddleware

celery = Celery("shop")
celery.conf.update(task_always_eager=True, idempotency_store_url="memory://")
charged = []


@celery.task(base=IdempotentTask)
def charge(user, order):
    charged.append((user, order))


app = Flask("shop")
tokens = {"token-1": "ann", "token-2": "bob"}  # stands for your table of tokens


def user_of(request):
    """The user whose token it is, whichever of theirs; None: nobody that we know."""
    given = request.authorization
    return tokens.get(given.token) if given is not None and given.type == "bearer" else None


@app.post("/payments")
def pay():
    user = user_of(request) or abort(401)
    charge.delay(user, request.json["order"])  # its key comes from the request's
    # The same for each try of this request: a name for a row, or for another API.
    return {"payment": request.environ["idempotency"].key_for("payment")}, 202


app.wsgi_app = IdempotencyWSGIMiddleware(
    app.wsgi_app,
    celery,
    # None, and the request goes to the view, which answers 401.
    identity=lambda environ: user_of(Request(environ)),
    # Without a key 400: the view is not called.
    required=lambda environ: environ["PATH_INFO"] == "/payments",
)
# [end]


def send(order=42, **headers):
    return app.test_client().post("/payments", json={"order": order}, headers=headers)


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
    key = {"Idempotency-Key": '"7f3a"'}
    first, second = (send(**headers_of("ann"), **key) for _ in range(2))
    assert (first.status_code, first.json) == (second.status_code, second.json)
    assert second.headers["Idempotency-Replayed"] == "true"
    assert charged == [("ann", 42)]
