"""Results, failures and steps are encrypted before they leave the process."""

import os

from celery import Celery
from cryptography.fernet import Fernet, MultiFernet
from kombu.serialization import register
from kombu.utils import json

from celery_idempotent import IdempotentTask

# Keys, separated by commas: the first one encrypts, each of them decrypts. All processes need them.
keys = os.environ.get("OUTCOME_KEYS", Fernet.generate_key().decode()).split(",")
box = MultiFernet([Fernet(key) for key in keys])


def encrypt(value):
    return box.encrypt(json.dumps(value).encode()).decode()


def decrypt(text):
    return json.loads(box.decrypt(text).decode())


register("encrypted", encrypt, decrypt, "application/x-encrypted", "utf-8")

app = Celery("clinic")
app.conf.update(
    result_backend="redis://localhost:6379/1",
    result_serializer="encrypted",
    result_accept_content=["encrypted"],
    idempotency_store_url="redis://localhost:6379/2",
    task_always_eager=True,  # for this sample: no worker is needed
)


def look_up(patient):
    return {"patient": patient, "finding": "healthy"}


@app.task(
    base=IdempotentTask,
    bind=True,
    idempotency_key="patient:{patient}",
    idempotency_redact_key=True,
    idempotency_store_failures=True,
)
def report(self, patient, broken=False):
    found = self.idempotency.step("look up", look_up, patient)
    if broken:
        raise ValueError(f"no report for {patient}")
    return {"report": found}


first, again = report.delay("Ann Miller"), report.delay("Ann Miller")
assert first.get() == again.get() == {"report": {"patient": "Ann Miller", "finding": "healthy"}}
assert "Bob Myers" in str(report.delay("Bob Myers", broken=True).result)
# [end]

import re  # noqa: E402
import time  # noqa: E402

import redis  # noqa: E402

client = redis.Redis.from_url(app.conf.idempotency_store_url)
read = {b"string": client.get, b"hash": client.hgetall, b"stream": client.xrange}
stored = {}
for _ in range(100):  # the journal is written half a second later
    kinds = {name: client.type(name) for name in client.scan_iter()}
    stored = {name: read[kind](name) for name, kind in kinds.items()}
    if set(kinds.values()) == set(read):  # records, steps and the journal
        break
    time.sleep(0.1)
else:
    raise AssertionError(stored)
readable = re.findall("Ann|Miller|Bob|Myers|healthy|no report|finding", str(stored))
assert readable == [], (readable, stored)
