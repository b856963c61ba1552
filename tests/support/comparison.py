"""One system of a comparison: a system with one worker, and all that shows of what it is given."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import redis
from celery.result import AsyncResult, EagerResult, GroupResult, ResultSet

from celery_idempotent.testing.servers import RedisServer
from tests.support.brokers import RedisBroker
from tests.support.canvas import noting_messages
from tests.support.compositions import Composition, Tasks
from tests.support.ledger import Entry, Ledger
from tests.support.system import System
from tests.support.waiting import eventually
from tests.support.workers import Worker

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
#: What differs between two runs of plain Celery, too.
_INCIDENTAL = {"date_done", "task_id", "worker", "queue", "pid", "traceback"}


class ComparedSystem:
    """One of the two systems, with one worker for all compositions, which is being started."""

    def __init__(self, kind: str, server: RedisServer, db: int, directory: Path) -> None:
        self.kind = kind
        self.system = System(
            RedisBroker(server, db),
            server,
            directory,
            test_canvas=kind,
            result_extended=True,
            task_acks_late=True,
            task_reject_on_worker_lost=True,
            accept_content=["json", "yaml"],
        )
        # One after the other: of two at once Celery may keep the older state, or order by chance.
        self.worker = Worker(self.system.settings, concurrency=1)
        self.system.workers.append(self.worker)

    @property
    def ledger(self) -> Ledger:
        """What its bodies wrote."""
        return self.system.ledger

    def close(self) -> None:
        """End it all; what is collected later asks no server that is gone."""
        consumer = self.system.app.backend.result_consumer
        consumer.stop()
        consumer._pubsub = None
        self.system.close()

    def compose(self, composition: Composition) -> tuple[int, Any]:
        """Send it; with what comes back, from which byte on the ledger tells of it."""
        began = self.ledger.path.stat().st_size
        self.system.app.set_current()
        with noting_messages(self.ledger):
            return began, composition.compose(Tasks(self.system.app, self.ledger))

    def observe(self, began: int, sent: Any) -> dict[str, Any]:
        """Once nothing is left to do: all that can be seen of a composition."""
        eventually(lambda: self._is_quiet(began), f"{self.kind} is quiet")
        entries = self._entries(began)
        names = Names(entries)
        ids = dict.fromkeys(entry["id"] for entry in entries if entry["event"] == "sent")
        bodies = [names.place(entry) for entry in entries if entry["event"] == "body"]
        messages = [names.place(entry) for entry in entries if entry["event"] == "sent"]
        backend = self.system.app.backend
        stored = [names.place({**backend.get_task_meta(task_id), "id": task_id}) for task_id in ids]
        return {
            "outcome": _outcome(sent),
            "seen": names.clean(_seen(sent)),
            "order": _order(entries, bodies),
            "bodies": _sorted(bodies),
            "messages": _sorted(messages),
            "ends": _ends(entries, names),
            "stored": _sorted(stored),
        }

    def _entries(self, began: int) -> list[Entry]:
        with open(self.ledger.path, "rb") as ledger:
            ledger.seek(began)
            return [json.loads(line) for line in ledger.read().rpartition(b"\n")[0].splitlines()]

    def _is_quiet(self, began: int) -> bool:
        """Whether each message is done with, which it is once the broker was told so."""
        entries = self._entries(began)
        sent = Counter(entry["id"] for entry in entries if entry["event"] == "sent")
        done = Counter(entry["id"] for entry in entries if entry["event"] == "finished")
        done.update({entry["id"] for entry in entries if entry["event"] == "revoked"})
        if sent - done:
            return False
        with redis.Redis.from_url(self.system.broker.url) as client:
            return not client.hlen("unacked") and not client.llen(self.system.broker.queue)


class Names:
    """Names for ids, made of what was called: the same in both systems."""

    def __init__(self, entries: list[Entry]) -> None:
        sent = [entry for entry in entries if entry["event"] == "sent"]
        self._names: dict[str, str] = {}
        for entry in sent:
            self._names.setdefault(entry["id"], _UUID.sub("<id>", entry["call"]))
        groups: dict[str, set[str]] = {}
        chords: dict[str, set[str]] = {}
        for entry in sent:
            if entry["group"]:
                groups.setdefault(entry["group"], set()).add(self._names[entry["id"]])
            if entry["chord"]:
                chords.setdefault(entry["chord"], set()).add(entry["root"])
        for group_id, members in groups.items():
            self._names[group_id] = f"the group of {' and '.join(sorted(members))}"
        self._chord_bodies = set(chords)
        self._roots: dict[str, str] = {}
        for roots in _merged(chords.values()):
            if len(roots) > 1:
                any_of_them = " or ".join(sorted(map(self.of, roots)))
                self._roots.update(dict.fromkeys(roots, any_of_them))

    def of(self, task_id: str) -> str:
        """The name of an id."""
        return self._names.get(task_id, "<id>")

    def place(self, facts: dict[str, Any]) -> Any:
        """Clean facts about one run; which part of a chord calls its body is chance."""
        above = {}
        if "root" in facts:
            above["root"] = self._roots.get(facts["root"], facts["root"])
        if facts["id"] in self._chord_bodies:
            above["parent"] = above["parent_id"] = "one of its parts"
        if "headers" in facts:
            # The same once more: they are beside it.
            above["headers"] = facts["headers"] | {"parent_id": None, "root_id": None}
        return self.clean(facts | above)

    def clean(self, value: Any) -> Any:
        """A value without what says nothing, ids replaced by names."""
        if isinstance(value, str):
            return _UUID.sub(lambda found: self.of(found.group()), value)
        if isinstance(value, dict):
            kept = {key: item for key, item in value.items() if key not in _INCIDENTAL}
            return {self.clean(key): self.clean(item) for key, item in kept.items()}
        if isinstance(value, (list, tuple)):
            return [self.clean(item) for item in value]
        return self.clean(_plain(value)) if isinstance(value, BaseException) else value


def _merged(sets: Iterable[set[str]]) -> list[set[str]]:
    """Sets that share a member made one: a part that is a chord's body has any root of its own."""
    merged: list[set[str]] = []
    for members in sets:
        touched = [one for one in merged if one & members]
        merged = [one for one in merged if not one & members]
        merged.append(members.union(*touched))
    return merged


