"""An output directory that the version before has made: a finished one is complete, an unfinished one goes on.

`version_before.zip` holds shards of `tests.support.standin`, and what three runs over them had left when a record that
was written alone still had a form of its own: one that had finished, one that was stopped in its encoding, one in its
training. Their locks and logs are not in it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.features import open_features
from pipeline.run import fingerprints
from tests.support.faulty import Watched
from tests.support.soak_protocol import broken_promises, leftovers, records, seen_by_all
from tests.support.standin import Night, features_of, install

STEPS = ("--checkpoint-minutes", "0")


@pytest.fixture
def night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Night:
    """Shards as they were then, and beside them what runs had left."""
    install(monkeypatch)
    night = Night(tmp_path)
    shutil.unpack_archive(Path(__file__).with_name("version_before.zip"), tmp_path)
    for path in night.shards.iterdir():
        os.utime(path, ns=(0, 10**18))
    request = json.loads((tmp_path / "finished" / "run.json").read_text())
    monkeypatch.setattr(
        fingerprints, "version", request["training"]["versions"].get
    )  # else the training is another one
    return night


def files_named(output: Path) -> set[str]:
    """The results that records name."""
    return {record["entry"]["file"] for record in records(output)}


@pytest.mark.process
def test_a_finished_run_is_complete_and_stays_as_it_is(night: Night, caplog: pytest.LogCaptureFixture) -> None:
    output, watched = night.folder / "finished", Watched()
    features = open_features(output).features.compute()
    assert features.shape == (55, 2)
    assert np.isfinite(features).all()
    assert night.run(output, *STEPS, disk=watched) == 0
    assert watched.calls == []
    assert "Already complete: 55 rows x 4 columns -> 2 features" in (output / "run.log").read_text()


def test_a_finished_run_is_replaced(night: Night) -> None:
    output = night.folder / "finished"
    assert night.run(output, *STEPS, "--seed", "1", "--overwrite") == 0
    assert seen_by_all(output) is not None
    assert broken_promises(output) == leftovers(output) == []
    assert all((output / name).is_symlink() for name in ("manifest.json", "model.h5", "index.h5", "encoder.npz"))


def test_an_unfinished_encoding_goes_on(night: Night, caplog: pytest.LogCaptureFixture) -> None:
    output = night.folder / "encoding"
    before = files_named(output)
    assert night.run(output, *STEPS) == 0
    assert "training: an earlier run has finished it" in caplog.text
    assert "encoding: going on, an earlier run has committed 36 rows in 3 parts" in caplog.text
    check(night, output, night.folder / "finished")
    assert before <= files_named(output)


def test_an_unfinished_training_goes_on(night: Night, caplog: pytest.LogCaptureFixture) -> None:
    output = night.folder / "training"
    assert night.run(output, *STEPS) == 0
    assert "scan: an earlier run has finished it" in caplog.text
    assert "training: going on behind step 3 of an earlier run" in caplog.text
    assert night.run(night.folder / "new", *STEPS) == 0  # then the best epoch was that of three rows of validation
    check(night, output, night.folder / "new")


def check(night: Night, output: Path, other: Path) -> None:
    """As good as another one, and a later run finds nothing to do."""
    assert broken_promises(output) == leftovers(output) == []
    found, then = (open_features(folder).features.compute() for folder in (output, other))
    np.testing.assert_allclose(found, then, rtol=1e-5)  # another processor may round otherwise
    bits = features_of(output)
    watched = Watched()
    assert night.run(output, *STEPS, disk=watched) == 0
    assert watched.calls == []
    assert features_of(output) == bits
