"""Messages that nobody should send: fuzzed payloads, which a worker takes from a queue.

Each comes to a plain task and to guarded ones. The library may refuse what Celery would run, by an
error of its own; it never runs what Celery would not, and the worker serves the next message.
"""

from __future__ import annotations

import json
import logging
import pickle
import queue
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from celery import Celery, signals
from celery.contrib.testing.worker import start_worker
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from kombu import serialization
from kombu.exceptions import ContentDisallowed, DecodeError

from celery_idempotent import MESSAGE_ID, IdempotencyError, IdempotentTask
from celery_idempotent.settings import environment_of
from tests.support.waiting import PATIENCE_SECONDS

ACCEPTED = ["json", "yaml", "msgpack"]
ACCEPTED_TYPES = {"application/json", "application/x-yaml", "application/x-msgpack"}
PLAIN, *GUARDED = NAMES = ["plain", "by_arguments", "by_template", "by_message"]


class Bomb:
    """What runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.path,)


@dataclass
class Message:
    """What is put into the queue, save the task's name and id."""

    body: bytes
    content_type: str = "application/json"
    content_encoding: str = "utf-8"
    headers: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        shown = self.body[:200] + b"..." * (len(self.body) > 200)
        return f"{self.content_type} ({self.content_encoding}) {shown!r} {self.headers}"


class Served:
    """A worker in this process, and what its tasks did with the message that was sent last."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.ran: dict[str, Any] = {}
        self.outcomes: dict[str, Any] = {}
        self.refused: dict[str, Exception] = {}
        self._ends: queue.Queue[str] = queue.Queue()
        for name in (*NAMES, "good"):
            self._define(name)
        # They are referred to weakly, and gone with this object.
        signals.task_success.connect(self._succeeded)
        signals.task_failure.connect(self._failed)
        signals.task_postrun.connect(self._ended)

    def _define(self, name: str) -> None:
        keys = {"by_template": "order:{order}", "by_message": MESSAGE_ID}
        served = self

        class Watched(IdempotentTask):
            """What it raises is told to nobody where the errbacks are no callbacks."""

            abstract = True

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                try:
                    return super().__call__(*args, **kwargs)
                except IdempotencyError as exc:
                    served.refused[self.name] = exc
                    raise

        options: dict[str, Any] = {} if name == PLAIN else {"base": Watched}
        if name in keys:
            options["idempotency_key"] = keys[name]

        def body(order: Any, amount: Any = 1) -> None:
            self.ran[name] = order, amount

        self.app.task(body, name=name, shared=False, acks_late=True, **options)

    def send(self, message: Message) -> None:
        """Send one to each task, then a good one; return when that is done."""
        self.ran, self.outcomes, self.refused = {}, {}, {}
        store = environment_of(self.app).store
        for key in list(store.scan("*")):
            store.forget(key, 1)  # what was sent before is no duplicate
        with self.app.connection_for_write() as connection:
            channel = connection.default_channel
            for name in NAMES:
                made = channel.prepare_message(
                    message.body,
                    content_type=message.content_type,
                    content_encoding=message.content_encoding,
                    headers={"id": str(uuid.uuid4()), **message.headers, "task": name},
                )
                route = self.app.conf.task_default_queue
                channel.basic_publish(made, exchange=route, routing_key=route)
        good = self.app.tasks["good"].delay(uuid.uuid4().hex)
        while self._ends.get(timeout=PATIENCE_SECONDS) != good.id:
            pass  # one of the others

    def _succeeded(self, sender: Any, **_: Any) -> None:
        self.outcomes[sender.name] = None

    def _failed(self, sender: Any, exception: Any, **_: Any) -> None:
        self.outcomes[sender.name] = exception

    def _ended(self, sender: Any, task_id: str, **_: Any) -> None:
        self._ends.put(task_id)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """One worker for all messages: what one leaves behind, the next would find."""
    app = Celery("payloads", broker="memory://", backend="cache+memory://")
    app.conf.update(
        idempotency_store_url=f"memory://{uuid.uuid4().hex}",
        accept_content=ACCEPTED,
        broker_transport_options={"polling_interval": 0.002},
        task_default_queue=uuid.uuid4().hex,
        worker_hijack_root_logger=False,
        # Some messages are never acknowledged: they end Celery's tracer.
        worker_prefetch_multiplier=0,
    )
    made = Served(app)
    level = logging.root.level  # which the worker changes, for every later test in this process
    logging.disable()  # a traceback for each, from Celery, takes most of the time
    with start_worker(app, pool="threads", perform_ping_check=False, loglevel="CRITICAL"):
        yield made
    logging.disable(logging.NOTSET)
    logging.root.setLevel(level)


# --- what is sent --------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
data = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)


def nested(depth: int) -> Any:
    """A list in a list in a list ..."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


