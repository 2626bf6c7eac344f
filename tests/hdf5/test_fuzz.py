"""Tests with damaged files: each is read or refused with a message, within bounds, and no other file is opened."""

import pytest

from tests.support import hostile
from tests.support.checksummed import repair, structures_of
from tests.support.fuzzing import checksummed, fuzz, make_corpus

pytestmark = pytest.mark.process


def test_damaged_files_are_read_or_refused_in_bounds():
    outcome = fuzz(100, seed=1)
    assert outcome.faults == []
    assert sum(outcome.counts.values()) == 100
    # A master may name a missing file, or one outside the allowed folder.
    kinds = {kind.partition(":")[0] for kind in outcome.counts}
    assert {"accepted", "DataError"} <= kinds <= {"accepted", "DataError", "NoInput", "NotPermitted"}
    assert 7 < outcome.counts["accepted"] < 70
    assert outcome.n_opens == 0
    assert outcome.n_bytes < 2**27
    most = outcome.most
    assert (most.n_calls < 2**16, most.n_reads < 2**10, most.n_bytes < 2**22) == (True, True, True), most


def test_files_with_repaired_checksums_are_read_or_refused():
    """Each change reaches the parser, because the checksum is right."""
    outcome = fuzz(40, seed=2, in_structures=True)
    assert outcome.faults == []
    assert sum(outcome.counts.values()) == 40
    assert outcome.counts["accepted"] > 4
    assert sum(count for kind, count in outcome.counts.items() if kind != "accepted") > 16
    assert outcome.n_opens == 0
    assert outcome.n_bytes < 2**27


def test_checksummed_structures_of_all_kinds_are_found(tmp_path):
    """The structures include all kinds that h5py writes, and all of them are complete."""
    corpus = make_corpus(tmp_path, hostile.secret(tmp_path))
    found = {each.name for content, structures in checksummed(corpus) for each in structures}
    trees_and_heaps = {"BTHD", "BTLF", "BTIN", "FRHP", "FHDB", "FHIB"}
    assert found >= {"HDF", "OHDR", "OCHK", "EAHD", "EADB", "FAHD", "FADB"} | trees_and_heaps
    content, structures = checksummed(corpus)[-1]
    changed = bytearray(content)
    for each in structures:
        changed[each.stop - 1] ^= 1
    repair(changed, structures)
    still_right = {each.place for each in structures_of(bytes(changed))}
    assert {each.place for each in structures} <= still_right
