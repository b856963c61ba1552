"""The body of a message as it came, so that a message that is put back is the message that came.

The arguments that Celery's request holds are the very objects that the task's body gets, which may
change them. And no worker is told with which serializer a call was sent: its content type says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from kombu import serialization

# kombu has no types for these.
_serialization: Any = serialization
_registry: Any = _serialization.registry


class Properties(dict[str, Any]):
    """A message's properties, with its body out of the sight of who reads or prints them."""

    __slots__ = ("came",)

    def __init__(self, properties: Mapping[str, Any], came: tuple[Any, ...]) -> None:
        super().__init__(properties)
        #: The body's bytes (or text), its content type, its encoding, and how it was compressed.
        self.came = came

    def __reduce__(self) -> tuple[Any, ...]:
        return Properties, (dict(self), self.came)


def keep_body(request: dict[str, Any], message: Any) -> None:
    """Hand a message's body on to the process that is to run it.

    That process gets the same object from Celery: once pickled, it takes a reference more.
    """
    compression = message.headers.get("compression")  # the body is not, any more
    came = message.body, message.content_type, message.content_encoding, compression
    request["properties"] = Properties(request.get("properties") or {}, came)


class Body(NamedTuple):
    """What a message brought, read anew."""

    args: Any
    kwargs: Any
    #: What hangs on it; ``None``: its protocol has that elsewhere.
    embed: Any
    content: Any
    content_type: str
    content_encoding: str
    compression: str | None

    @property
    def options(self) -> dict[str, Any]:
        """Options for ``apply_async`` that send it as it was sent."""
        serializer = _registry.type_to_name.get(self.content_type)
        found = {"serializer": serializer, "compression": self.compression}
        return {name: value for name, value in found.items() if value}

    def is_that_of(self, body: Any) -> bool:
        """Whether what is to be published differs in its arguments at most: these are right."""
        return isinstance(body, tuple) and body[2] == self.embed  # protocol 1 is a table


def body_of(app: Any, request: Any) -> Body | None:
    """Read the body of a delivered message anew; ``None`` where it is not known.

    That is an eager call, or one of a task with a ``Request`` class that is not made of ours.
    """
    properties = request.properties
    if not isinstance(properties, Properties):
        return None
    content, content_type, content_encoding, compression = properties.came
    accept = _serialization.prepare_accept_content(app.conf.accept_content)
    payload = _registry.loads(content, content_type, content_encoding, accept=accept)
    if isinstance(payload, Mapping):  # protocol 1
        args, kwargs, embed = payload.get("args", ()), payload.get("kwargs", {}), None
    else:
        args, kwargs, embed = payload
    return Body(args, kwargs, embed, content, content_type, content_encoding, compression)


class SameBody:
    """A producer that publishes the bytes of a body that came, where only headers have changed."""

    def __init__(self, producer: Any, body: Body) -> None:
        self._producer, self._body = producer, body

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def publish(self, body: Any, **options: Any) -> Any:
        """As kombu's."""
        came = self._body
        if not came.is_that_of(body):
            return self._producer.publish(body, **options)
        options.pop("serializer", None)
        encoded = {"content_type": came.content_type, "content_encoding": came.content_encoding}
        return self._producer.publish(came.content, **encoded, **options)
