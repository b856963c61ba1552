"""The sessions in the documentation are what the commands really write."""

from __future__ import annotations

import json
import re
import shlex
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from celery_idempotent import IdempotentTask
from celery_idempotent.core.codec import Kind, Outcome
from celery_idempotent.core.keys import Owner
from celery_idempotent.core.record import Process, Record, State
from celery_idempotent.core.step import Step, StepState
from celery_idempotent.core.verdicts import Claim, Claimed, Renewal, Settle
from celery_idempotent.ops import remote, settle
from celery_idempotent.ops.cli import act, idempotency
from celery_idempotent.ops.doctor import examination
from celery_idempotent.ops.doctor.findings import NAMES
from celery_idempotent.ops.doctor.rights import (
    CLUSTER_COMMANDS,
    OPERATOR_COMMANDS,
    WORKER_COMMANDS,
    rule_of,
)
from celery_idempotent.ops.doctor.store import check_server
from celery_idempotent.run import journal as run_journal
from celery_idempotent.run.process import BOOT_ID
from celery_idempotent.settings import environment_of
from celery_idempotent.stores.base import Server
from celery_idempotent.stores.memory import MemoryStore
from tests.ops.test_doctor import GOOD, GOOD_CONFIG, GOOD_INFO, names_in
from tests.support.commands import Commands

DOCS = Path(__file__).parents[2] / "docs"
DOCTOR = Path(examination.__file__).parent

#: Task ids as a reader can tell them apart.
IDS = {name: str(uuid.UUID(name[0] * 32)) for name in ("a", "b", "c", "d", "e", "f")}
START_US = 1_767_258_000_000_000  # 2026-01-01 09:00:00 UTC
JSON = ("application/json", "utf-8")
ON_PAGES_OF_THEIR_OWN = ("doctor", "flower", "relay")


class Story:
    """What has happened before the session, by a clock that stands still between the events."""

    def __init__(self, app: Celery, store: MemoryStore, move: Callable[[float], None]) -> None:
        self._journal = environment_of(app).journal
        self._store = store
        self._move = move

    def tell(self, what: str, key: str, call: str, **more: Any) -> None:
        name = f"idempotent:{{shop.charge:{key}}}"
        fields = {"node": "celery@worker1", "pid": 4711, **more}
        self._journal.write(what, name, "shop.charge", IDS[call], **fields)

    def claim(self, key: str, call: str) -> Record:
        host = socket.gethostname()
        owner, process = Owner(IDS[call]).pack(), Process(host, 4711, BOOT_ID).pack()
        record = Record(State.RUNNING, 0, owner=owner, process=process, nonce=b"nonce")
        name = f"idempotent:{{shop.charge:{key}}}"
        verdict = self._store.claim(name, Claim(record, 30_000, 86_400_000, max_interruptions=0))
        token = verdict.token if isinstance(verdict, Claimed) else 0
        return Record(State.RUNNING, token, owner=owner, process=process)

    def step(self, key: str, held: Record, order: int, step: str, result: bytes) -> None:
        outcome = Outcome(Kind.RESULT, *JSON, result).pack()
        renewal = Renewal(f"idempotent:{{shop.charge:{key}}}", held, 30_000, 86_400_000)
        self._store.step(renewal, step, Step(StepState.DONE, order, outcome).pack())

    def complete(self, key: str, held: Record, state: State = State.SUCCEEDED) -> None:
        outcome = Outcome(Kind.RESULT, *JSON, b'{"receipt": "r-%b"}' % key[6:].encode()).pack()
        done = Record(state, held.token, owner=held.owner, outcome=outcome)
        if state is State.RUNNING:
            done = Record(state, held.token, owner=held.owner)
        self._store.settle(f"idempotent:{{shop.charge:{key}}}", Settle(done, 0, 86_400_000))

    def happen(self) -> None:
        """An order charged, with a duplicate; one that is unknown; one that runs."""
        held = self.claim("order:42", "a")
        self._move(0.4)
        self.tell("waiting", "order:42", "b", original=IDS["a"], delay=0.25)
        self._move(0.6)
        self.step("order:42", held, 0, "pay", b'"ch-1"')
        self.step("order:42", held, 1, "mail", b"null")
        self.complete("order:42", held)
        self.tell("succeeded", "order:42", "a", took=1.0, token=held.token, attempt=1)
        self._move(0.1)
        self.tell("deduplicated", "order:42", "b", original=IDS["a"], waits=1)
        self._move(3000)
        held = self.claim("order:7", "c")
        self.tell("claimed", "order:7", "c", token=held.token, attempt=1)
        self._move(20)
        self.complete("order:7", held, State.RUNNING)
        self._move(40)
        self.claim("order:7", "d")
        self.tell("unknown", "order:7", "d", original=IDS["c"], interruptions=1)
        self._move(500)
        held = self.claim("order:8", "e")
        self.tell("claimed", "order:8", "e", token=held.token, attempt=1)
        self._move(12)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    now = [START_US]
    store = MemoryStore(lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += int(seconds * 1e6)

    url = f"memory://{uuid.uuid4().hex}"
    monkeypatch.setitem(MemoryStore._shared, url, store)
    monkeypatch.setattr(socket, "gethostname", lambda: "worker1")
    monkeypatch.setattr(run_journal, "monotonic", lambda: 1.0)
    monkeypatch.setattr(settle, "uuid", lambda: IDS["f"])
    monkeypatch.setattr(act, "_via", lambda: "celery idempotency, ann on ops1")
    app = Celery("shop", set_as_current=False)
    app.conf.update(
        broker_url="memory://", result_backend="cache+memory://", idempotency_store_url=url
    )

    @app.task(
        base=IdempotentTask, name="shop.charge", idempotency_key="order:{order}", shared=False
    )
    def charge(order: int) -> int:
        return order

    app.finalize()
    Story(app, store, move).happen()
    yield app
    app.close()


def sessions(page: str) -> list[tuple[str, str]]:
    """The commands of a page, and what it says that each writes."""
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"\.\. code-block:: console\n\n((?:   .*\n|\n)+)", text)
    found = []
    for block in blocks:
        lines = "\n".join(line[3:] for line in block.splitlines())
        for part in re.split(r"^\$ ", lines, flags=re.MULTILINE)[1:]:
            command, _, written = part.partition("\n")
            found.append((command, written.rstrip()))
    return found


