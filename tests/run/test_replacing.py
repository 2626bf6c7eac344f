"""Tests of other settings and inputs: results that are kept, refused or resumed, and what readers see meanwhile."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shardpress.result import INDEX, Result
from tests.support import standin
from tests.support.cases import case
from tests.support.faulty import RecordingDisk
from tests.support.helpers import write_shard
from tests.support.interruptions import (
    OTHER,
    STEPS,
    FullAfter,
    finished_stamps,
    parts,
    stamps,
    undisturbed_features,
)
from tests.support.logged import differs, mentions, resumed_step, resumes_encoding, reuses, reuses_anything
from tests.support.protocol import edit, invalid_entries, leftovers, records, run_seen_by_readers
from tests.support.standin import Workspace, features_of

pytestmark = pytest.mark.slow


def test_overwriting_reuses_results_that_still_fit(
    workspace: Workspace, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
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
    assert features_of(out) == expected(*OTHER)
    reused = before.items() & stamps(out).items()
    assert [name.partition("-")[0] for name, _ in reused if "/" in name] == ["work/scan"]
    caplog.clear()
    assert workspace.run(out, *OTHER, "--storage-dtype", "float16", "--overwrite") == 0
    assert "scan:" not in caplog.text
    assert "training:" not in caplog.text
    assert features_of(out) == expected(*OTHER, "--storage-dtype", "float16")
    assert invalid_entries(out) == leftovers(out) == []


@pytest.mark.parametrize("kind", ["checkpoint", "part"])
def test_an_interrupted_restart_keeps_the_earlier_result_and_resumes(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    assert workspace.run(out, *STEPS) == 0
    result = Result.open(out)
    flags = [*STEPS, *OTHER]
    caplog.clear()
    assert workspace.run(out, *flags, "--restart", disk=FullAfter(kind, 2)) == 74
    assert not reuses_anything(caplog.text)
    assert Result.open(out).digest == result.digest
    assert run_seen_by_readers(out) is not None

    caplog.clear()
    assert workspace.run(out, *flags) == 0, "no option is needed to resume"
    assert resumed_step(caplog.text) == (2 if kind == "checkpoint" else None)
    assert reuses(caplog.text, "training") == resumes_encoding(caplog.text) == (kind == "part")
    assert features_of(out) == undisturbed_features(workspace, *flags)
    assert Result.open(out).facts.generation == 1
    assert invalid_entries(out) == leftovers(out) == []


def test_an_unfinished_run_can_switch_settings_and_back(
    workspace: Workspace, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out, disk=FullAfter("part", 2)) == 74
    first = {name for name in finished_stamps(out) if name.startswith("parts/part")}
    assert len(first) == 2
    caplog.clear()
    assert workspace.run(out, *OTHER, "--overwrite", disk=FullAfter("part", 1)) == 74
    assert differs(caplog.text)
    assert reuses(caplog.text, "scan")
    caplog.clear()
    assert workspace.run(out, "--overwrite") == 0
    assert reuses(caplog.text, "training")
    assert resumes_encoding(caplog.text)
    assert first <= set(parts(out))
    assert features_of(out) == expected()
    assert leftovers(out) == []


EPOCHS = [*STEPS, "--epochs", "3"]
N_STEPS = 2  # of an epoch


def test_only_expensive_work_of_other_settings_is_kept(
    workspace: Workspace, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
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
    assert features_of(out) == expected()


def test_changed_inputs_do_not_discard_an_unfinished_run(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out, disk=FullAfter("part", 2)) == 74
    (workspace.shards / "0.h5").rename(workspace.shards / "mine.h5")
    for flags in ([], ["--overwrite"]):
        assert workspace.run(out, *flags) == 78
    assert workspace.run(out, "--restart") == 0
    assert features_of(out) == undisturbed_features(workspace)


class Diverging(standin.TrainingStep):
    """Takes a step to infinity in the second epoch."""

    def take_one(self, minibatch: np.ndarray, learning_rate: float, with_cost: bool) -> float | None:
        self.n_steps = getattr(self, "n_steps", 0) + 1
        rate = 1e30 if self.n_steps > N_STEPS else learning_rate
        return super().take_one(minibatch, rate, with_cost)


def test_a_diverged_training_can_be_replaced_but_not_the_next_one(
    workspace: Workspace, out: Path, expected: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(sys.modules["shardpress_kernels.step"], "TrainingStep", Diverging)
        assert workspace.run(out, *STEPS, "--optimizer", "momentum") == 65
    assert records(out)[-1]["key"] == "diverged"
    assert workspace.run(out, *STEPS, disk=FullAfter("checkpoint", 3)) == 74, "no --overwrite is needed"
    assert workspace.run(out, *EPOCHS) == 78
    assert workspace.run(out, *STEPS) == 0
    assert features_of(out) == expected()
    assert invalid_entries(out) == leftovers(out) == []


def test_features_do_not_replace_the_model_that_makes_them(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out) == 0
    before = stamps(out)
    for model in (out, out / INDEX):
        for flags in ([], ["--overwrite"], ["--restart"]):
            assert workspace.run(out, "--model", str(model), *flags) == 78
    assert stamps(out) == before


def touch(workspace: Workspace) -> None:
    path = workspace.shards / "2.h5"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def rewrite(workspace: Workspace) -> None:
    write_shard(workspace.shards / "2.h5", np.ones((30, 4), np.float32), extras={"y": np.arange(30)})


INPUTS: dict[str, tuple[Callable[[Workspace], object], tuple[str | int, ...]]] = {
    "touched": (touch, ("2.h5", "time")),
    "rewritten": (rewrite, ("2.h5", 35, 30)),
    "edited in place": (lambda workspace: edit(workspace.shards / "2.h5"), ("2.h5", "time")),
    "added": (lambda workspace: workspace.add_shard("3.h5", np.zeros((5, 4), np.float32)), ("3.h5",)),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_a_changed_input_is_detected(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    change, facts = INPUTS[kind]
    unfinished = out.with_name("unfinished")
    assert workspace.run(unfinished, disk=FullAfter("part", 2)) == 74
    assert workspace.run(out) == 0
    before = stamps(out)
    change(workspace)
    expected = undisturbed_features(workspace)
    caplog.clear()
    assert workspace.run(unfinished) == 0
    assert differs(caplog.text)
    assert mentions(caplog.text, *facts)
    assert not reuses(caplog.text, "scan")
    assert reuses(caplog.text, "training") == (kind == "touched"), "the scan finds the same rows"
    assert features_of(unfinished) == expected
    assert leftovers(unfinished) == []
    if kind != "touched":
        caplog.clear()
        assert workspace.run(out) == 78
        assert mentions(caplog.text, *facts)
        assert stamps(out) == before
        assert workspace.run(out, "--overwrite") == 0
    assert features_of(out) == expected


@pytest.mark.parametrize("folder", ["shards", "next"])
def test_overwrite_does_not_replace_results_of_other_inputs(workspace: Workspace, out: Path, folder: str) -> None:
    """The option in a script refers to results of the same files, and not to others of the same names."""
    assert workspace.run(out) == 0
    before = stamps(out)
    name = "0.h5"
    if folder == "next":
        workspace.shards = shutil.copytree(workspace.shards, workspace.shards.with_name("next"))
    else:
        (workspace.shards / "0.h5").unlink()
        name = "mine.h5"
    workspace.add_shard(name, np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32))
    for flags in ([], ["--overwrite"], ["--overwrite", "--epochs", "1"]):
        assert workspace.run(out, *flags) == 78
    assert stamps(out) == before


@pytest.mark.parametrize("kind", ["copies", "swapped"])
def test_the_input_can_be_moved(workspace: Workspace, out: Path, kind: str) -> None:
    """Only the index is written again, with the new paths. The order of the rows stays."""
    assert workspace.run(out) == 0
    before = {name: stamp for name, stamp in stamps(out).items() if name.startswith("parts/")}
    features = features_of(out)
    folder = workspace.shards
    names = ["0.h5", "1.h5", "2.h5"]
    if kind == "copies":
        workspace.shards = shutil.copytree(folder, folder.with_name("copies"), copy_function=shutil.copyfile)
    else:
        names.reverse()
        (folder / "0.h5").rename(folder / "x")
        (folder / "2.h5").rename(folder / "0.h5")
        (folder / "x").rename(folder / "2.h5")
    assert workspace.run(out) == 0
    assert before.items() <= stamps(out).items()
    assert features_of(out) == features
    result = Result.open(out)
    assert [shard.path for shard in result.facts.request.shards] == [str(workspace.shards / name) for name in names]
    assert result.facts.appends == []
    assert result.facts.verification["n_rows"] == 55
    disk = RecordingDisk()
    assert workspace.run(out, disk=disk) == 0
    assert disk.calls == []
