"""Before, with a lock of one's own: two workers don't import one feed at once."""

from contextlib import contextmanager

from celery import Celery
from redis import Redis

app = Celery("feeds", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")
locks = Redis.from_url("redis://localhost:6379/2")


@contextmanager
def lock(name):
    taken = locks.set(name, "taken", nx=True, ex=600)
    try:
        yield taken
    finally:
        if taken:
            locks.delete(name)


def fetch(feed):
    return f"the articles of {feed}"


@app.task
def import_feed(feed):
    with lock(f"feed:{feed}") as taken:
        return fetch(feed) if taken else None
