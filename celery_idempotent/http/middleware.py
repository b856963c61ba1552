"""What the middleware for ASGI and for WSGI share: their arguments, and reading the key."""

from __future__ import annotations

from collections.abc import Callable, Collection, MutableMapping
from typing import Any, ClassVar, Generic, TypeVar

from celery_idempotent.http.edge import Edge, check_function, keeps_by_default
from celery_idempotent.http.messages import Response
from celery_idempotent.run.context import RunContext

App = TypeVar("App")
#: The server's description of a request: the scope, or the environ.
Known = TypeVar("Known", bound=MutableMapping[str, Any])
Identity = TypeVar("Identity")


class Middleware(Generic[App, Known, Identity]):
    """Middleware around an application; the arguments are described by each of its two kinds."""

    #: What the server's description of a request is called.
    _known: ClassVar[str]

    def __init__(
        self,
        app: App,
        celery: Any,
        *,
        identity: Callable[[Known], Identity],
        required: bool | Callable[[Known], bool] = False,
        service: str | None = None,
        methods: Collection[str] = ("POST", "PATCH"),
        keeps: Callable[[int], bool] = keeps_by_default,
        ttl: float | None = None,
        max_request_size: int = 16 * 1024 * 1024,
        docs_url: str | None = None,
    ) -> None:
        check_function(identity, "identity", f"{self._known} that returns the caller as a text")
        if not isinstance(required, bool):
            what = f"{self._known} that returns True or False, or one of these"
            check_function(required, "required", what)
        self._app = app
        self._identity = identity
        self._required = required
        self._edge = Edge(
            celery,
            service=service,
            methods=methods,
            keeps=keeps,
            ttl=ttl,
            max_request_size=max_request_size,
            docs_url=docs_url,
        )

    def _covers(self, known: Known, method: str) -> bool:
        """Whether a request may have a key that no other middleware has read yet."""
        is_protected = isinstance(known.get("idempotency"), RunContext)  # by a middleware outside
        return self._edge.covers(method) and not is_protected

    def _key(self, known: Known, values: list[str]) -> str | Response | None:
        """Return the key in the header field's values, or the answer to a request without one."""
        required = self._required(known) if callable(self._required) else self._required
        return self._edge.key_of(values, required)
