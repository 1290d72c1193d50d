"""The list of mutants that change nothing names mutants that there are."""

import pytest
from conftest import ROOT

from tests.endurance.equivalent_mutants import EQUIVALENT
from tests.endurance.mutants import mutants_of


@pytest.mark.slow
def test_every_equivalent_mutant_is_a_mutant_of_its_file():
    stale = []
    for target, reasons in EQUIVALENT.items():
        assert (ROOT / target).is_file(), target
        mutants = {(mutant.before, mutant.after) for mutant in mutants_of(target)}
        stale += [f"{target}: {known}" for known in reasons if known not in mutants]
    assert not stale, "\n".join(stale)
