"""Tests of output directories of version 0.1.0: a finished one is complete, an unfinished one is resumed in any stage.

`version_0.1.0.tar.xz` contains shards of `tests.support.standin` and output directories of runs over them, without
locks and logs: one that finished, and one each that was killed after the scan, in training, in encoding, and during
publication.
"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from shardpress.features import open_features
from shardpress.run import fingerprints
from tests.support.faulty import RecordingDisk
from tests.support.logged import COMPLETE, mentions, resumed_step, resumes_encoding, reuses
from tests.support.soak_protocol import invalid_entries, leftovers, records, run_seen_by_readers
from tests.support.standin import Workspace, features_of, install

STEPS = ("--checkpoint-minutes", "0")

# Stages whose results are reused, by directory.
REUSED = {
    "scanned": ["scan"],
    "training": ["scan"],
    "encoding": ["training"],
    "finishing": ["training"],
}


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Extract the shards and the output directories of version 0.1.0 next to them."""
    install(monkeypatch)
    runs = Workspace(tmp_path)
    with tarfile.open(Path(__file__).with_name("version_0.1.0.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    for path in runs.shards.iterdir():
        os.utime(path, ns=(0, 10**18))
    request = json.loads((tmp_path / "finished" / "run.json").read_text())
    versions = request["training"]["versions"]
    monkeypatch.setattr(fingerprints, "version", versions.get)  # other versions of libraries would train another model
    return runs


@pytest.mark.process
def test_a_finished_run_is_complete_and_unchanged(earlier: Workspace) -> None:
    output = earlier.folder / "finished"
    features = open_features(output).features.compute()
    assert features.shape == (55, 2)
    assert np.isfinite(features).all()
    bits = features_of(output)
    assert earlier.run(output, *STEPS) == 0  # notes that the shards were copied, which changes their ctime
    recording = RecordingDisk()
    assert earlier.run(output, *STEPS, disk=recording) == 0
    assert recording.calls == []
    assert features_of(output) == bits
    assert mentions((output / "run.log").read_text(), COMPLETE, 55, 4, 2)


def test_a_finished_run_can_be_replaced(earlier: Workspace) -> None:
    output = earlier.folder / "finished"
    assert earlier.run(output, *STEPS, "--seed", "1", "--overwrite") == 0
    assert run_seen_by_readers(output) is not None
    assert invalid_entries(output) == leftovers(output) == []


@pytest.mark.parametrize("stage", REUSED)
def test_an_unfinished_run_is_resumed(earlier: Workspace, stage: str, caplog: pytest.LogCaptureFixture) -> None:
    output = earlier.folder / stage
    before = {record["entry"]["file"] for record in records(output)}
    assert earlier.run(output, *STEPS) == 0
    for stage_name in REUSED[stage]:
        assert reuses(caplog.text, stage_name)
    assert (resumed_step(caplog.text) is not None) == (stage == "training")
    assert resumes_encoding(caplog.text) == (stage == "encoding")
    if stage in ("encoding", "finishing"):
        assert before <= {record["entry"]["file"] for record in records(output)}

    assert invalid_entries(output) == leftovers(output) == []
    found = open_features(output).features.compute()
    expected = open_features(earlier.folder / "finished").features.compute()
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # another processor may round differently

    bits = features_of(output)
    recording = RecordingDisk()
    assert earlier.run(output, *STEPS, disk=recording) == 0
    assert recording.calls == []
    assert features_of(output) == bits


@pytest.mark.process
def test_a_finished_run_can_be_appended_to(earlier: Workspace) -> None:
    output = earlier.folder / "finished"
    before = open_features(output).features.compute()
    rows = np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32)
    earlier.add_shard("3.h5", rows)
    assert earlier.run(output, *STEPS, "--append") == 0
    opened = open_features(output)
    np.testing.assert_array_equal(opened.features[:55].compute(), before)
    assert opened.extras["append_id"].compute().tolist() == [0] * 55 + [1] * 7
    assert run_seen_by_readers(output) is not None
    assert invalid_entries(output) == leftovers(output) == []
