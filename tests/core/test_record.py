"""The packed record: what is written is read again, and nothing else than a record is read."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from importlib import resources

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from celery_idempotent.core.keys import Owner
from celery_idempotent.core.record import VERSION, Label, Process, Record, State
from celery_idempotent.errors import RecordCorrupt, RecordTooNew
from celery_idempotent.stores.redis.store import RedisStore
from celery_idempotent.testing.contract.kit import replace
from celery_idempotent.testing.servers import RedisServer
from tests.core.test_keys import task_ids

fields = st.binary(max_size=255)
numbers = st.integers(0, 2**53 - 1)
nonces = st.just(b"") | st.binary(min_size=8, max_size=8).filter(any)
given_ups = st.binary(min_size=16, max_size=16).map(lambda one: one * 2) | st.just(b"")
records = st.builds(
    Record,
    state=st.sampled_from(State),
    token=numbers,
    until_ms=numbers,
    retries=st.integers(0, 2**32 - 1),
    interruptions=st.integers(0, 255),
    owner=fields,
    process=fields,
    nonce=nonces,
    given_up=given_ups,
    fingerprint=fields,
    label=st.text(st.characters(codec="utf-8"), max_size=40),
    outcome=st.binary(max_size=100),
)

TYPICAL = Record(
    State.RUNNING,
    1_750_000_000_123_456,
    until_ms=1_750_000_030_123,
    owner=Owner("0b9f5c3e-5d0f-4f5e-9d53-0d5a36a3a001").pack(),
    process=Process("worker-1", 4711, "boot").pack(),
    nonce=b"12345678",
    fingerprint=b"0123456789abcdef",
    label="order:42",
    outcome=b"\x01\x01{}",
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Bytes that were a record once: cut short, with flipped bits, or with bytes put in."""
    packed = bytearray(draw(records).pack())
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, min(len(packed) - 1, 80)))
        packed[at] ^= 1 << draw(st.integers(0, 7))
    if draw(st.booleans()):
        del packed[draw(st.integers(0, len(packed))) :]
    if draw(st.booleans()):
        at = draw(st.integers(0, len(packed)))
        packed[at:at] = draw(st.binary(max_size=4))
    return bytes(packed)


