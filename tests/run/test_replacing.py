"""Tests of other settings and inputs: results that are kept, refused or resumed, and what readers see meanwhile."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from shardpress.result.finished import INDEX, Result
from tests.support.cases import case
from tests.support.faulty import RecordingDisk
from tests.support.interruptions import (
    OTHER,
    STEPS,
    FullAfter,
    finished_stamps,
    stamps,
    undisturbed_features,
)
from tests.support.logged import mentions, resumes_encoding, reuses, reuses_anything
from tests.support.protocol import edit, invalid_entries, leftovers, run_seen_by_readers
from tests.support.standin import Workspace, features_of

pytestmark = pytest.mark.slow


def test_overwriting_reuses_results_that_still_fit(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out) == 0
    before = stamps(out)
    disk = RecordingDisk()
    assert workspace.run(out, *OTHER, "--on-drift", "clip", disk=disk) == 78
    assert mentions(caplog.text, f"output={out}", "seed 0 -> 1", "on_drift pass -> clip")
    assert disk.calls == []
    assert stamps(out) == before
    caplog.clear()
    assert workspace.run(out, *OTHER, "--overwrite") == 0
    assert reuses(caplog.text, "scan")
    assert features_of(out) == undisturbed_features(workspace, *OTHER)
    reused = before.items() & stamps(out).items()
    assert [name.partition("-")[0] for name, _ in reused if "/" in name] == ["work/scan"]
    caplog.clear()
    assert workspace.run(out, *OTHER, "--storage-dtype", "float16", "--overwrite") == 0
    assert "scan:" not in caplog.text
    assert "training:" not in caplog.text
    assert features_of(out) == undisturbed_features(workspace, *OTHER, "--storage-dtype", "float16")
    assert invalid_entries(out) == leftovers(out) == []


def test_an_interrupted_restart_keeps_the_earlier_result_and_resumes(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out, *STEPS) == 0
    result = Result.open(out)
    flags = [*STEPS, *OTHER]
    caplog.clear()
    assert workspace.run(out, *flags, "--restart", disk=FullAfter("part", 2)) == 74
    assert not reuses_anything(caplog.text)
    assert Result.open(out).digest == result.digest
    assert run_seen_by_readers(out) is not None

    caplog.clear()
    assert workspace.run(out, *flags) == 0, "no option is needed to resume"
    assert reuses(caplog.text, "training")
    assert resumes_encoding(caplog.text)
    assert features_of(out) == undisturbed_features(workspace, *flags)
    assert Result.open(out).facts.model.generation == 1
    assert invalid_entries(out) == leftovers(out) == []


EPOCHS = [*STEPS, "--epochs", "3"]


def test_only_expensive_work_of_other_settings_is_kept(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out, *EPOCHS, disk=FullAfter("scan", 1)) == 74
    for kind, n_named in (("checkpoint", 2), ("model", 1), ("part", 2)):
        with case(kind):
            assert workspace.run(out, *STEPS, disk=FullAfter(kind, n_named)) == 74
            before = finished_stamps(out)
            caplog.clear()
            assert workspace.run(out, *EPOCHS) == 78
            assert mentions(caplog.text, f"output={out}", "epochs 2 -> 3")
            assert stamps(out) == before
    assert workspace.run(out, *STEPS) == 0
    assert features_of(out) == undisturbed_features(workspace)


def test_features_do_not_replace_the_model_that_makes_them(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out) == 0
    before = stamps(out)
    for model in (out, out / INDEX):
        for flags in ([], ["--overwrite"], ["--restart"]):
            assert workspace.run(out, "--model", str(model), *flags) == 78
    assert stamps(out) == before


def test_changed_inputs_are_detected_and_discard_nothing(workspace: Workspace, out: Path) -> None:
    unfinished = out.with_name("unfinished")
    assert workspace.run(unfinished, disk=FullAfter("part", 2)) == 74
    assert workspace.run(out) == 0
    before = stamps(out)
    edit(workspace.shards / "2.h5")
    expected = undisturbed_features(workspace)
    assert workspace.run(unfinished) == 0
    assert features_of(unfinished) == expected
    assert leftovers(unfinished) == []
    assert workspace.run(out) == 78
    assert stamps(out) == before
    assert workspace.run(out, "--overwrite") == 0
    assert features_of(out) == expected


@pytest.mark.parametrize("is_finished", [True, False])
def test_overwrite_does_not_replace_results_of_other_inputs(workspace: Workspace, out: Path, is_finished: bool) -> None:
    """The option in a script refers to results of the same files, and not to others of the same names."""
    assert workspace.run(out, disk=None if is_finished else FullAfter("part", 2)) == (0 if is_finished else 74)
    before = finished_stamps(out)
    workspace.shards = shutil.copytree(workspace.shards, workspace.shards.with_name("next"))
    workspace.add_shard("0.h5", np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32))
    for flags in ([], ["--overwrite"], ["--overwrite", "--epochs", "1"]):
        assert workspace.run(out, *flags) == 78
    assert finished_stamps(out) == before
    assert workspace.run(out, "--restart") == 0
    assert features_of(out) == undisturbed_features(workspace)
