"""A checkpoint by hand, where the other side tells where to go on."""

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("reports")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
pages = {None: (["a", "b"], "p2"), "p2": (["c"], "p3"), "p3": (["d"], None)}
stored = []
outages = ["p3"]


def fetch(page):
    if page in outages:
        outages.remove(page)
        raise ConnectionError(page)
    return pages[page]


@app.task(base=IdempotentTask, bind=True, idempotency_key="import:{day}")
def import_day(self, day):
    page = self.idempotency.cursor
    while True:
        rows, page = fetch(page)
        stored.extend(rows)
        if page is None:
            return len(stored)
        self.idempotency.checkpoint(page)


# [end]

assert import_day.delay("2026-11-29").failed()
assert import_day.delay("2026-11-29").get() == 4
assert stored == ["a", "b", "c", "d"]