def differences(plain: Any, guarded: Any, where: str = "") -> Iterator[str]:
    """Each place where two observations are not the same."""
    if isinstance(plain, dict) and isinstance(guarded, dict) and plain.keys() == guarded.keys():
        for key, value in plain.items():
            yield from differences(value, guarded[key], f"{where}/{key}")
    elif isinstance(plain, list) and isinstance(guarded, list) and len(plain) == len(guarded):
        for number, pair in enumerate(zip(plain, guarded, strict=True)):
            yield from differences(*pair, f"{where}/{number}")
    elif plain != guarded:
        yield f"{where}: {plain!r} has become {guarded!r}"


def _sorted(values: list[Any]) -> list[Any]:
    return sorted(values, key=repr)


def _order(entries: list[Entry], bodies: list[dict[str, Any]]) -> list[Any] | None:
    """In which order the bodies ran, where each waited for the one before."""
    callers: dict[str | None, set[str | None]] = {}
    for entry in entries:
        if entry["event"] == "body":
            callers.setdefault(entry["parent"], set()).add(entry["id"])
    if any(len(called) > 1 for called in callers.values()):
        return None
    return [(body["name"], body["values"]) for body in bodies]


def _plain(value: Any) -> Any:
    return f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else value


def _outcome(sent: Any) -> Any:
    """What came out in the end, as a caller gets it."""
    if isinstance(sent, list):
        return [_outcome(each) for each in sent]
    if isinstance(sent, ResultSet):
        return [_outcome(each) for each in sent.results]
    if isinstance(sent, EagerResult) or (isinstance(sent, AsyncResult) and sent.ready()):
        return Names([]).clean(_plain(sent.get(timeout=10, propagate=False)))
    return sent.state if isinstance(sent, AsyncResult) else sent


def _seen(sent: Any, *, above: bool = True) -> Any:
    """A result as its methods show it, with what stands above it and what hangs below."""
    if isinstance(sent, list):
        return [_seen(each) for each in sent]
    if not isinstance(sent, (AsyncResult, ResultSet)):
        return sent
    shown: dict[str, Any] = {"type": type(sent).__name__, "ready": sent.ready()}
    shown["failed"], shown["successful"] = sent.failed(), sent.successful()
    if isinstance(sent, ResultSet):
        shown["completed"] = sent.completed_count()
        shown["results"] = [_seen(each, above=False) for each in sent.results]
        if sent.ready():
            shown["joined"] = [_plain(each) for each in sent.join(timeout=10, propagate=False)]
    else:
        shown.update(id=sent.id, state=sent.state, result=_plain(sent.result))
        shown["last line"] = (sent.traceback or "").strip().rpartition("\n")[2]
        if not isinstance(sent, EagerResult):
            shown["children"] = [_seen(each, above=False) for each in sent.children or ()]
            shown["args"], shown["kwargs"], shown["name"] = sent.args, sent.kwargs, sent.name
    if above and isinstance(sent, (AsyncResult, GroupResult)) and not isinstance(sent, EagerResult):
        shown["above"] = _seen(sent.parent)
        shown["tuple"] = sent.as_tuple()
    return shown


def _ends(entries: list[Entry], names: Names) -> list[Any]:
    """How each delivery left the worker, and which messages it dropped."""
    ends = [
        (names.of(entry["id"]), entry["retries"], entry["state"])
        for entry in entries
        if entry["event"] == "finished"
    ]
    dropped = {
        (names.of(entry["id"]), entry["terminated"], entry["expired"])
        for entry in entries
        if entry["event"] == "revoked"
    }
    return _sorted([*ends, *dropped])
