"""A value in Redis that knows which run wrote it last."""

import redis
from celery import Celery

from celery_idempotent import ClaimLost, IdempotentTask

app = Celery("shop", broker="memory://", backend="cache+memory://")
app.conf.update(task_always_eager=True, idempotency_store_url="memory://")
client = redis.Redis.from_url("redis://localhost:6379/3", decode_responses=True)

# Tokens have 16 digits: they are compared as numbers, and kept as they were written.
SET_FENCED = client.register_script("""
local fence = tonumber(redis.call('HGET', KEYS[1], 'fence') or 0)
if fence > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'fence', ARGV[1], 'value', ARGV[2])
return 1
""")


def set_fenced(name, value, token):
    if not SET_FENCED(keys=[name], args=[token, value]):
        raise ClaimLost(f"{name} was written by a later run")


@app.task(base=IdempotentTask, bind=True, idempotency_key="price:{product}")
def set_price(self, product, price):
    set_fenced(f"price:{product}", price, self.idempotency.token)


# [end]

set_price.delay("book", 12).get()
assert client.hget("price:book", "value") == "12"
try:
    set_fenced("price:book", 10, token=1)
except ClaimLost:
    pass
else:
    raise AssertionError("a late write was taken")
assert client.hget("price:book", "value") == "12"
