"""calls.py: the same call, again and again."""

from shop import app, charge

# The same call in two spellings: one charge, two equal results.
first = charge.delay(42, 100)
second = charge.delay(order_id=42, amount=100)
assert first.get(timeout=10) == second.get(timeout=10)

# An explicit key, from a web request, say. It is a key of its own, so this is a second charge.
request = charge.apply_async((42, 100), idempotency_key="req-7f3a")

# The same key from anywhere: this needs neither the library nor the task's code.
elsewhere = app.send_task("shop.charge", (42, 100), headers={"idempotency-key": "req-7f3a"})
assert request.get(timeout=10) == elsewhere.get(timeout=10)
