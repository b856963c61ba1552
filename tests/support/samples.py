"""What callers do to a sample of docs/examples: run as a module, it prints what they got."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery_idempotent.settings import environment_of

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


class Caller:
    """Sends requests to a sample, each case with a key of its own."""

    def __init__(self, sample: Any, case: str) -> None:
        self.sample = sample
        self._key = {"Idempotency-Key": f'"{case}"'}
        self.answers: list[Any] = []

    def send(self, user: str | None, order: int = 1, *, key: bool = True, **headers: str) -> None:
        given = {**(self.sample.headers_of(user) if user else {}), **headers}
        self.answers.append(self.sample.send(order, **given, **(self._key if key else {})))


def no_key(caller: Caller) -> None:
    caller.send("ann", key=False)


def no_authorization(caller: Caller) -> None:
    caller.send(None)


def neither(caller: Caller) -> None:
    caller.send(None, key=False)


def made_up_authorization(caller: Caller) -> None:
    for number in range(3):
        caller.send(None, Authorization=f"Bearer made-up-{number}")
        caller.send(None, Authorization=f"Token made-up-{number}")
        caller.send(None, Cookie=f"sessionid=madeup{number}")


def malformed_key(caller: Caller) -> None:
    caller.send("ann", key=False, **{"Idempotency-Key": '"open'})


def sent_again(caller: Caller) -> None:
    for _ in range(3):
        caller.send("ann")


def sent_again_with_a_new_token(caller: Caller) -> None:
    caller.send("ann")
    caller.sample.refresh("ann")
    caller.send("ann")


def sent_again_with_a_revoked_token(caller: Caller) -> None:
    headers = caller.sample.headers_of("ann")
    caller.send(None, **headers)
    caller.sample.revoke("ann")
    caller.send(None, **headers)
    caller.sample.refresh("ann")


def same_key_of_another_user(caller: Caller) -> None:
    caller.send("ann")
    caller.send("bob")


def same_key_for_another_order(caller: Caller) -> None:
    caller.send("ann", 1)
    caller.send("ann", 2)


CASES: dict[str, Callable[[Caller], None]] = {
    function.__name__: function
    for function in (
        no_key,
        no_authorization,
        neither,
        made_up_authorization,
        malformed_key,
        sent_again,
        sent_again_with_a_new_token,
        sent_again_with_a_revoked_token,
        same_key_of_another_user,
        same_key_for_another_order,
    )
}


def run(name: str) -> dict[str, Any]:
    """Run every case against a sample: its statuses, its answers, what was charged and stored."""
    sys.path.insert(0, str(EXAMPLES))
    sample = importlib.import_module(name)
    store = environment_of(sample.celery).store
    found = {}
    for case, function in CASES.items():
        caller = Caller(sample, case)
        charged, stored = len(sample.charged), len(list(store.scan("*")))
        function(caller)
        found[case] = {
            "statuses": [answer.status_code for answer in caller.answers],
            "payments": [_payment(answer) for answer in caller.answers],
            "replayed": [answer.headers.get("Idempotency-Replayed") for answer in caller.answers],
            "charged": [user for user, _ in sample.charged[charged:]],
            # A payment's record, and its task's.
            "stored": len(list(store.scan("*"))) - stored,
        }
    return found


def _payment(answer: Any) -> str | None:
    body = answer.json if isinstance(getattr(answer, "json", None), dict) else None
    try:
        body = body or json.loads(getattr(answer, "text", None) or answer.content)
    except (AttributeError, ValueError):
        return None
    found: str | None = body.get("payment")
    return found


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1])))  # noqa: T201
