"""Tests with damaged files: each is read or refused with a message, within bounds, and no other file is opened."""

import pytest

from tests.support.cases import ALL_CASES
from tests.support.fuzzing import fuzz

pytestmark = pytest.mark.process


def test_damaged_files_are_read_or_refused_in_bounds():
    n = 20_000 if ALL_CASES else 140
    outcome = fuzz(n, seed=1)
    assert outcome.faults == []
    assert outcome.counts.total() == n
    # A master may name a missing file, or one outside the allowed folder.
    refusals = {"DataError", "Refusal", "NoInput", "NotPermitted"}
    assert {"accepted", "DataError"} <= set(outcome.counts) <= {"accepted", *refusals}
    assert 0.1 < outcome.counts["accepted"] / n < 0.7
    assert outcome.n_opens == 0
    assert outcome.n_bytes < 2**27
