"""Whether this worker shuts down, as the processes of its pool can see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import mmap


class Shutdown:
    """One bit that a worker shares with the processes that it forks."""

    def __init__(self) -> None:
        self._shared: mmap.mmap | None = None

    def watch(self) -> None:
        """Begin, before the pool's processes are forked."""
        import mmap  # only a worker needs it

        self._shared = mmap.mmap(-1, 1)

    def announce(self) -> None:
        """Say that the worker shuts down; it can be said in a signal's handler."""
        if self._shared is not None:
            self._shared[0] = 1

    def is_announced(self) -> bool:
        """Whether the worker shuts down."""
        return self._shared is not None and self._shared[0] == 1


#: That of this process, and of the worker that forked it.
shutdown: Final = Shutdown()
