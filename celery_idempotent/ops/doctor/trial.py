"""A trial run: a whole life of a key of the doctor's own, with all that a worker sends for it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

import redis.exceptions as errors
from redis.exceptions import AskError

from celery_idempotent.core.keys import CallKey, Owner, record_key
from celery_idempotent.core.record import Record, State
from celery_idempotent.core.slip import Slip
from celery_idempotent.core.verdicts import Claim, Note, Renewal, Resolve, Settle
from celery_idempotent.errors import RecordCorrupt, StoreError
from celery_idempotent.ops.doctor.findings import ERROR, WARNING, Finding
from celery_idempotent.ops.doctor.rights import (
    CLUSTER_COMMANDS,
    OPERATOR_COMMANDS,
    WORKER_COMMANDS,
    rule_of,
)
from celery_idempotent.run import process
from celery_idempotent.settings import Environment
from celery_idempotent.stores.base import Store
from celery_idempotent.stores.journal import ListedRuns

#: The namespace of the keys that are tried.
TRIAL_NAMESPACE: Final = "celery_idempotent.doctor"

_LEASE_MS: Final = 30_000
#: For how long what a trial wrote may stay: forgotten keys keep their token.
_LEFTOVER_MS: Final = 1000
#: So many names are read to see whether all of them are on this server.
_NAMES_READ: Final = 32


class Refusal(NamedTuple):
    """One operation that the store refused."""

    #: The operation, in words: "claim a key".
    operation: str
    error: StoreError
    #: Whether no task runs without it; else only operators miss it.
    is_vital: bool


def try_run(environment: Environment) -> Iterator[Finding]:
    """Claim, renew, settle and forget a key on each server of the store, and write the journal.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    store, prefix = environment.store, environment.prefix
    names = [_new_name(prefix)]
    servers = store.askable
    if servers is not None:
        missing = servers.missing_slots()
        if missing:
            yield _incomplete(environment, missing)
            return  # what a run meets then is what is said already
        names = servers.one_key_each(lambda: _new_name(prefix))
    refusals: dict[str, Refusal] = {}
    if servers is not None:
        load = (("load a script", servers.try_script),)
        refusals.update((it.operation, it) for it in _refused(load, is_vital=True))
    for name in names:
        for refusal in _try_life(store, name):
            refusals.setdefault(refusal.operation, refusal)
    for refusal in (*_try_looking(environment, names), *_try_journal(environment)):
        refusals.setdefault(refusal.operation, refusal)
    yield from told_of_refusals(environment, list(refusals.values()))


def _new_name(prefix: str) -> str:
    return record_key(prefix, CallKey(TRIAL_NAMESPACE, os.urandom(8).hex(), "", b"", False))


def _try_life(store: Store, name: str) -> Iterator[Refusal]:
    """Send all that workers send for one key, in the order of a run's life."""
    owner, other = Owner(f"doctor-{os.urandom(4).hex()}"), Owner("doctor-duplicate")
    slip = owner.slip_key(name)
    held = Record(State.RUNNING, 0, 0, 0, 0, owner.pack(), process.packed, os.urandom(8))

    def claim(owner: Owner = owner) -> None:
        nonlocal held
        asked = held._replace(owner=owner.pack(), token=0, nonce=os.urandom(8))
        verdict = store.claim(
            name, Claim(asked, _LEASE_MS, _LEASE_MS, slip_key=owner.slip_key(name))
        )
        held = asked._replace(token=getattr(verdict, "token", held.token))

    def renewal() -> Renewal:
        return Renewal(name, held, _LEASE_MS, _LEASE_MS, slip)

    def renew() -> None:
        for answer in store.renew([renewal()]):
            if isinstance(answer, StoreError):
                raise answer

    def settle(state: State) -> None:
        told = Slip(answered=True, token=held.token) if state is State.SUCCEEDED else None
        settled = held._replace(state=state, has_steps=True)
        event = Settle(settled, 0, _LEASE_MS, told, _LEFTOVER_MS, slip, drops_steps_of="trial")
        store.settle(name, event)

    def note() -> None:
        store.note(name, Note(slip, Slip(answered=True), held.token, _LEFTOVER_MS))

    operations: tuple[tuple[str, Callable[[], object]], ...] = (
        ("ask whether the store is there", store.ping),
        ("claim a key", claim),
        ("give up a claim", lambda: store.abandon(name, held, _LEASE_MS)),
        ("claim a key", claim),
        ("answer a duplicate", lambda: store.claim(name, _claim_of(held, other))),
        ("renew a lease", renew),
        ("record a step", lambda: store.step(renewal(), "trial", b"")),
        ("leave an outcome unknown", lambda: settle(State.UNKNOWN)),
        ("record a step", lambda: store.step(renewal(), "trial", b"")),
        (
            "resolve an unknown outcome",
            lambda: store.resolve(name, Resolve(State.RELEASED, b"", _LEASE_MS)),
        ),
        ("claim a key", claim),
        ("read the steps", lambda: store.steps(name)),
        ("record an outcome", lambda: settle(State.SUCCEEDED)),
        ("note that a call was answered", note),
        ("read an answer", lambda: store.slip(slip)),
        ("read a record", lambda: store.peek(name)),
        ("end a dead process's lease", lambda: _end_lease(store, name, held, slip)),
        ("forget a key", lambda: store.forget(name, _LEFTOVER_MS)),
    )
    yield from _refused(operations, is_vital=True)


