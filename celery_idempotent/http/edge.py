"""What becomes of a request with an ``Idempotency-Key``, in no framework's terms.

A request is a delivery: it claims its key's record, which lives in the app's store beside those of
the tasks, holds it by a lease while the application works, and completes it with the response.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from hashlib import blake2b
from typing import Any, Final

from kombu.utils.uuid import uuid

from celery_idempotent.core.canonical import visible
from celery_idempotent.core.keys import CallKey, record_key
from celery_idempotent.core.options import Options
from celery_idempotent.core.record import Owner, State
from celery_idempotent.core.transitions import (
    Busy,
    ClaimVerdict,
    Lost,
    Mismatch,
    Replay,
    Unknown,
)
from celery_idempotent.errors import (
    ConfigurationError,
    RecordTooNew,
    StoreError,
    StoreUnavailable,
)
from celery_idempotent.http.field import BadField, read_field
from celery_idempotent.http.messages import Request, Response, pack, unpack
from celery_idempotent.http.problems import Problems
from celery_idempotent.publishing import use_idempotency_key
from celery_idempotent.run.call import Call, Ending, Terms
from celery_idempotent.run.context import RunContext
from celery_idempotent.run.journal import Event
from celery_idempotent.run.runner import Run, ask
from celery_idempotent.settings import Environment, environment_of

__all__ = ["Edge", "Held", "keeps_by_default"]

log = logging.getLogger("celery_idempotent")

#: No task of a user's has a name like this.
_NAMESPACE: Final = "celery.http"
_TASK: Final = "http"
_PATIENCE_S: Final = 1.0
_REPLAYED: Final = ("Idempotency-Replayed", "true")
_NO_BODY: Final = (204, 304)
#: Statuses that say nothing was done, and that the same request may do better later.
_TRY_AGAIN: Final = frozenset((401, 403, 407, 408, 409, 421, 423, 425, 429))


def keeps_by_default(status: int) -> bool:
    """Whether a response of this status is the key's answer from now on.

    Not so are 5xx, and those by which nothing was done and the same request may succeed later
    (401, 403, 407, 408, 409, 421, 423, 425, 429): they free the key.
    """
    return status < 500 and status not in _TRY_AGAIN


class Edge:
    """The keys of an application's requests.

    Args:
        app: the Celery app, whose store, times and limits are used (``idempotency_ttl``,
            ``idempotency_lease``, ``idempotency_max_interruptions``,
            ``idempotency_max_result_size``, ``idempotency_on_store_error``).
        methods: which requests may have a key.
        keeps: which statuses are kept.
        max_request_size: the largest body, in bytes, that is read into memory to be compared.
        docs_url: where your API's documentation tells of the key.
    """

    def __init__(
        self,
        app: Any,
        *,
        methods: Collection[str] = ("POST", "PATCH"),
        keeps: Callable[[int], bool] = keeps_by_default,
        max_request_size: int = 16 * 1024 * 1024,
        docs_url: str | None = None,
    ) -> None:
        if isinstance(methods, str):
            raise ConfigurationError(f"methods is {methods!r}, and must be a list of methods")
        self._app = app
        self._methods = frozenset(method.upper() for method in methods)
        self._keeps = keeps
        self.max_request_size = max_request_size
        self.problems = Problems(docs_url)

    @cached_property
    def _options(self) -> Options:
        return Options.from_lookup(self._app.conf.get, "the HTTP edge")

    @property
    def max_response_size(self) -> int:
        """The largest response that is kept, in bytes."""
        return self._options.max_result_size

    def covers(self, method: str) -> bool:
        """Whether a request with this method may have a key."""
        return method.upper() in self._methods

    def key_of(self, values: Sequence[str], required: bool) -> str | Response | None:
        """Give the key in the header field; or the answer to a request without a good one.

        ``None``: there is none, and none is needed.
        """
        try:
            key = read_field(values)
        except BadField as exc:
            return self.problems.malformed(str(exc))
        return self.problems.missing() if key is None and required else key

    def begin(self, request: Request, identity: str, key: str) -> Response | Held:
        """Claim the key of a request: give what answers it, or what lets the application do that.

        Args:
            identity: whose key it is; nobody else's request ever meets it.

        Raises:
            TypeError: the identity is no text, or empty.
        """
        if not isinstance(identity, str) or not identity:
            raise TypeError(
                f"identity gave {type(identity).__name__}, and must give a text that tells callers "
                "apart, or None for a request that the application will refuse"
            )
        digest = _digest(identity, key)
        context = f"{key[:100]}@{digest}"
        if self._options.mode != "enforce":
            return Held(self, context)
        environment = environment_of(self._app)
        call, call_key = self._call(environment, request, digest, key)
        try:
            verdict = ask(call, _PATIENCE_S, lambda _: None)
        except (StoreUnavailable, RecordTooNew) as exc:
            if self._options.on_store_error == "run" and isinstance(exc, StoreUnavailable):
                log.error("%s runs unprotected: %s", call.key, exc)
                return Held(self, context)
            log.warning("%s is refused: %s", call.key, exc)
            return self.problems.store_away()
        except StoreError:
            log.exception("%s is refused", call.key)
            return self.problems.unreadable()
        if isinstance(verdict, Run):
            held = Held(self, context, environment, call_key, verdict)
            environment.journal.begin(held)
            return held
        return self._answer(environment, call, verdict)

    def _call(
        self, environment: Environment, request: Request, digest: str, key: str
    ) -> tuple[Call, CallKey]:
        options = self._options
        label = "" if options.redact_key else visible(f"{request.method} {request.path} {key}")
        call_key = CallKey(_NAMESPACE, f"~{digest}", label[:200], request.fingerprint(), True)
        # Each request is a call of its own: one that is sent again is another's duplicate.
        unknown = options.on_interrupted == "unknown"
        terms = Terms.of(
            environment.store,
            lease_s=options.lease,
            ttl_s=options.ttl,
            horizon_s=environment.horizon,
            max_interruptions=0 if unknown else options.max_interruptions,
            max_compensations=0,
        )
        call = Call(
            terms=terms,
            key=record_key(environment.prefix, call_key),
            note=None,
            owner=Owner(uuid()).pack(),
            retries=0,
            fingerprint=call_key.fingerprint,
            checked=True,
            label=f"{_TASK}\n{call_key.label}",
        )
        return call, call_key

    def _answer(self, environment: Environment, call: Call, verdict: ClaimVerdict) -> Response:
        task_id = _id_of(call.owner)
        if isinstance(verdict, Replay):
            record = verdict.record
            environment.journal.add(
                "deduplicated", call.key, _TASK, task_id, original=record.owner_id
            )
            return self.replay(record.outcome)
        if isinstance(verdict, Mismatch):
            original = verdict.record.owner_id
            environment.journal.add("mismatch", call.key, _TASK, task_id, original=original)
            return self.problems.mismatch()
        if isinstance(verdict, Unknown):
            return self.problems.unknown()
        assert isinstance(verdict, Busy), verdict
        return self.problems.running()

    def replay(self, packed: bytes) -> Response:
        """Give the first response again."""
        try:
            first = unpack(packed)
        except StoreError:
            log.exception("a response can't be given again")
            return self.problems.unreadable()
        if first.dropped:
            return self.problems.not_kept(first)
        headers = [*first.headers, _REPLAYED]
        if first.status not in _NO_BODY:
            headers.append(("Content-Length", str(len(first.body))))
        return Response(first.status, headers, first.body)

    def keeps(self, status: int) -> bool:
        """Whether a response of this status is kept."""
        return self._keeps(status)


class Held:
    """A key that is held for the request which is being answered; without a run, unprotected."""

    def __init__(
        self,
        edge: Edge,
        context: str,
        environment: Environment | None = None,
        call_key: CallKey | None = None,
        run: Run | None = None,
    ) -> None:
        self._edge = edge
        self._context = context
        self._environment = environment
        self._run = run
        self._ended = run is None
        self._began = time.monotonic()
        self._token = None if run is None else run.token
        #: What the application may ask of its own run, as tasks ask ``self.idempotency``.
        self.run = RunContext(
            key=context,
            identity=record_key("effect", call_key) if call_key else context,
            owner_id=None if run is None else _id_of(run.call.owner),
            retries=0,
            run=run,
            why="the request is not protected",
        )

    def for_tasks(self) -> AbstractContextManager[None]:
        """Have what is published within get keys that are derived from this one."""
        return use_idempotency_key(self._context)

    def finish(self, response: Response) -> Response:
        """Record the response, and give what is to be sent: it, or what the key's holder made.

        To be called before the response is sent: who has seen it gets it again.
        """
        if self._ended:
            return response
        if not self._edge.keeps(response.status):
            self.release()
            return response
        packed = pack(response, self._edge.max_response_size)
        verdict = self._end(Ending(State.SUCCEEDED, packed))
        if not isinstance(verdict, Lost):
            return response
        record = verdict.record
        if record.state is State.SUCCEEDED:
            return self._edge.replay(record.outcome)
        # Forgotten meanwhile: it is nobody's, and this is the answer of its own request.
        return response if record.state is State.RELEASED else self._edge.problems.running()

    def release(self) -> None:
        """Free the key: the request failed, and may be sent again."""
        if not self._ended:
            self._end(Ending(State.RELEASED))

    def interrupt(self) -> None:
        """End the lease at once: the application was cut off, and what it did is not known."""
        if not self._ended:
            self._end(Ending(State.RUNNING))

    def _end(self, ending: Ending) -> object:
        assert self._run is not None
        self._ended = True
        verdict = self._run.end(ending)
        self._run.let_go()
        if self._environment is not None:
            journal, lost = self._environment.journal, isinstance(verdict, Lost)
            journal.ended(self, silently=lost)
            if not lost:
                what = "interrupted" if ending.state is State.RUNNING else str(ending.state)
                now = time.monotonic()
                more = {"took": now - self._began, "unrecorded": verdict is None}
                journal.put(self._event(what, now, more))
        return verdict

    def claimed(self) -> Event:
        """Give what the journal says of its beginning."""
        return self._event("claimed", self._began, {})

    def _event(self, what: str, at: float, more: Mapping[str, Any]) -> Event:
        assert self._run is not None
        call = self._run.call
        told = {"label": call.label.partition("\n")[2], "token": self._token, **more}
        return Event(at, what, call.key, _TASK, _id_of(call.owner), told)


def _digest(identity: str, key: str) -> str:
    text = f"{len(identity)}:{identity}{key}".encode("utf-8", "surrogatepass")
    return blake2b(text, digest_size=16, person=b"idem-http").hexdigest()


def _id_of(packed: bytes) -> str | None:
    owner = Owner.unpack(packed)
    return None if owner is None else owner.task_id