class TestRecord:
    @given(records)
    @example(TYPICAL)
    def test_what_is_packed_is_read_again(self, record: Record) -> None:
        """Any record comes back as it was, and packs to the same bytes again."""
        # When
        packed = record.pack()
        # Then
        assert Record.unpack(packed) == record
        assert Record.unpack(packed).pack() == packed

    def test_the_packed_form_is_fixed(self) -> None:
        """The layout is that of the docstring: a deploy reads what the version before it wrote."""
        # Then
        assert TYPICAL.pack() == (
            b"\x01\x01\x00\x00"
            + (1_750_000_000_123_456).to_bytes(8, "big")
            + (1_750_000_030_123).to_bytes(8, "big")
            + b"\x00\x00\x00\x00"
            + b"\x11U"
            + uuid.UUID("0b9f5c3e-5d0f-4f5e-9d53-0d5a36a3a001").bytes
            + b"\x12worker-1\x004711\x00boot"
            + b"\x0812345678"
            + b"\x100123456789abcdef"
            + b"\x00\x08order:42"
            + b"\x01\x01{}"
        )

    def test_every_cut_is_noticed(self) -> None:
        """A record that lost its end is corrupt, wherever in its fields it was cut."""
        # Given
        packed = replace(TYPICAL, outcome=b"").pack()
        # Then
        for size in range(len(packed)):
            with pytest.raises(RecordCorrupt, match="forget the key"):
                Record.unpack(packed[:size])

    @given(st.one_of(damaged(), st.binary(max_size=200)))
    def test_damage_gives_no_other_error(self, packed: bytes) -> None:
        """Bytes are read as a record, or are corrupt or too new: never anything else."""
        try:
            # When
            record = Record.unpack(packed)
        except (RecordCorrupt, RecordTooNew):
            return
        # Then
        assert Record.unpack(record.pack()) == record

    @pytest.mark.parametrize("version", [VERSION + 1, 255])
    def test_a_newer_version_is_not_corrupt(self, version: int) -> None:
        """What a newer worker wrote says so, however it goes on: the message must wait for one."""
        # Then
        with pytest.raises(RecordTooNew, match=f"version {version}.*upgrade"):
            Record.unpack(bytes((version,)) + TYPICAL.pack()[1:])
        with pytest.raises(RecordTooNew):
            Record.unpack(bytes((version,)))

    def test_version_zero_is_none(self) -> None:
        """There never was a version 0."""
        # Then
        with pytest.raises(RecordCorrupt):
            Record.unpack(b"\x00" + TYPICAL.pack()[1:])

    def test_numbers_that_lua_cannot_count_are_corrupt(self) -> None:
        """A token or an instant over 2**53 is no clock's, and Lua would read another number."""
        # Given
        largest = replace(TYPICAL, token=2**53 - 1, until_ms=2**53 - 1)
        # Then
        assert Record.unpack(largest.pack()) == largest
        for too_large in (replace(TYPICAL, token=2**53), replace(TYPICAL, until_ms=2**53)):
            with pytest.raises(RecordCorrupt):
                Record.unpack(too_large.pack())

    def test_the_count_of_interruptions_stops_at_its_byte(self) -> None:
        """More than 255 interruptions are 255, and not none."""
        # Then
        assert Record.unpack(replace(TYPICAL, interruptions=300).pack()).interruptions == 255

    @pytest.mark.parametrize("name", ["owner", "process", "nonce", "fingerprint"])
    def test_a_field_that_its_length_byte_cannot_tell_is_refused(self, name: str) -> None:
        """It is not cut: the fields behind it would be read at other places."""
        with pytest.raises(ValueError, match="256 bytes"):
            replace(TYPICAL, **{name: b"x" * 256}).pack()

    def test_a_long_label_is_cut_between_characters(self) -> None:
        """A label that doesn't fit loses its end, and is stable from then on."""
        # Given
        packed = replace(TYPICAL, label="ä" + "€" * 30_000).pack()
        # When
        record = Record.unpack(packed)
        # Then
        assert record.label == "ä" + "€" * 21_844
        assert record.pack() == packed
        assert record.outcome == TYPICAL.outcome

    @pytest.mark.parametrize("state", State)
    @pytest.mark.parametrize("outcome", [b"", b"\x02\x01{}"])
    def test_done_is_what_has_an_outcome(self, state: State, outcome: bytes) -> None:
        """Succeeded and failed are done; released is, where it keeps its failure."""
        # When
        done = replace(TYPICAL, state=state, outcome=outcome).is_done
        # Then
        kept = state is State.RELEASED and outcome != b""
        assert done is (state in (State.SUCCEEDED, State.FAILED) or kept)

    def test_states_are_shown_in_lower_case(self) -> None:
        """Commands and pages show a state by its name."""
        # Then
        assert [str(state) for state in State] == [
            "running",
            "retrying",
            "released",
            "succeeded",
            "failed",
            "unknown",
            "compensating",
        ]


class TestOwner:
    @given(task_ids())
    def test_every_task_id_fits(self, task_id: str) -> None:
        """However long it is, an owner fits its field, and the record can be read."""
        # When
        packed = replace(TYPICAL, owner=Owner(task_id, 7).pack()).pack()
        # Then
        assert isinstance(Record.unpack(packed).owner_id, str)

    def test_a_forgotten_key_has_no_owner(self) -> None:
        """The empty owner is nobody."""
        # Then
        assert Record(State.RELEASED, 1).owner_id is None


class TestProcess:
    @given(st.text(max_size=300), st.integers(0, 2**31), st.text("0123456789abcdef", max_size=16))
    def test_a_process_is_read_again(self, host: str, pid: int, boot: str) -> None:
        """Pid and boot id come back always, the host name as far as it fits."""
        # When
        packed = Process(host, pid, boot).pack()
        # Then
        assert len(packed) <= 255
        process = Process.unpack(packed)
        assert process is not None
        assert (process.pid, process.boot) == (pid, boot)
        if len(host.encode("utf-8", "replace")) < 200:
            assert process.host == host.encode("utf-8", "replace").decode()

    def test_one_host_and_pid_are_not_one_process(self) -> None:
        """Two containers with the same host name and pid differ by their boot ids."""
        # Then
        assert Process("web", 1, "a").pack() != Process("web", 1, "b").pack()

    @given(st.binary(max_size=60))
    def test_damage_gives_no_other_error(self, packed: bytes) -> None:
        """Bytes are read as a process, as none, or are corrupt."""
        try:
            # When
            process = Process.unpack(packed)
        except RecordCorrupt:
            return
        # Then
        assert (process is None) is (packed == b"")