def _claim_of(held: Record, owner: Owner) -> Claim:
    candidate = held._replace(owner=owner.pack(), token=0, nonce=os.urandom(8))
    return Claim(candidate, _LEASE_MS, _LEASE_MS)


def _end_lease(store: Store, name: str, held: Record, slip: str) -> None:
    store.end_lease(name, held.owner, held.process, slip)


def _try_looking(environment: Environment, names: list[str]) -> Iterator[Refusal]:
    """Send what lists, pages and ``show`` send."""
    store, prefix = environment.store, environment.prefix
    asked = [*names, *(_new_name(prefix) for _ in range(_NAMES_READ))]

    def read_many() -> None:
        for answer in store.get_many(asked):
            if isinstance(answer, StoreError):
                raise answer

    def scan() -> None:
        next(store.scan(f"{TRIAL_NAMESPACE}:*"), None)

    def list_unknown() -> None:
        if store.askable is not None and names:
            store.askable.try_listing(names[0])

    yield from _refused(
        (
            ("list an unknown outcome", list_unknown),
            ("read the list of unknown outcomes", lambda: store.unknown(prefix)),
            ("read a list of records", read_many),
            ("read how long a record lives", lambda: store.ttl(names[0]) if names else None),
            ("go through all records", scan),
            *((("hear that a run is over", lambda: _listen(store, names)),) if names else ()),
        ),
        is_vital=False,
    )


def _listen(store: Store, names: list[str]) -> None:
    """Subscribe as a worker's parent process does where calls wait."""
    subscription = store.subscribe()
    if subscription is None:
        return
    try:
        subscription.follow(names)
        subscription.unfollow(names)
        # It is confirmed behind the answer to what came before it, which nobody waits for.
        subscription.follow(names)
    finally:
        subscription.close()


def _try_journal(environment: Environment) -> Iterator[Refusal]:
    """Write and read the journal, where it is on."""
    journals, journal = environment.store.journals, environment.journal
    if not journal.most or journals is None:
        return

    def list_runs() -> None:
        if environment.store.run_lists is not None:
            ended = ListedRuns(ended=[(TRIAL_NAMESPACE, 0)])
            environment.store.run_lists.append_with_runs(journal.name, [], journal.most, ended)
            environment.store.held(environment.prefix)

    yield from _refused(
        (
            # No reader takes this for an event.
            (
                "write the journal",
                lambda: journals.append_events(journal.name, [b"{}"], journal.most),
            ),
            ("list what is under way", list_runs),
            ("read the journal", lambda: journals.read_events(journal.name, None, 1)),
        ),
        is_vital=False,
    )


#: What scripts send for an operation beside the usual GET and SET: a server that lacks one of
#: these does not name it.
_SENT_BY: Final = {
    "claim a key": "TIME, EXISTS, GET or SET",
    "record a step": "HSET, DEL, PTTL or PEXPIRE",
    "read the steps": "HGETALL",
    "record an outcome": "HKEYS or HDEL",
    "forget a key": "TYPE or DEL",
    "list an unknown outcome": "ZADD, ZREMRANGEBYSCORE or PEXPIRE",
    "write the journal": "XADD, XTRIM or PEXPIRE",
}


