"""Every guard that is taken out."""

from __future__ import annotations

from tests.mutants.answered import ANSWERED
from tests.mutants.decisions import DECISIONS
from tests.mutants.edges import EDGES
from tests.mutants.freed import FREED
from tests.mutants.given_back import GIVEN_BACK
from tests.mutants.keys import KEYS
from tests.mutants.latest import LATEST
from tests.mutants.mutant import Mutant
from tests.mutants.operators import OPERATORS
from tests.mutants.outboxes import OUTBOXES
from tests.mutants.reserved import RESERVED
from tests.mutants.runs import RUNS
from tests.mutants.stores import STORES
from tests.mutants.usual import USUAL
from tests.mutants.waited import WAITED

__all__ = ["MUTANTS"]

MUTANTS: list[Mutant] = [
    *DECISIONS,
    *ANSWERED,
    *FREED,
    *RESERVED,
    *GIVEN_BACK,
    *USUAL,
    *STORES,
    *RUNS,
    *KEYS,
    *OPERATORS,
    *OUTBOXES,
    *EDGES,
    *WAITED,
    *LATEST,
]
