"""What README and documentation say is what the code has: names, defaults, numbers, states."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest

import celery_idempotent
from benchmarks.compare.scenarios import SCENARIOS
from celery_idempotent import IdempotentTask, State, signals
from celery_idempotent.core import transitions
from celery_idempotent.core.options import Options, Settings, setting_names
from celery_idempotent.core.record import Record
from celery_idempotent.core.verdicts import Claim, ClaimVerdict, Settle
from tests.meta.test_layers import RANKS
from tests.support.printed import Sample, samples

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*DOCS.glob("*.rst"), *DOCS.glob("cookbook/*.rst")])
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))


def page(name: str) -> str:
    return (DOCS / f"{name}.rst").read_text(encoding="utf-8")


def table_rows(text: str) -> list[list[str]]:
    """The rows of all Markdown tables, as their cells."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# --- examples ------------------------------------------------------------------------------------


def test_the_readme_shows_the_examples_that_are_run() -> None:
    """Each Python block of the README is a file of docs/examples, word for word."""
    # Given
    named = dict(re.findall(r"<!-- (\S+) -->\n```python\n(.*?)```", README, re.DOTALL))
    # Then
    assert README.count("```python") == len(named) > 0
    for name, block in named.items():
        assert block == (ROOT / name).read_text(encoding="utf-8"), name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_pages_take_their_code_from_files(path: Path) -> None:
    """No page has Python of its own, which nothing would run."""
    text = path.read_text(encoding="utf-8")
    assert "code-block:: python" not in text
    assert ">>>" not in text


def test_every_example_is_shown() -> None:
    """A file that no page shows is none."""
    shown = "".join(path.read_text(encoding="utf-8") for path in PAGES)
    hidden = [path.name for path in EXAMPLES if f"examples/{path.name}" not in shown]
    assert hidden == []


@pytest.mark.parametrize("sample", samples(), ids=lambda it: f"{it.page}-{it.name}")
def test_a_sample_is_printed_from_its_first_line(sample: Sample) -> None:
    """Its imports and its app are shown; only checks that come after it may be left out."""
    options = re.findall(r":([\w-]+):(.*)", sample.options)
    assert {(name, value.strip()) for name, value in options if name != "caption"} <= {
        ("end-before", "[end]")
    }
    assert sample.text.startswith('"""')


@pytest.mark.parametrize("sample", samples(), ids=lambda it: f"{it.page}-{it.name}")
def test_a_task_with_options_is_printed_with_its_base(sample: Sample) -> None:
    """A task that is pasted without base= would be a plain one."""
    for call in ast.walk(ast.parse(sample.text)):
        if isinstance(call, ast.Call):
            given = {str(keyword.arg) for keyword in call.keywords}
            if ast.unparse(call.func).endswith(".task") and any("idemp" in it for it in given):
                assert "base" in given, ast.unparse(call)
    assert "task_cls" not in sample.text


# --- names and defaults --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *PAGES], ids=lambda path: str(path.relative_to(ROOT))
)
def test_only_what_exists_is_named(path: Path) -> None:
    """Each idempotency_ name in a text is an option, a setting or a method of the task."""
    # Given
    named = set(re.findall(r"\bidempotency_[a-z_]*[a-z]\b", path.read_text(encoding="utf-8")))
    # Then
    known = setting_names() | {name for name in vars(IdempotentTask) if name.startswith("idem")}
    others = {"idempotency_forget", "idempotency_records"}  # a command of workers, a table
    assert named <= known | others


@pytest.mark.parametrize("options", [Options, Settings])
def test_the_readme_has_the_defaults_right(options: Any) -> None:
    """The options in its tables stand in their order; a default that is a value is the real one."""
    # Given
    cells = {row[0].strip("`"): row[1] for row in table_rows(README)}
    fields = {f"idempotency_{item.name}": item for item in dataclasses.fields(options)}
    # Then
    listed = [name for name in cells if name in fields]
    assert listed == [name for name in fields if name in cells] != []
    for name in listed:
        item = fields[name]
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        if default is not None:
            assert ast.literal_eval(cells[name].strip("`")) == default, name


def test_the_reference_has_every_public_name() -> None:
    """What users may import stands on the page for it."""
    for name in celery_idempotent.__all__:
        assert re.search(rf"^\.\. auto\w+:: {name}\b", page("api"), re.MULTILINE), name
    for name, value in vars(signals).items():
        if isinstance(value, signals.Signal):
            assert f"``{name}``" in page("signals"), name


def test_the_readme_compares_what_was_measured() -> None:
    """Each row says how many others did what we did, in the run whose results are kept."""
    # Given
    measured = json.loads((DOCS / "comparison-results.json").read_text(encoding="utf-8"))
    contenders = [
        *("celery_setting", "once", "singleton", "heimdall", "heimdall_interval"),
        *("fencekit", "idemkit", "powertools"),
    ]
    titles = {scenario.title: scenario.name for scenario in SCENARIOS}
    ours = measured["findings"]["idempotent"]
    # When
    _, _, *body = table_rows(README.partition("## How it compares")[2])
    # Then
    assert measured["measured_on"] in README
    assert len(body) >= 6
    for fault, same in body:
        found = ours[titles[fault]]
        others = [measured["findings"][it][titles[fault]]["brief"] for it in contenders]
        assert same == f"{others.count(found['brief'])} of {len(contenders)}", fault
        # And we made one effect, and gave each call its answer.
        assert found["facts"]["effects"] == 1, fault
        assert set(found["facts"]["answers"]) <= {"result", "error"}, fault