def _refused(
    operations: tuple[tuple[str, Callable[[], object]], ...], *, is_vital: bool
) -> Iterator[Refusal]:
    for name, do in operations:
        try:
            do()
        except StoreError as exc:
            if not _is_answer(exc):
                raise
            yield Refusal(name, exc, is_vital)


def _is_answer(error: StoreError) -> bool:
    """Whether the store answered, if only with an error: then the next operation is worth a try."""
    return not isinstance(error.__cause__, (OSError, errors.ConnectionError, errors.TimeoutError))


# --- what a refusal means ------------------------------------------------------------------------


def told_of_refusals(environment: Environment, refusals: list[Refusal]) -> Iterator[Finding]:
    """Turn refusals into findings: one a cause, with all operations that it stops."""
    causes: dict[str, list[Refusal]] = {}
    for refusal in refusals:
        causes.setdefault(_kind_of(environment, refusal), []).append(refusal)
    for kind, refused in causes.items():
        refused.sort(key=lambda refusal: not refusal.is_vital)
        yield _MAKE.get(kind, _refuses)(environment, refused, refused[0].is_vital)


def _kind_of(environment: Environment, refusal: Refusal) -> str:
    cause = refusal.error.__cause__
    text = str(cause or refusal.error)
    if isinstance(refusal.error, RecordCorrupt) and refusal.operation.endswith("the journal"):
        return "journal-name-taken"
    if isinstance(cause, AskError):  # MovedError is one
        return "cluster-node"
    kind = next((kind for kind, mark in _MARKS if mark in text), "refuses")
    if kind == "cluster-incomplete" and "+cluster://" not in environment.where:
        return "cluster-node"
    return kind


_MARKS: Final = (
    ("no-permission", "no permissions"),
    ("no-permission", "No permissions"),
    ("no-permission", "NOPERM"),
    ("replica", "READONLY"),
    ("replica", "read only replica"),
    ("missing-command", "unknown command"),
    ("missing-command", "Unknown Redis command"),
    ("missing-command", "Unknown Valkey command"),
    ("missing-command", "Unknown command"),
    ("missing-command", "Unknown Server command"),
    ("full", "OOM"),
    ("full", "command not allowed when used memory"),
    ("too-few-replicas", "idempotency_wait_replicas"),
    ("cluster-incomplete", "has no node for slot"),
    ("cluster-incomplete", "CLUSTERDOWN"),
    ("cluster-incomplete", "Hash slot not served"),
)


def _told(refused: list[Refusal]) -> str:
    """Tell which operations were refused, and how the store answered the first of them."""
    first = refused[0]
    why = first.error.__cause__ or first.error
    told = f"a check could not {first.operation} ({getattr(why, 'orig', None) or why})"
    more = [f"{it.operation}{_command_of(it)}" for it in refused[1:]]
    return f"{told}; nor could it {', '.join(more)}" if more else told


def _command_of(refusal: Refusal) -> str:
    """Return the command that an answer names, in parentheses."""
    found = re.search(r"'([a-zA-Z|]+)'", str(refusal.error.__cause__ or ""))
    return f" ({found[1]})" if found else ""


_WAITS: Final = "Tasks wait for as long as that is so: none of them runs."
_BLIND: Final = (
    "Tasks run, but lists, `why` and Flower show nothing, or not all, or calls that wait are "
    "answered late."
)


def _no_permission(environment: Environment, refused: list[Refusal], is_vital: bool) -> Finding:
    user = _user_of(environment.where)
    cluster = "+cluster://" in environment.where
    commands = [*WORKER_COMMANDS, *(CLUSTER_COMMANDS if cluster else ())]
    if not is_vital:
        commands += OPERATOR_COMMANDS
    return Finding(
        "no-permission" if is_vital else "no-permission-to-look",
        ERROR if is_vital else WARNING,
        _told(refused),
        _WAITS if is_vital else _BLIND,
        "Give the user these rights, at each server" if cluster else "Give the user these rights",
        f"ACL SETUSER {user} {rule_of(environment.prefix, commands)}",
    )


def _user_of(where: str) -> str:
    try:
        return unquote(urlsplit(where.partition(",")[0]).username or "") or "default"
    except ValueError:
        return "default"


def _replica(environment: Environment, refused: list[Refusal], is_vital: bool) -> Finding:
    return Finding(
        "replica",
        ERROR,
        _told(refused),
        "The server is a replica, which takes no writes: every task waits.",
        "Name the master in idempotency_store_url, or let Sentinel name it",
        "sentinel://host:26379 with idempotency_store_options = {'master_name': '...'}",
    )


def _cluster_node(environment: Environment, refused: list[Refusal], is_vital: bool) -> Finding:
    return cluster_node(environment.where)


def cluster_node(where: str) -> Finding:
    """Return the finding of a cluster's node that is named as a server of its own."""
    _, mark, rest = where.partition("://")
    place = rest.partition("/")[0]
    return Finding(
        "cluster-node",
        ERROR,
        f"the server at {where} is one node of a cluster, and is named as if it were alone",
        "Keys that are on other nodes can't be reached: their tasks wait for ever, the others run.",
        "Name it as a cluster",
        f'idempotency_store_url = "redis+cluster{mark}{place}"',
    )


def _missing_command(environment: Environment, refused: list[Refusal], is_vital: bool) -> Finding:
    name = next((told for told in map(_command_of, refused) if told), "").strip(" ()").upper()
    if not name:  # in a script it is not told
        name = _SENT_BY.get(refused[0].operation, "the command")
    return Finding(
        "missing-command",
        ERROR if is_vital else WARNING,
        f"{_told(refused)}: the server has no command {name}",
        "It was configured without it, or with another name for it. "
        + (_WAITS if is_vital else _BLIND),
        "Remove from the server's configuration, and use an ACL instead",
        f"rename-command {name} ...",
    )


def _full(environment: Environment, refused: list[Refusal], is_vital: bool) -> Finding:
    return Finding(
        "full",
        ERROR,
        _told(refused),
        "The server has no memory left, and takes no writes. " + _WAITS,
        "Give it more, or keep outcomes for a shorter time (idempotency_ttl)",
        "maxmemory 1gb",
    )


def _too_few_replicas(environment: Environment, refused: list[Refusal], is_vital: bool) -> Finding:
    return Finding(
        "too-few-replicas",
        WARNING,
        _told(refused),
        "The end of each run is waited for in vain, and told again and again, as in an outage.",
        "Connect as many replicas to the server, or set",
        "idempotency_wait_replicas = 0",
    )


def _refuses(environment: Environment, refused: list[Refusal], is_vital: bool) -> Finding:
    return Finding(
        "trial-refused",
        ERROR if is_vital else WARNING,
        _told(refused),
        _WAITS if is_vital else _BLIND,
        "Set right what it refuses, or idempotency_store_url; it answered",
        str(refused[0].error),
    )


def _incomplete(environment: Environment, missing: int) -> Finding:
    return Finding(
        "cluster-incomplete",
        ERROR,
        f"the cluster at {environment.where} has no node for {missing} of its 16384 slots",
        "Keys in those slots can't be reached: their tasks wait for as long as that is so.",
        "Give each slot a node",
        "redis-cli --cluster fix host:port",
    )


def _incomplete_now(environment: Environment, refused: list[Refusal], is_vital: bool) -> Finding:
    return Finding(
        "cluster-incomplete",
        ERROR,
        _told(refused),
        "A part of the cluster is away: the tasks whose keys are there wait.",
        "Give each slot a node that lives",
        "redis-cli --cluster check host:port",
    )


def _journal_taken(environment: Environment, refused: list[Refusal], is_vital: bool) -> Finding:
    return Finding(
        "journal-name-taken",
        WARNING,
        f"another program has the key {environment.journal.name}, where the journal should be",
        "Nothing is written to the journal: `why`, the duplicates of a record, and lists with the "
        "latest first know nothing.",
        "Rename that key, or choose another prefix for ours",
        'idempotency_key_prefix = "idempotent-shop"',
    )


_MAKE: Final[dict[str, Callable[[Environment, list[Refusal], bool], Finding]]] = {
    "no-permission": _no_permission,
    "replica": _replica,
    "cluster-node": _cluster_node,
    "missing-command": _missing_command,
    "full": _full,
    "too-few-replicas": _too_few_replicas,
    "cluster-incomplete": _incomplete_now,
    "journal-name-taken": _journal_taken,
}