embedded = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("callbacks", "errbacks", "chain", "chord"), data)
)
likely = st.tuples(
    st.lists(data, min_size=1, max_size=2),
    st.dictionaries(st.sampled_from(["order", "amount"]), data, max_size=1),
    st.just({}) | embedded,
)
too_much = st.tuples(
    st.sampled_from([50, 99, 101, 400]).map(lambda depth: [nested(depth)])
    | st.sampled_from([10_000, 300_000]).map(lambda size: ["x" * size]),
    st.just({}),
    st.just({}),
)
unlikely = st.tuples(
    st.lists(data, max_size=4) | data,
    st.dictionaries(st.sampled_from(["order", "self", "", "a b"]), data) | data,
    embedded | data,
)


@st.composite
def encoded(draw: st.DrawFn, bodies: st.SearchStrategy[Any] = likely) -> Message:
    """A body in a serializer that is accepted."""
    serializer = draw(st.sampled_from(ACCEPTED))
    value = draw(bodies)
    try:
        content_type, encoding, body = serialization.dumps(value, serializer=serializer)
    except Exception:  # an integer that msgpack has no room for
        content_type, encoding, body = "application/json", "utf-8", json.dumps(value)
    return Message(body.encode() if isinstance(body, str) else body, content_type, encoding)


@st.composite
def mangled(draw: st.DrawFn) -> Message:
    """A body that is cut short, or has bytes changed."""
    message = draw(encoded())
    body = bytearray(message.body[:2000])
    for at in draw(st.lists(st.integers(0, max(0, len(body) - 1)), max_size=3)):
        if body:
            body[at] = draw(st.integers(0, 255))
    message.body = bytes(body[: draw(st.integers(0, len(body)))])
    return message


content_types = st.sampled_from(
    [
        *("application/json", "application/x-yaml", "application/x-msgpack", "application/data"),
        *("application/x-python-serialize", "text/plain", "application/x-unheard-of", ""),
    ]
)
encodings = st.sampled_from(["utf-8", "binary", "us-ascii", "base64", "utf-99", "rot13", ""])
raw = st.builds(Message, st.binary(max_size=200), content_types, encodings)
mislabelled = st.builds(
    lambda message, kind, encoding: Message(message.body, kind, encoding),
    encoded(),
    content_types,
    encodings,
)
headers = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("retries", "replaced_task_nesting", "group", "root_id", "lang"), data),
        **dict.fromkeys(("ignore_result", "argsrepr"), data),
        "compression": st.sampled_from(["application/x-gzip", "zlib", "application/x-none"]),
    },
)


@st.composite
def headed(draw: st.DrawFn) -> Message:
    """A body that may be right, with headers of Celery's that are not."""
    message = draw(encoded())
    message.headers = draw(headers)
    return message


def ends_celery(message: Message) -> bool:
    """Whether plain Celery's consumer ends at it, before it knows which task it is for."""
    try:
        payload = serialization.loads(
            message.body, message.content_type, message.content_encoding, accept=ACCEPTED_TYPES
        )
    except (DecodeError, ContentDisallowed):
        return False
    except Exception:
        return True
    return not isinstance(payload, list) or len(payload) != 3


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    message=st.one_of(
        *(encoded(likely), encoded(too_much), encoded(unlikely), headed()),
        *(mangled(), raw | mislabelled),
    )
)
@example(message=Message(b"[[1], {}, {}]", headers={"retries": "many"}))
@example(message=Message(b"[[1], {}, {}]", headers={"replaced_task_nesting": -1}))
def test_any_payload_is_answered_as_by_celery_or_by_a_typed_error(
    served: Served, message: Message
) -> None:
    """No hang, no crash, nothing run that plain Celery does not run."""
    assume(not ends_celery(message))
    # When
    served.send(message)
    # Then
    for name in GUARDED:
        if name in served.refused:
            assert name not in served.ran
            assert len(str(served.refused[name])) < 2000
        else:
            assert served.ran.get(name) == served.ran.get(PLAIN)
            # Callbacks that are none end Celery's tracer, and no outcome is told.
            if PLAIN in served.outcomes:
                assert (served.outcomes[name] is None) == (served.outcomes[PLAIN] is None)


def pickled(path: Path) -> bytes:
    """A payload that makes a directory when it is unpickled."""
    return pickle.dumps(((Bomb(path),), {}, {}))


def in_yaml(path: Path) -> bytes:
    """A payload that makes a directory when YAML may name functions."""
    return f"[[!!python/object/apply:os.mkdir [{path}]], {{}}, {{}}]".encode()


@pytest.mark.parametrize(
    ("content_type", "payload", "careless"),
    [
        ("application/x-python-serialize", pickled, pickle.loads),
        ("application/x-yaml", in_yaml, yaml.unsafe_load),
    ],
)
def test_no_payload_runs_code(
    served: Served, tmp_path: Path, content_type: str, payload: Any, careless: Any
) -> None:
    """A message that says it is a pickle, or is YAML with a function in it, is not opened."""
    # Given a payload that does something
    careless(payload(tmp_path / "shown"))
    assert (tmp_path / "shown").exists()
    # When
    for encoding in ("binary", "utf-8"):
        served.send(Message(payload(tmp_path / "done"), content_type, encoding))
    # Then
    assert not (tmp_path / "done").exists()
    assert not served.ran.keys() & set(GUARDED)
