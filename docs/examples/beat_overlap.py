"""A periodic task that never runs beside itself: a tick that comes too early is skipped."""

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("feeds")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
app.conf.beat_schedule = {
    "import": {"task": "import_feeds", "schedule": 300.0, "options": {"expires": 300}},
}


def fetch():
    return "the articles"


@app.task(
    base=IdempotentTask,
    name="import_feeds",
    idempotency_key=lambda: "import_feeds",  # all ticks are one call
    idempotency_ttl=0,
    idempotency_on_running="drop",
)
def import_feeds():
    return fetch()


assert import_feeds.delay().get() == "the articles"
assert import_feeds.delay().get() == "the articles"  # the first has ended, and so this one runs
# [end]

from celery_idempotent.testing import deliver, memory_store  # noqa: E402

skipped = []


def slow_fetch():
    skipped.append(deliver(import_feeds).state)
    return "slow articles"


globals()["fetch"] = slow_fetch
with memory_store():
    assert deliver(import_feeds).result == "slow articles"
assert skipped == ["REVOKED"]
