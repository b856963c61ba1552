"""Use the installed package as a stranger would: all files are there, and an eager task runs."""

import importlib
import pathlib
from importlib import metadata

import celery

import celery_idempotent
from celery_idempotent import IdempotentTask, State

installed = pathlib.Path(celery_idempotent.__file__).parents[1]
assert installed.name == "site-packages", installed
sources = pathlib.Path("sources").read_text().split()
missing = [name for name in sources if not (installed / name).is_file()]
assert not missing, f"not inside the wheel: {missing}"
scripts = [name for name in sources if name.endswith(".lua")]
assert scripts
assert metadata.version("celery-idempotent") == celery_idempotent.__version__
shown = metadata.distribution("celery-idempotent").read_text("METADATA")
assert "`docs/guarantees.rst`" in shown and "](docs/" not in shown, "links that lead nowhere"

app = celery.Celery("stranger", broker="memory://", backend="cache+memory://")
app.conf.task_always_eager = True
app.conf.idempotency_store_url = "memory://"
runs = []


@app.task(base=IdempotentTask, idempotency_key="order:{order}")
def charge(order, amount):
    runs.append(order)
    return {"order": order, "amount": amount, "receipt": len(runs)}


first = charge.delay(42, amount=100).get()
second = charge.delay(order=42, amount=100).get()
record = charge.idempotency_record(42, 100)
assert runs == [42], runs
assert first == second == {"order": 42, "amount": 100, "receipt": 1}, (first, second)
assert record is not None and record.state is State.SUCCEEDED, record
importlib.import_module("kombu.transport.redis")  # a Redis broker needs nothing more installed
print(f"wheel: version {celery_idempotent.__version__}, {len(scripts)} Lua scripts, one charge")