def written_by(app: Celery, run: Commands, command: str) -> str:
    words = shlex.split(command)
    assert words[:3] == ["celery", "-A", "shop"], command
    if words[3] == "inspect":
        assert words[4:] == ["idempotency", "--json"]
        environment = environment_of(app)
        request: Any = SimpleNamespace(
            id=IDS["e"],
            name="shop.charge",
            record_name=lambda: "idempotent:{shop.charge:order:8}",
        )
        return json.dumps({"celery@worker1": remote.claims(environment, [request])})
    assert words[3] == "idempotency"
    form = [] if "--json" in words else ["--text"]
    done = run(*words[4:5], *form, *words[5:])
    return "\n".join(line.rstrip() for line in (done.out + done.err).splitlines())


def test_the_page_of_the_commands_shows_what_they_write(
    app: Celery, capsys: pytest.CaptureFixture[str]
) -> None:
    """One session from its top to its end, word for word."""
    # Given
    run = Commands(app, capsys)
    shown = sessions("cli.rst")
    assert len(shown) >= 8
    # Then
    for command, text in shown:
        assert written_by(app, run, command) == text, command


def test_the_page_of_the_commands_has_all_of_them() -> None:
    """With each of their options, or a word of the page where those are."""
    # Given
    text = (DOCS / "cli.rst").read_text(encoding="utf-8")
    # Then
    for name, command in idempotency.commands.items():
        assert f"idempotency {name}" in text, name
        for parameter in command.params if name not in ON_PAGES_OF_THEIR_OWN else ():
            for option in parameter.opts:
                if option.startswith("--"):
                    assert option in text, (name, option)


def test_the_page_of_the_doctor_shows_what_it_writes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an app that has two faults, and a server that has one."""
    # Given
    app = Celery("shop", set_as_current=False)
    app.conf.update({**GOOD, "task_time_limit": None})
    server = Server({**GOOD_INFO, "maxmemory_policy": "allkeys-lru"}, GOOD_CONFIG)
    monkeypatch.setattr(
        examination, "check_store", lambda *_, **__: check_server(server, "redis://cache/2")
    )

    @app.task(
        base=IdempotentTask,
        name="shop.charge",
        acks_late=False,
        shared=False,
        idempotency_key="{order}",
    )
    def charge(order: int) -> int:
        return order

    app.finalize()
    # Then
    for command, text in sessions("doctor.rst"):
        assert written_by(app, Commands(app, capsys), command) == text
    app.close()


def test_the_page_of_operations_has_the_rule_for_the_stores_user() -> None:
    """With the commands that the doctor asks for, and no others."""
    text = (DOCS / "operations.rst").read_text(encoding="utf-8")
    rules = re.findall(r"ACL SETUSER (\S+) on >\S+ (.*(?:\n      .*)*)", text)
    written = [" ".join(rule.split()) for _, rule in rules]
    assert written == [
        rule_of("idempotent", WORKER_COMMANDS),
        rule_of("idempotent", [*WORKER_COMMANDS, *OPERATOR_COMMANDS]),
    ]
    assert " ".join(f"+{command}" for command in CLUSTER_COMMANDS) in text


def test_the_page_of_the_doctor_names_each_finding_once() -> None:
    """And no other."""
    # Given
    text = (DOCS / "doctor.rst").read_text(encoding="utf-8")
    named = re.findall(r"^   \* - ``([a-z-]+)``$", text, re.MULTILINE)
    # Then
    assert len(named) == len(set(named))
    assert set(named) == {name for source in DOCTOR.glob("*.py") for name in names_in(source)}
    assert set(named) == NAMES
