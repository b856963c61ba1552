"""Sends values through kombu's serializers, as a message's arguments go."""

from typing import Any

from kombu.serialization import dumps, loads

SERIALIZERS = ("json", "msgpack", "pickle", "yaml")


def round_trip(value: Any, serializer: str) -> Any:
    """What arrives of ``value`` at a worker that accepts ``serializer``."""
    content_type, encoding, payload = dumps(value, serializer=serializer)
    return loads(payload, content_type, encoding, accept=[content_type])
