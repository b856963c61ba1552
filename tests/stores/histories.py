"""Random histories of one key: clients, a broker, faults and a clock, against any store.

A client does what a worker does with a delivery. The store acts at once, but its answer may be
lost, a claim may arrive after it was given up, a client may die at any moment, and the clock jumps.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import hypothesis
import hypothesis.strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from celery_idempotent.core.record import Process, Record, State
from celery_idempotent.core.verdicts import (
    Busy,
    Claim,
    Claimed,
    ClaimVerdict,
    Lost,
    Recorded,
    Replay,
    Superseded,
    Unknown,
)
from celery_idempotent.stores.base import Store
from celery_idempotent.testing.contract import kit
from celery_idempotent.testing.contract.kit import (
    FIRST,
    HORIZON_MS,
    KEEP_MS,
    KEY,
    LEASE_MS,
    SECOND,
    THIRD,
    TTL_MS,
    Message,
    StoreClock,
    replace,
)
from tests.stores.clients import (
    ENDINGS,
    MOST_RETRIES,
    RETRY_MS,
    Client,
    is_asking,
    is_ending,
    is_running,
    outcome_of,
    write_end,
)

#: A fuzzing run asks for more than the usual 150, and gets that many times more of each store.
MORE = int(os.environ.get("CELERY_IDEMPOTENT_EXAMPLES", "150")) / 150
JUMPS_MS = (1, 10_000, LEASE_MS - 1, LEASE_MS, RETRY_MS + LEASE_MS, KEEP_MS, TTL_MS)


class Histories(RuleBasedStateMachine):
    """What clients do with one key, and what has to hold all the while."""

    store: Store
    clock: StoreClock

    def __init__(self) -> None:
        super().__init__()
        self.reset()
        self.queue: list[tuple[Message, bytes]] = [(FIRST, b""), (SECOND, b""), (THIRD, b"")]
        self.clients: list[Client] = []
        self.made = 0
        #: Task ids that have an answer, and those whose message the broker has lost.
        self.answered: set[str] = set()
        self.excused: set[str] = set()
        self.begin_anew()

    def reset(self) -> None:
        raise NotImplementedError

    def begin_anew(self) -> None:
        """Nothing is left of the key's past: no record, or one that was freed by a person."""
        #: The outcome of each run whose completion was accepted, by its token.
        self.accepted: dict[int, bytes] = {}
        self.steps: dict[str, bytes] = {}
        #: The highest token ever seen, while there is a record.
        self.highest = 0

    def look(self) -> None:
        """Before anything that would write a record anew: whether the window is over."""
        if self.store.get(KEY) is None:
            self.begin_anew()

    # --- messages --------------------------------------------------------------------------------

    @precondition(lambda self: self.queue and len(self.clients) < 4)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.queue) - 1), label="which message")
        message, awaited = self.queue.pop(at)
        self.made += 1
        process = Process("worker", self.made, "boot").pack()
        nonce = self.made.to_bytes(8, "big")
        self.clients.append(Client(message, process, nonce, awaited))

    @precondition(lambda self: self.clients and len(self.queue) < 6)
    @rule(data=st.data())
    def deliver_again(self, data: st.DataObject) -> None:
        """The broker takes a living worker for dead."""
        self.queue.append((self.some(data).message, b""))

    def some(self, data: st.DataObject, *states: Callable[[Client], bool]) -> Client:
        clients = [one for one in self.clients if all(state(one) for state in states)]
        return data.draw(st.sampled_from(clients), label="client")

    def put_back(self, client: Client) -> None:
        self.queue.append((client.message, client.awaited))
        self.clients.remove(client)

    def answer(self, client: Client) -> None:
        self.answered.add(client.message.task_id)
        self.clients.remove(client)

    # --- a claim ---------------------------------------------------------------------------------

    def asked(self, client: Client) -> ClaimVerdict:
        self.look()
        candidate = replace(client.message.candidate(client.nonce), process=client.process)
        before = self.store.get(KEY)
        verdict = self.store.claim(
            KEY,
            Claim(candidate, LEASE_MS, KEEP_MS, max_interruptions=2, awaited=client.awaited),
        )
        if isinstance(verdict, Claimed):
            if before is not None and before.nonce == client.nonce:
                assert verdict.token == before.token, "the same claim got another token"
            else:
                assert verdict.token > self.highest, "a token was used twice, or is lower"
                assert not self.accepted, "a run was let in after another was accepted"
                assert not self._leased(before), "a live lease was taken over"
            self.highest = verdict.token
            assert self.steps.items() <= verdict.steps.items(), "a step was lost"
        return verdict

    def _leased(self, record: Record | None) -> bool:
        return (
            record is not None
            and record.state is State.RUNNING
            and record.until_ms > self.store.now_ms()
        )

    @precondition(lambda self: any(map(is_asking, self.clients)))
    @rule(data=st.data(), is_answered=st.sampled_from((True, True, True, False)))
    def ask(self, data: st.DataObject, is_answered: bool) -> None:
        """Ask for the key; where the answer is lost, it is asked again with the same nonce."""
        client = self.some(data, is_asking)
        verdict = self.asked(client)
        if is_answered:
            self.obey(client, verdict)

    def obey(self, client: Client, verdict: ClaimVerdict) -> None:
        """Do what a worker does with that verdict."""
        if isinstance(verdict, Claimed):
            client.held = replace(
                client.message.candidate(client.nonce),
                process=client.process,
                token=verdict.token,
                interruptions=verdict.interruptions,
                has_steps=bool(verdict.steps),
            )
        elif isinstance(verdict, Busy):
            client.awaited = b"" if verdict.mine else verdict.record.owner
            self.put_back(client)
        elif isinstance(verdict, Replay):
            if verdict.record.state is not State.RELEASED:
                assert verdict.record.outcome in self.accepted.values(), "not what was accepted"
            self.answer(client)
        elif isinstance(verdict, Superseded):
            self.superseded(client.message)
            self.clients.remove(client)
        else:
            assert isinstance(verdict, Unknown), verdict
            self.answer(client)

    def superseded(self, message: Message) -> None:
        """Only an old copy may be dropped: a successor was published, or lost by the broker."""
        later = [m for m, _ in self.queue] + [client.message for client in self.clients]
        assert message.task_id in self.answered | self.excused or any(
            m.task_id == message.task_id and m.retries > message.retries for m in later
        ), "a message was dropped that nobody will answer"

    @precondition(lambda self: any(map(is_asking, self.clients)))
    @rule(data=st.data(), how=st.sampled_from(("in time", "late", "never came")))
    def give_up(self, data: st.DataObject, how: str) -> None:
        """A client gives up its claim; the claim arrives before its undoing, after it, or never."""
        client = self.some(data, is_asking)
        if how == "in time":
            self.asked(client)
        self.look()
        given_up = replace(client.message.candidate(client.nonce), process=client.process)
        before = self.store.get(KEY)
        self.store.abandon(KEY, given_up, HORIZON_MS)
        self.seen()
        if how == "late":
            verdict = self.asked(client)
            # A record that another run holds has its own nonce, and no room for a second.
            if before is None or before.state is not State.RUNNING:
                assert not isinstance(verdict, Claimed), "a claim that was given up was granted"
        self.put_back(client)

    # --- a run -----------------------------------------------------------------------------------

    @precondition(lambda self: any(map(is_running, self.clients)))
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        client = self.some(data, is_running)
        assert client.held is not None
        self.look()
        answer = kit.renew(self.store, client.held)
        self.fenced(client, answer)

    @precondition(lambda self: any(map(is_running, self.clients)))
    @rule(data=st.data(), name=st.sampled_from("ab"))
    def step(self, data: st.DataObject, name: str) -> None:
        client = self.some(data, is_running)
        assert client.held is not None
        self.look()
        packed = f"{name} of {client.held.token}".encode()
        answer = kit.step(self.store, client.held, name, packed)
        self.fenced(client, answer)
        if isinstance(answer, Recorded):
            self.steps[name] = packed
            client.held = replace(client.held, has_steps=True)

    @precondition(lambda self: any(map(is_running, self.clients)))
    @rule(data=st.data(), ending=st.sampled_from(ENDINGS), is_sent=st.booleans())
    def end(self, data: st.DataObject, ending: str, is_sent: bool) -> None:
        """A body ends; for a retry the next message is published first, or lost by the broker."""
        client = self.some(data, is_running)
        message = client.message
        if ending == "retry":
            if message.retries >= MOST_RETRIES:
                ending = "release failed"
            elif is_sent:
                self.queue.append((message.retried(), b""))
            else:
                self.excused.add(message.task_id)
        client.ending = ending

    @precondition(lambda self: any(map(is_ending, self.clients)))
    @rule(data=st.data(), is_answered=st.sampled_from((True, True, False)))
    def tell(self, data: st.DataObject, is_answered: bool) -> None:
        """Tell the store how a run ended, and again where the answer is lost."""
        client = self.some(data, is_ending)
        held = client.held
        assert held is not None
        self.look()
        before = self.store.get(KEY)
        answer = write_end(self.store, held, client.ending)
        self.fenced(client, answer)
        if isinstance(answer, Recorded):
            if client.ending in ("complete", "fail"):
                self.accepted[held.token] = outcome_of(client.ending, held)
        elif client.told and before is not None and self._is_the_end_of(held, before):
            raise AssertionError("told again, its own end was refused")
        if not is_answered:
            client.told = True
            return
        self.leave(client, answer)

    @staticmethod
    def _is_the_end_of(held: Record, record: Record) -> bool:
        """Whether a record is what a run left, and not its call's next claim."""
        freed = record.state is State.RELEASED and record.token == held.token + 1
        return record.owner == held.owner and (freed or record.token == held.token)

    def leave(self, client: Client, answer: Recorded | Lost) -> None:
        """Answer, or wait for who has the key now: what a run does when it has ended."""
        if client.ending == "retry":
            self.clients.remove(client)
        elif client.ending == "interrupt":
            self.put_back(client)  # the worker goes: its message comes back
        elif isinstance(answer, Recorded):
            self.answer(client)
        elif answer.record.owner == client.message.owner or not (
            answer.record.is_done or answer.record.state is State.RELEASED
        ):
            self.put_back(client)
        else:
            self.answer(client)

    def fenced(self, client: Client, answer: object) -> None:
        """Whatever a late run writes, it changes nothing and is told."""
        assert client.held is not None
        if isinstance(answer, Recorded):
            # A release has a token of its own, one higher, so that nothing of the run comes later.
            assert client.held.token in (answer.token, answer.token - 1)
            assert answer.token >= self.highest, "a late run was let in"
        else:
            assert isinstance(answer, Lost), answer
            assert answer.record.token != client.held.token or not is_running(client)
        self.seen()

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), is_noticed=st.booleans())
    def die(self, data: st.DataObject, is_noticed: bool) -> None:
        """A process dies; its parent may notice, and ends what it held."""
        client = self.some(data)
        if is_noticed:
            before = self.store.get(KEY)
            ended = self.store.end_lease(KEY, client.message.owner, client.process)
            assert not ended or (before is not None and before.process == client.process)
        if client.ending == "retry" and client.message.task_id not in self.excused:
            self.clients.remove(client)
            self.queue.append((client.message, b""))  # an old copy, its successor is out
            return
        client.awaited = b""
        self.put_back(client)

    # --- time and people -------------------------------------------------------------------------

    @rule(ms=st.sampled_from((*JUMPS_MS, -1, -LEASE_MS, -KEEP_MS)))
    def pass_time(self, ms: int) -> None:
        self.clock.advance(ms)

    @rule()
    def forget(self) -> None:
        self.store.forget(KEY, HORIZON_MS)
        highest = self.highest
        self.begin_anew()
        self.highest = highest if self.store.get(KEY) is not None else 0
        self.seen()

    # --- what always holds -----------------------------------------------------------------------

    def seen(self) -> None:
        """The token of a record only rises."""
        record = self.store.get(KEY)
        if record is not None:
            assert record.token >= self.highest, "a token fell"
            self.highest = record.token

    @invariant()
    def one_is_accepted(self) -> None:
        assert len(self.accepted) <= 1, f"accepted: {self.accepted}"

    def wait(self) -> None:
        """Let a lease end, and a retry be overdue, wherever the clock was when they began."""
        record, now_ms = self.store.peek(KEY)
        if record is not None and record.until_ms + LEASE_MS > now_ms:
            self.clock.advance(record.until_ms + LEASE_MS - now_ms)

    def teardown(self) -> None:
        """Nothing is lost: without further faults every task id ends with an answer."""
        for client in list(self.clients):
            if client.ending == "retry" and client.message.task_id in self.excused:
                self.clients.remove(client)
            else:
                self.put_back(client)
        late = replace(FIRST, task_id="a caller who comes when all is over")
        self.queue.append((late, b""))
        for _ in range(60):
            if not self.queue:
                break
            self.wait()
            message, awaited = self.queue.pop(0)
            self.made += 1
            nonce = self.made.to_bytes(8, "big")
            client = Client(message, Process("last", self.made, "boot").pack(), nonce, awaited)
            self.clients.append(client)
            self.obey(client, self.asked(client))
            if client.held is not None:
                client.ending = "complete"
                answer = write_end(self.store, client.held, "complete")
                assert isinstance(answer, Recorded), "nobody else was there"
                self.accepted[answer.token] = outcome_of("complete", client.held)
                self.leave(client, answer)
            self.one_is_accepted()
        everybody = {FIRST.task_id, SECOND.task_id, THIRD.task_id, late.task_id}
        left = everybody - self.answered - self.excused
        assert not left, f"no answer for {left}"


def run_histories(
    store: Store, clock: StoreClock, reset: Callable[[], None], examples: int
) -> None:
    """Let ``examples`` histories happen to a store, each from an empty one."""

    class TheseHistories(Histories):
        def __init__(self) -> None:
            self.store = store
            self.clock = clock
            super().__init__()

        def reset(self) -> None:
            reset()

    run_state_machine_as_test(
        TheseHistories,
        settings=hypothesis.settings(
            max_examples=round(examples * MORE),
            stateful_step_count=50,
            deadline=None,
            phases=set(hypothesis.Phase) - {hypothesis.Phase.explain},
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )
