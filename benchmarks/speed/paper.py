"""Computes what one core of a Redis server can do, and what a million tasks a minute need."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.speed.measure import Goal

__all__ = ["Load", "MILLION_A_MINUTE", "Paper", "memory_on_paper", "on_paper"]

#: Executions a second.
MILLION_A_MINUTE = 1_000_000 / 60
#: How busy a core may be planned: a server that is always busy answers late.
BUSY = 0.5
_DAY_S = 86_400


@dataclass(frozen=True)
class Load:
    """The cost of executions (a claim and a completion each) for the masters of a cluster."""

    executions: int
    #: Seconds of processor, as the operating system counts them: sockets, parsing, scripts.
    cpu_s: float
    #: Seconds in the scripts alone, as ``INFO commandstats`` has them.
    script_s: float
    #: Bytes over the network, to the servers and from them.
    bytes_in: float
    bytes_out: float
    #: The fraction of the executions on the busiest master.
    busiest: float


@dataclass(frozen=True)
class Paper:
    """Figures that are multiples of one measured execution."""

    #: The processor time of the server, and of its scripts alone; in microseconds.
    cpu_us: float
    script_us: float
    #: Over the network, both ways.
    network_bytes: float

    @property
    def a_core(self) -> float:
        """How many executions a second keep one core fully busy."""
        return 1e6 / self.cpu_us

    @property
    def cores(self) -> float:
        """Cores for a million executions a minute, each half busy."""
        return MILLION_A_MINUTE / self.a_core / BUSY

    @property
    def megabits(self) -> float:
        """Network between workers and servers, in Mbit/s."""
        return MILLION_A_MINUTE * self.network_bytes * 8 / 1e6

    def goals(self) -> list[Goal]:
        """Return the figures; none of them is a goal."""
        return [
            Goal(
                "7d",
                "on paper: executions a second that one core of Redis carries, of a cluster of 3",
                self.a_core,
                detail=(
                    f"{self.cpu_us:.0f} µs of processor an execution, without pipelining; the "
                    f"scripts alone take {self.script_us:.0f} µs ({1e6 / self.script_us:.0f}/s)"
                ),
            ),
            Goal(
                "7e",
                "on paper: cores of Redis for a million tasks a minute",
                self.cores,
                detail=(
                    f"{MILLION_A_MINUTE:.0f} executions a second, each core {BUSY:.0%} busy; "
                    f"network {self.megabits:.0f} Mbit/s ({self.network_bytes:.0f} bytes an "
                    "execution)"
                ),
            ),
        ]


def memory_on_paper(record_bytes: float) -> Goal:
    """Return the memory for the records of a million tasks a minute."""
    records = MILLION_A_MINUTE * _DAY_S
    day_gib = records * record_bytes / 2**30
    return Goal(
        "7f",
        "on paper: GiB for their records, with a window of a day",
        day_gib,
        detail=(
            f"{records:,.0f} records of {record_bytes:.0f} bytes (5b); with a window of an hour "
            f"{day_gib / 24:.1f} GiB"
        ),
    )


def on_paper(load: Load) -> Paper:
    """Compute the cost of one execution from the cost of many."""
    return Paper(
        1e6 * load.cpu_s / load.executions,
        1e6 * load.script_s / load.executions,
        (load.bytes_in + load.bytes_out) / load.executions,
    )