def test_the_readme_links_to_files_that_are_there() -> None:
    """A link is a file of the repository, and its text says which: it reads without the link."""
    for text, target in re.findall(r"\[([^\]]+)\]\(([^)]+)\)", README):
        assert (ROOT / target).is_file(), target
        assert target.endswith(text) or text == "BSD-3-Clause", text


def test_the_page_of_the_architecture_has_every_room_in_its_order() -> None:
    """Each is there, as the test of the layers has it, with files that are in it."""
    # Given
    rooms = re.findall(
        r"^   \* - (``.+)\n     - ((?:.+\n)+?)(?=   \* -|\n)", page("architecture"), re.M
    )
    package = ROOT / "celery_idempotent"
    # When
    named = []
    for head, job in rooms:
        names = [name.rstrip("/") for name in re.findall(r"``([\w/]+)``", head)]
        named += [name for name in names if name in RANKS]
        for file in re.findall(r"``(\w+\.py)``", job):
            assert (package / names[0] / file).is_file(), (names, file)
    # Then
    assert set(named) == set(RANKS)
    assert [RANKS[name] for name in named] == sorted(RANKS[name] for name in named)


# --- how it works --------------------------------------------------------------------------------


def test_every_verdict_is_drawn() -> None:
    """Each answer of the store has a diagram, and so have no answer and a refused outcome."""
    # Given
    titles = re.findall(r"^\.\. sequence:: (.+)$", page("verdicts"), re.MULTILINE)
    # Then
    names = [verdict.__name__ for verdict in get_args(ClaimVerdict)]
    drawn = [title.partition(",")[0] for title in titles]
    assert drawn.count("Busy") == 2  # another call, and the own message
    assert {*names, "Lost", "The store is away"} == set(drawn)


NOW = 1_000_000_000_000_000  # the store's clock, in µs
TOKEN = NOW - 60_000_000


def records(state: State) -> list[Record]:
    """Records of one state: lease over or live, with and without an outcome."""
    held = Record(state, TOKEN, retries=1, owner=b"mine", process=b"process")
    return [
        held._replace(until_ms=until, outcome=outcome)
        for until, outcome in product((1, NOW // 1000 + 1000), (b"", b"outcome"))
    ]


def after_claims(record: Record | None) -> set[State]:
    """What any claim makes of a record."""
    states = set()
    for owner, retries, most in product((b"mine", b"other"), (0, 1, 2), (0, 3)):
        candidate = Record(State.RUNNING, 0, retries=retries, owner=owner, nonce=b"nonce")
        ask = Claim(
            candidate,
            lease_ms=30_000,
            keep_ms=60_000,
            max_interruptions=most,
            max_compensations=most,
        )
        write = transitions.claim(record, ask, NOW)[1]
        if write is not None:
            states.add(write.record.state)
    return states


def after_endings(record: Record, endings: Iterable[State]) -> set[State]:
    """What any end of the run that holds it makes of a record."""
    states = set()
    for state in endings:
        ending = Settle(record._replace(state=state), delay_ms=0, ttl_ms=60_000)
        write = transitions.settle(record, ending, NOW)[1]
        if write is not None:
            states.add(write.record.state)
    return states


#: How a run may end: that of a body, or, by its state, that of a compensation.
OF_A_BODY = tuple(State)
ENDINGS = {
    State.RUNNING: OF_A_BODY,
    State.UNKNOWN: OF_A_BODY,  # held for lost, it may end after all
    State.COMPENSATING: (State.COMPENSATING, State.RELEASED, State.FAILED),
}


BEGIN_ANEW = ("running", "compensating")


def test_the_state_chart_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """What claims and endings do to records of each state is drawn, and nothing else is."""
    # Given
    monkeypatch.syspath_prepend(str(DOCS))
    from _ext import statechart  # type: ignore[import-not-found, unused-ignore]

    # When
    happens = {("absent", str(state)) for state in after_claims(None)}
    for state in State:
        for record in records(state):
            after = after_claims(record) | after_endings(record, ENDINGS.get(state, ()))
            happens |= {(str(state), str(new)) for new in after}
    # Then a state that leads to itself is drawn where a run begins anew
    changes = {pair for pair in happens if pair[0] != pair[1] or pair[0] in BEGIN_ANEW}
    assert changes == statechart.edges_of()
    assert set(statechart.STATES) == {"absent", *map(str, State)}


@pytest.mark.parametrize("state", State, ids=str)
def test_forget_leads_to_released_from_everywhere(state: State) -> None:
    """As the page says below the chart."""
    for record in records(state):
        write = transitions.forget(record, 1000, NOW)
        assert write is not None
        assert write.record.state is State.RELEASED
        assert write.record.token > record.token
