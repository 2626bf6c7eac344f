"""Tests with damaged files: each is read or refused with a message, within bounds, and no other file is opened."""

import pytest

from tests.support.fuzzing import fuzz

pytestmark = pytest.mark.process


def test_damaged_files_are_read_or_refused_in_bounds():
    outcome = fuzz(140, seed=1)
    assert outcome.faults == []
    assert outcome.counts.total() == 140
    # A master may name a missing file, or one outside the allowed folder.
    assert {"accepted", "DataError"} <= set(outcome.counts) <= {"accepted", "DataError", "NoInput", "NotPermitted"}
    assert 10 < outcome.counts["accepted"] < 100
    assert outcome.n_opens == 0
    assert outcome.n_bytes < 2**27
