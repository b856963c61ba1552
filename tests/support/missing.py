"""What a test needs and this machine has not: skipped there, and a failure under CI=true."""

from __future__ import annotations

__all__ = ["NotThere"]


class NotThere(Exception):
    """A server or a program is not there; says what to start or to install."""
