"""Goal 7: a cluster of one master and one of three, and what an execution costs them."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import redis

from benchmarks.speed.measure import Goal, Say, Section, ratio
from benchmarks.speed.paper import Load, on_paper
from celery_idempotent.testing.servers import RedisServer
from tests.support.clusters import Cluster

__all__ = ["measure_scale"]

_PROJECT = Path(__file__).resolve().parents[2]
_CLIENTS = 4


class _Side:
    """One cluster, and the processes that are its clients."""

    def __init__(self, masters: int) -> None:
        self.cluster = Cluster(masters)
        self.nodes: list[Any] = [redis.Redis.from_url(it.url()) for it in self.cluster.servers]
        self._clients = [self._client(number) for number in range(_CLIENTS)]
        for client in self._clients:
            self._answer(client)
        #: The cost of the timed rounds for each master, which is idle between them.
        self._spent: list[Counter[str]] = [Counter() for _ in self.nodes]
        self._executions = 0

    def _client(self, number: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed.client", self.cluster.url, f"c{number}"],
            cwd=_PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @staticmethod
    def _answer(client: subprocess.Popen[str]) -> str:
        assert client.stdout is not None
        answer = client.stdout.readline()
        if not answer:
            raise RuntimeError("a client of the cluster ended: what it said is above")
        return answer

    def seconds_each(self, count: int) -> float:
        """Run ``count`` executions in each client at once; return the seconds for an execution."""
        before = [self._counters(node) for node in self.nodes]
        began = time.perf_counter()
        for client in self._clients:
            assert client.stdin is not None
            client.stdin.write(f"{count}\n")
            client.stdin.flush()
        for client in self._clients:
            self._answer(client)
        took = time.perf_counter() - began
        for node, then, spent in zip(self.nodes, before, self._spent, strict=True):
            spent.update(self._counters(node))
            spent.subtract(then)
        self._executions += count * len(self._clients)
        return took / (count * len(self._clients))

    @staticmethod
    def _counters(node: Any) -> dict[str, Any]:
        info, scripts = node.info(), node.info("commandstats").get("cmdstat_evalsha", {})
        # The server also counts the two commands that ask, which is less than 1 %.
        return {
            "cpu": info["used_cpu_user"] + info["used_cpu_sys"],
            "script": scripts.get("usec", 0) / 1e6,
            "calls": scripts.get("calls", 0),
            "in": info["total_net_input_bytes"],
            "out": info["total_net_output_bytes"],
        }

    def load(self) -> Load:
        """Return the cost of the executions so far."""
        total: Counter[str] = sum(self._spent, Counter())
        busiest = max(one["calls"] for one in self._spent) / total["calls"]
        return Load(
            self._executions, total["cpu"], total["script"], total["in"], total["out"], busiest
        )

    def close(self) -> None:
        """End clients and servers."""
        for client in self._clients:
            assert client.stdin is not None
            client.stdin.close()
            client.wait(30)
        self.cluster.close()


def measure_scale(server: RedisServer, quick: bool, say: Say) -> Section:
    """Measure both clusters in turns; then compute what a core can do."""
    say("starting a cluster of one master and one of three")
    one, three = _Side(1), _Side(3)
    seconds: dict[int, list[float]] = {1: [], 3: []}
    count, times = (250, 5) if quick else (1500, 11)
    try:
        for side in (one, three):
            side.seconds_each(count // 5)
        for turn in range(times):
            say(f"round {turn + 1} of {times}")
            order = [(1, one), (3, three)]
            for masters, side in order if turn % 2 == 0 else reversed(order):
                seconds[masters].append(side.seconds_each(count))
        loads = {1: one.load(), 3: three.load()}
    finally:
        one.close()
        three.close()
    rates = {masters: 1 / statistics.median(found) for masters, found in seconds.items()}
    paper = on_paper(loads[3])
    goals = [
        Goal(
            "7a",
            "executions a second: a cluster of 3 masters to one of 1",
            ratio(seconds[1], seconds[3]).median,
            detail=(
                f"1 master {rates[1]:.0f}/s, 3 masters {rates[3]:.0f}/s; {_CLIENTS} client "
                f"processes and all masters share {os.cpu_count()} cores, which bounds this ratio: "
                "the servers wait for their clients here"
            ),
        ),
        Goal(
            "7b",
            "seconds of a store's processor for 1,000 executions",
            1000 * loads[1].cpu_s / loads[1].executions,
            detail=(
                f"of which in the scripts {1000 * loads[1].script_s / loads[1].executions:.3f}; "
                f"3 masters together {1000 * loads[3].cpu_s / loads[3].executions:.3f}"
            ),
        ),
        Goal(
            "7c",
            "part of the work that the busiest of 3 masters has",
            loads[3].busiest,
            detail="a third is even: keys are spread by their hash, so that masters add up",
        ),
        *paper.goals(),
    ]
    table = {
        "executions_a_second": {str(masters): rate for masters, rate in rates.items()},
        "loads": {str(masters): asdict(load) for masters, load in loads.items()},
        "paper": asdict(paper),
    }
    return Section(goals, {"scale": table})
