"""The default: a key over all arguments, with defaults filled in."""

from celery import Celery

from celery_idempotent import IdempotentTask

app = Celery("shop")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")


@app.task(base=IdempotentTask)
def resize(path, width, height=100):
    return f"{path} at {width} x {height}"


key = resize.idempotency_key_for("a.png", 200)
assert key == resize.idempotency_key_for(width=200, path="a.png", height=100)
assert key != resize.idempotency_key_for("a.png", "200")
assert key.startswith("~")  # a digest: no argument is shown
# [end]

assert resize.delay("a.png", 200).get() == "a.png at 200 x 100"
