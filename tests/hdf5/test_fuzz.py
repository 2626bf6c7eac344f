"""Damaged files: each one is read or refused in words, in bounds, and none reaches another file."""

import pytest

from tests.support.fuzzing import fuzz

pytestmark = pytest.mark.process


def test_damaged_files_are_read_or_refused_and_reach_nothing_else():
    outcome = fuzz(300, seed=1)
    assert outcome.faults == []
    assert sum(outcome.counts.values()) == 300
    # A master may name a file that is not there, or one outside the folder that may be followed.
    kinds = {kind.partition(":")[0] for kind in outcome.counts}
    assert {"accepted", "DataError"} <= kinds <= {"accepted", "DataError", "NoInput", "NotPermitted"}
    assert 20 < outcome.counts["accepted"] < 200
    assert outcome.n_opens == 0
    assert outcome.n_bytes < 2**27
    most = outcome.most
    assert (most.n_calls < 2**16, most.n_reads < 2**10, most.n_bytes < 2**22) == (True, True, True), most