@pytest.fixture(scope="module")
def lua_reads(session_server: RedisServer) -> Iterator[RedisStore]:
    store = RedisStore.from_url(session_server.url(4))
    yield store
    store.close()


_SHARED = (resources.files("celery_idempotent.stores.redis") / "lua" / "record.lua").read_bytes()
_READ = (
    _SHARED
    + b"""
local record = parse(ARGV[1])
if not record then return {} end
return {record.state, record.interruptions, record.token, record.until_ms, record.retries,
  record.owner, record.process, record.nonce, record.fingerprint, record.done and 1 or 0,
  string.sub(ARGV[1], record.tail_at)}
"""
)


class TestLuaReadsTheSame:
    """The parser in record.lua and the one in Python, given the same bytes."""

    @given(st.one_of(damaged(), records.map(Record.pack), st.binary(max_size=60)))
    @example(b"")
    @example(TYPICAL.pack())
    @example(replace(TYPICAL, token=2**53 - 1, until_ms=2**53 - 1).pack())
    @example(replace(TYPICAL, token=2**53).pack())
    @example(replace(TYPICAL, until_ms=2**64 - 1).pack())
    def test_both_parsers_agree(self, lua_reads: RedisStore, packed: bytes) -> None:
        """The same bytes are readable to both, and mean the same."""
        # When
        answer = lua_reads._wire.command("EVAL", _READ, 0, packed)
        try:
            record = Record.unpack(packed)
        except (RecordCorrupt, RecordTooNew):
            # Then
            assert answer == []
            return
        # Then
        *read, done, tail = answer
        assert read == [
            record.state,
            record.interruptions,
            record.token,
            record.until_ms,
            record.retries,
            record.owner,
            record.process,
            record.nonce,
            record.fingerprint,
        ]
        assert bool(done) is record.is_done
        assert tail.endswith(record.outcome)


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (Label(), ""),
        (Label("pay"), "pay"),
        (Label("pay", "order:7"), "pay\norder:7"),
        (Label("pay", "", "00-4bf9-00f0-01"), "pay\n\n00-4bf9-00f0-01"),
        (Label("pay", "", "", True), "pay\n\n\nalone"),
        (Label("pay", "order:7", "00-4bf9-00f0-01", True), "pay\norder:7\n00-4bf9-00f0-01\nalone"),
        (Label("pay", origin="5541"), "pay\n\n\n\n5541"),
        (Label("pay", came="17500"), "pay\n\n\n\n\n17500"),
        (Label("pay", cut_off="5541:1"), "pay\n\n\n\n\n\n5541:1"),
    ],
)
def test_a_label_is_read_as_it_was_made(label: Label, text: str) -> None:
    """Lines that are missing are empty, and those of a newer release are passed over."""
    assert label.text() == text
    assert Label.of(Record(State.RUNNING, 1, label=text)) == label
    newer = text + "\n" * (7 - text.count("\n")) + "a line of a newer release"
    assert Label.of(Record(State.RUNNING, 1, label=newer)) == label


@pytest.mark.parametrize(
    ("cut_off", "task_id"),
    [
        pytest.param("", "own", id="none is known"),
        pytest.param("54056669727374:1,54067365636f6e64:2", "second", id="the last one"),
        pytest.param("5306736:1", "own", id="half of one"),
        pytest.param("ff:1", "own", id="no owner"),
    ],
)
def test_the_call_that_was_cut_off_is_in_the_label(cut_off: str, task_id: str) -> None:
    """Where it is another; what can't be read stops no run."""
    label = Label(cut_off=cut_off).text()
    record = Record(State.RUNNING, 1, owner=Owner("own").pack(), label=label)
    assert record.cut_off_id == task_id
