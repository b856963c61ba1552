"""Handles a request with an ``Idempotency-Key``, whichever framework it comes from.

A request is a delivery: it claims the record of its key, in the app's store beside those of the
tasks. It holds the record under a lease while the application works, and completes it with the
response.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from hashlib import blake2b
from inspect import signature
from typing import Any, Final

from celery import Celery
from kombu.utils.uuid import uuid

from celery_idempotent.core.canonical import visible
from celery_idempotent.core.keys import CallKey, Owner, record_key
from celery_idempotent.core.options import Options
from celery_idempotent.core.record import Label, State
from celery_idempotent.core.verdicts import (
    Busy,
    ClaimVerdict,
    Lost,
    Mismatch,
    Recorded,
    Replay,
    Unknown,
)
from celery_idempotent.delivery.results import Codec
from celery_idempotent.errors import (
    ConfigurationError,
    RecordTooNew,
    StoreError,
    StoreUnavailable,
)
from celery_idempotent.http.field import BadField, read_field
from celery_idempotent.http.messages import NAMESPACE, NO_BODY, Request, Response, pack, unpack
from celery_idempotent.http.problems import Problems
from celery_idempotent.publishing import use_idempotency_key
from celery_idempotent.run.claim import claim_key
from celery_idempotent.run.claimant import Claimant, Ending, Terms
from celery_idempotent.run.context import RunContext
from celery_idempotent.run.journal import Subject
from celery_idempotent.run.run import Run
from celery_idempotent.run.steps import Steps
from celery_idempotent.run.telling import Telling, ToldRun
from celery_idempotent.run.transaction import PlainWork
from celery_idempotent.settings import Environment, environment_of
from celery_idempotent.stores.base import NotCommitted
from celery_idempotent.stores.outage import Outage

log = logging.getLogger("celery_idempotent")

_TASK: Final = "http"
_PATIENCE_S: Final = 1.0
_REPLAYED: Final = ("Idempotency-Replayed", "true")
#: With these nothing was done, and the same request may succeed later or at another place.
_TRY_AGAIN: Final = frozenset((307, 308, 401, 403, 407, 408, 409, 421, 423, 425, 429))
#: How long a store that did not answer is left alone, in seconds; then one request asks it.
_AWAY_S: Final = 1.0
#: How much of a body is read at a time, in bytes.
_CHUNK: Final = 64 * 1024


def keeps_by_default(status: int) -> bool:
    """Whether a response with this status is kept as the answer to the key.

    Other responses free the key: 5xx, and those after which nothing was done and the same request
    may succeed later or at the place that they name (307, 308, 401, 403, 407, 408, 409, 421, 423,
    425, 429).
    """
    return status < 500 and status not in _TRY_AGAIN


def check_function(value: object, name: str, of: str) -> None:
    """Check that an argument is a function of one thing.

    Raises:
        ConfigurationError: it can't be called, or not with one argument.
    """
    if callable(value):
        try:
            signature(value).bind(None)
        except TypeError:
            pass
        except ValueError:
            return  # a builtin without a signature
        else:
            return
    raise ConfigurationError(f"{name} is {value!r}, and must be a function of {of}")


class Edge:
    """The keys of an application's requests.

    Args:
        app: the Celery app, whose store, times and limits are used (``idempotency_ttl``,
            ``idempotency_lease``, ``idempotency_max_interruptions``,
            ``idempotency_max_result_size``, ``idempotency_on_store_error``).
        service: the name of this service; without it the Celery app's name is used. Two services
            with one store need two names.
        methods: the methods of requests that may have a key.
        keeps: whether a response with this status is kept.
        ttl: how long a response is kept, in seconds; without it the app's ``idempotency_ttl``.
        max_request_size: the largest body, in bytes, that is read into memory to be compared.
        docs_url: the page of your API's documentation about the key.

    Raises:
        ConfigurationError: an argument is wrong, or there is no name for the service.
    """

    def __init__(
        self,
        app: Any,
        *,
        service: str | None = None,
        methods: Collection[str] = ("POST", "PATCH"),
        keeps: Callable[[int], bool] = keeps_by_default,
        ttl: float | None = None,
        max_request_size: int = 16 * 1024 * 1024,
        docs_url: str | None = None,
    ) -> None:
        if not isinstance(app, Celery):
            raise ConfigurationError(f"celery is {app!r}, and must be the Celery app")
        if isinstance(methods, str):
            raise ConfigurationError(
                f"methods is {methods!r}, and must be a list such as [{methods!r}]"
            )
        if ttl is not None and not (type(ttl) in (int, float) and 0 < ttl < float("inf")):
            raise ConfigurationError(f"ttl is {ttl!r}, and must be a number of seconds above 0")
        check_function(keeps, "keeps", "a status, such as 201, that returns True or False")
        if type(max_request_size) is not int or max_request_size < 0:
            raise ConfigurationError(
                f"max_request_size is {max_request_size!r}, and must be a number of bytes"
            )
        for name, value in (("service", service), ("docs_url", docs_url)):
            if not isinstance(value, str | None):
                raise ConfigurationError(f"{name} is {value!r}, and must be a text")
        service = service or app.main
        if not service:
            raise ConfigurationError(
                "the HTTP edge has no name for this service, so that another service with the same "
                "store would answer its requests: set service='...', or name the Celery app"
            )
        self._app = app
        self._service: str = service
        self._outage = Outage("the store", _AWAY_S)
        self._methods = frozenset(method.upper() for method in methods)
        self._keeps = keeps
        self._ttl = ttl
        self.max_request_size = max_request_size
        self.problems = Problems(docs_url)

    @cached_property
    def _options(self) -> Options:
        options = Options.from_lookup(self._app.conf.get, "the HTTP edge")
        options = options if self._ttl is None else replace(options, ttl=self._ttl)
        if not options.ttl:
            raise ConfigurationError(
                "the HTTP edge: idempotency_ttl is 0 for this app, so that no answer would be "
                "kept: give the middleware a ttl of its own, in seconds"
            )
        return options

    @property
    def max_response_size(self) -> int:
        """The largest response that is kept, in bytes."""
        return self._options.max_result_size

    def covers(self, method: str) -> bool:
        """Whether a request with this method may have a key."""
        return method.upper() in self._methods

    def key_of(self, values: Sequence[str], required: bool) -> str | Response | None:
        """Return the key in the header field, or the answer to a request without a valid one.

        ``None``: there is no key, and none is required.
        """
        try:
            key = read_field(values)
        except BadField as exc:
            return self.problems.malformed(str(exc))
        return self.problems.missing() if key is None and required else key

    def is_too_long(self, length: str | None) -> bool:
        """Whether a request announces too long a body; ``length`` is its Content-Length."""
        return length is not None and length.isdecimal() and int(length) > self.max_request_size

    def read_body(
        self, read: Callable[[int], bytes], most: int, length: str | None
    ) -> bytes | Response:
        """Read a body, or return the answer to a request whose body is too long or incomplete.

        Args:
            read: reads up to so many bytes, and none at the end.
            most: how many bytes are read at most.
            length: the request's Content-Length.
        """
        body = bytearray()
        try:
            while len(body) < most and (chunk := read(min(most - len(body), _CHUNK))):
                body += chunk
        except OSError:
            return self.problems.incomplete()  # some servers raise it where the client went away
        return self.check_body(length, len(body)) or bytes(body)

    def check_body(self, length: str | None, got: int) -> Response | None:
        """Return the answer to a request whose body is too long or incomplete; else nothing.

        Args:
            length: its Content-Length.
            got: how much of it was read, in bytes.
        """
        if self.is_too_long(length) or got > self.max_request_size:
            return self.problems.too_large(self.max_request_size)
        if length is not None and length.isdecimal() and got < int(length):
            return self.problems.incomplete()
        return None

    def begin(self, request: Request, identity: str, key: str) -> Response | HeldRequest:
        """Claim the key of a request; return its answer, or the held request for the application.

        Args:
            identity: the caller that the key belongs to; another caller's key is never the same.

        Raises:
            TypeError: the identity is not a text, or is empty.
        """
        if not isinstance(identity, str) or not identity:
            what = type(identity).__name__ if identity != "" else "an empty text"
            raise TypeError(
                f"identity returned {what}, and must return a text that is "
                "different for each caller, or None for a request that the application will refuse"
            )
        options = self._options
        digest = _digest(self._service, identity, request.method, request.path, key)
        context = f"{key[:100]}@{digest}"
        if options.mode != "enforce":
            return HeldRequest(self, self._app, context)
        environment = environment_of(self._app)
        claimant, call_key = self._call(environment, request, digest, key)
        telling = Telling(
            environment.journal,
            Subject(claimant.key, _TASK, _id_of(claimant.owner), call_key.label),
            call_key.readable,
        )
        began = time.perf_counter()
        try:
            verdict = self._claim(claimant, telling)
        except (StoreUnavailable, RecordTooNew) as exc:
            runs = options.on_store_error == "run" and isinstance(exc, StoreUnavailable)
            telling.tell("store away", reason=str(exc), action="run" if runs else "raise")
            if runs:
                log.error("%s runs unprotected: %s", claimant.key, exc)
                return HeldRequest(self, self._app, context)
            log.warning("%s is refused: %s", claimant.key, exc)
            return self.problems.store_away()
        except StoreError:
            log.exception("%s is refused", claimant.key)
            return self.problems.unreadable()
        telling.measure("claim", began)
        if not isinstance(verdict, Run):
            return self._answer(telling, verdict)
        held = HeldRequest(self, self._app, context, call_key, ToldRun(telling, verdict))
        try:
            held.begin()
        except BaseException as exc:
            held.fail(exc)
            if not isinstance(exc, StoreError):
                raise
            log.exception("%s is refused: a step can't be read", claimant.key)
            return self.problems.unreadable()
        return held

    def _claim(self, claimant: Claimant, telling: Telling) -> ClaimVerdict | Run:
        """Claim the key; while the store is away, one request at a time asks for it.

        Raises:
            StoreError: as :func:`.claim_key`; at once if the store was away a moment ago.
        """
        outage = self._outage

        def ask() -> ClaimVerdict | Run:
            try:
                verdict = claim_key(claimant, _PATIENCE_S, telling.lost)
            except StoreUnavailable:
                outage.begins()
                raise
            except StoreError:
                outage.is_away = False  # it answered
                raise
            outage.is_away = False
            return verdict

        return outage.one_at_a_time(ask) if outage.is_away else ask()

    def _call(
        self, environment: Environment, request: Request, digest: str, key: str
    ) -> tuple[Claimant, CallKey]:
        options = self._options
        label = "" if options.redact_key else visible(f"{request.method} {request.path} {key}")
        call_key = CallKey(NAMESPACE, f"~{digest}", label[:200], request.fingerprint(), True)
        # Each request is a call of its own: a repeated one is a duplicate of the first.
        unknown = options.on_interrupted == "unknown"
        terms = Terms(
            environment.store,
            lease_s=options.lease,
            ttl_s=options.ttl,
            horizon_s=environment.horizon,
            max_interruptions=0 if unknown else options.max_interruptions,
            max_compensations=0,
        )
        claimant = Claimant(
            terms=terms,
            key=record_key(environment.prefix, call_key),
            owner=Owner(uuid()).pack(),
            retries=0,
            fingerprint=call_key.fingerprint,
            checked=True,
            label=Label(_TASK, call_key.label).text(),
        )
        return claimant, call_key

    def _answer(self, telling: Telling, verdict: ClaimVerdict) -> Response:
        if isinstance(verdict, Replay):
            telling.tell("deduplicated", verdict.record)
            return self.replay(verdict.record.outcome)
        if isinstance(verdict, Mismatch):
            telling.tell("mismatch", verdict.record)
            return self.problems.mismatch()
        if isinstance(verdict, Unknown):
            interruptions = verdict.record.interruptions
            telling.tell("unknown", verdict.record, interruptions=interruptions)
            return self.problems.unknown()
        assert isinstance(verdict, Busy), verdict
        return self.problems.running()

    def replay(self, packed: bytes) -> Response:
        """Return the first response again."""
        try:
            first = unpack(packed)
        except StoreError:
            log.exception("a stored response can't be read")
            return self.problems.unreadable()
        if first.dropped:
            return self.problems.not_kept(first)
        headers = [*first.headers, _REPLAYED]
        if first.status not in NO_BODY:
            headers.append(("Content-Length", str(len(first.body))))
        return Response(first.status, headers, first.body)

    def keeps(self, status: int) -> bool:
        """Whether a response with this status is kept."""
        return self._keeps(status)


class HeldRequest:
    """A request that holds its key while it is answered; without a run it is unprotected."""

    def __init__(
        self,
        edge: Edge,
        app: Any,
        context: str,
        call_key: CallKey | None = None,
        told: ToldRun | None = None,
    ) -> None:
        self._edge = edge
        self._context = context
        self._told = told
        run = None if told is None else told.run
        self._ended = False
        self._plain = PlainWork()
        self._steps = None
        if run is not None:
            self._steps = Steps(run, _Codec(app, edge.max_response_size))
        #: The same for the application as ``self.idempotency`` is for a task.
        self.run = _RequestContext(
            key=context,
            identity=record_key("effect", call_key) if call_key else context,
            owner_id=None if run is None else _id_of(run.claimant.owner),
            retries=0,
            run=run,
            steps=self._steps,
            why="the request is not protected",
            store=lambda: environment_of(app).store,
        )

    @property
    def most(self) -> int:
        """The largest response that is kept, in bytes."""
        return self._edge.max_response_size

    def begin(self) -> None:
        """Take up the steps that an earlier run of the request has finished.

        Raises:
            RecordCorrupt: one can't be read.
        """
        if self._told is not None and self._steps is not None:
            self._steps.take(self._told.run.steps)

    @contextmanager
    def working(self) -> Iterator[None]:
        """The application works in this context: its tasks get keys derived from this key."""
        with use_idempotency_key(self._context), self._plain.opens():
            yield

    def finish(self, response: Response) -> Response:
        """Record the response; return the one to send: this one, or the key's recorded one.

        Call it before the end of the response is sent: a client that has received the end gets the
        same response again.

        Raises:
            Exception: the database refused what was written in the request's session.
        """
        if self._ended:
            return response
        if not (response.is_sendable and self._edge.keeps(response.status)):
            self.release()
            return response
        try:
            if self._told is None:
                self._ended = True
                self._plain.commit()
                return response
            packed = pack(response, self.most)
            verdict = self._end(self._told, Ending(State.SUCCEEDED, packed))
        except NotCommitted as exc:
            name = "a request" if self._told is None else self._told.held[0]
            log.warning("%s was not committed and has to be sent again: %s", name, exc)
            if exc.sure:
                self._ended = False
                self.release()
            return self._edge.problems.not_committed()
        except BaseException as exc:
            self._ended = False
            self.fail(exc)
            raise
        if not isinstance(verdict, Lost):
            return response
        record = verdict.record
        if record.state is State.SUCCEEDED:
            return self._edge.replay(record.outcome)
        if record.state is not State.RELEASED:
            return self._edge.problems.running()
        # The key was forgotten meanwhile; this is still the answer to its own request.
        undone = self._told.run.transaction.undone
        return self._edge.problems.not_committed() if undone else response

    def fail(self, exc: BaseException) -> None:
        """Free the key if the application failed; interrupt the run if it was cut off."""
        if isinstance(exc, Exception):
            self.release()
        else:
            self.interrupt()

    def release(self) -> None:
        """Free the key: the request failed, and may be sent again."""
        self._give_up(Ending(State.RELEASED))

    def interrupt(self) -> None:
        """End the lease at once: the application was cut off, and what it did is not known."""
        self._give_up(Ending(State.RUNNING))

    def _give_up(self, ending: Ending) -> None:
        if self._ended:
            return
        self._ended = True
        if self._told is None:
            self._plain.rollback()
        else:
            self._end(self._told, ending)

    def _end(self, run: ToldRun, ending: Ending) -> Recorded | Lost | None:
        self._ended = True
        try:
            return run.end(ending)
        finally:
            run.let_go()


class _RequestContext(RunContext):
    """What a request can ask: its key is its client's, and stays taken until it is answered."""

    def release(self) -> None:
        raise ConfigurationError(
            "self.idempotency.release() is for tasks. In a request its key is the client's, whose "
            "retry would be carried out beside it, and find no answer: publish a task, and release "
            "the task's key there"
        )


class _Codec(Codec):
    """Encodes the steps of a request; they can't be undone, since it may always be sent again."""

    def pack_signature(self, undo: Any) -> bytes:
        raise ConfigurationError(
            "compensate= is for the steps of a task: a request that fails may be sent again, and "
            "continues after its last step; publish a task that does these steps"
        )


def _digest(*parts: str) -> str:
    text = "".join(f"{len(part)}:{part}" for part in parts).encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=16, person=b"idem-http").hexdigest()


def _id_of(packed: bytes) -> str | None:
    owner = Owner.unpack(packed)
    return None if owner is None else owner.task_id
