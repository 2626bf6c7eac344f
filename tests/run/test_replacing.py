"""Tests of other settings and inputs: results that are kept, refused or resumed, and what readers see meanwhile."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import h5py
import numpy as np
import pytest

from shardpress.errors import DataError
from shardpress.features import open_features
from shardpress.result import INDEX, Result, load_model
from shardpress.run import inputs
from tests.support import standin
from tests.support.faulty import RecordingDisk
from tests.support.helpers import write_shard
from tests.support.interruptions import (
    OTHER,
    STEPS,
    FullAfter,
    finished_stamps,
    parts,
    results,
    stamps,
    undisturbed_features,
)
from tests.support.logged import differs, mentions, resumed_step, resumes_encoding, reuses, reuses_anything
from tests.support.soak_protocol import edit, invalid_entries, leftovers, records, run_seen_by_readers
from tests.support.standin import Workspace, features_of

pytestmark = pytest.mark.slow


def test_a_finished_run_is_only_replaced_with_overwrite(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out) == 0
    before = stamps(out)
    disk = RecordingDisk()
    assert workspace.run(out, "--epochs", "3", "--on-drift", "clip", disk=disk) == 78
    assert mentions(caplog.text, "ConfigError", f"output={out}", "epochs 2 -> 3", "on_drift pass -> clip")
    assert mentions(caplog.text, "--output", "--overwrite", "--restart")
    assert disk.calls == []
    assert stamps(out) == before


def test_overwriting_reuses_results_that_still_fit(
    workspace: Workspace, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out) == 0
    before = stamps(out)
    (scan_file,) = (name for name in before if name.startswith("work/scan"))
    caplog.clear()
    assert workspace.run(out, *OTHER, "--overwrite") == 0
    assert mentions(caplog.text, f"output={out}", "seed 0 -> 1")
    assert reuses(caplog.text, "scan")
    assert stamps(out)[scan_file] == before[scan_file]
    assert features_of(out) == expected(*OTHER)
    assert not [name for name in before if name.startswith("parts/") and name in stamps(out)]
    assert invalid_entries(out) == leftovers(out) == []


@pytest.mark.parametrize("flags", [["--on-drift", "clip"], ["--storage-dtype", "float16"], ["--compression", "gzip"]])
def test_settings_of_the_encoding_keep_the_model(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, flags: list[str]
) -> None:
    assert workspace.run(out) == 0
    caplog.clear()
    assert workspace.run(out, *flags, "--overwrite") == 0
    assert "scan:" not in caplog.text
    assert "training:" not in caplog.text
    assert features_of(out) == undisturbed_features(workspace, *flags)
    assert invalid_entries(out) == leftovers(out) == []


def test_restarting_reuses_nothing(workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert workspace.run(out) == 0
    expected = features_of(out)
    before = stamps(out)
    caplog.clear()
    assert workspace.run(out, "--restart") == 0
    assert not reuses_anything(caplog.text)
    assert features_of(out) == expected
    assert not results(before).keys() & stamps(out).keys()
    assert Result.open(out).facts.generation == 1


@pytest.mark.parametrize(("kind", "n_named"), [("checkpoint", 2), ("part", 2)])
def test_an_interrupted_restart_keeps_the_earlier_result_and_resumes(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, kind: str, n_named: int
) -> None:
    assert workspace.run(out, *STEPS) == 0
    result = Result.open(out)
    flags = [*STEPS, *OTHER]
    assert workspace.run(out, *flags, "--restart", disk=FullAfter(kind, n_named)) == 74
    assert Result.open(out).digest == result.digest
    assert run_seen_by_readers(out) is not None
    copy = out.with_name("copy")
    shutil.copytree(out, copy)

    caplog.clear()
    assert workspace.run(out, *flags) == 0, "no option is needed to resume"
    assert resumed_step(caplog.text) == (2 if kind == "checkpoint" else None)
    assert reuses(caplog.text, "training") == resumes_encoding(caplog.text) == (kind == "part")
    assert features_of(out) == undisturbed_features(workspace, *flags)
    assert Result.open(out).facts.generation == 1
    assert invalid_entries(out) == leftovers(out) == []

    workspace.add_shard("z.h5", np.ones((6, 4), np.float32))
    assert workspace.run(copy, *STEPS, "--append") == 0, "it extends the published result"
    assert Result.open(copy).encoder == result.encoder
    assert {part.file for part in result.parts} < set(parts(copy))
    assert invalid_entries(copy) == leftovers(copy) == []


def test_an_unfinished_run_can_switch_settings_and_back(
    workspace: Workspace, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out, disk=FullAfter("part", 2)) == 74
    first = {name for name in finished_stamps(out) if name.startswith("parts/part")}
    assert len(first) == 2
    caplog.clear()
    assert workspace.run(out, *OTHER, "--overwrite", disk=FullAfter("part", 1)) == 74
    assert differs(caplog.text)
    assert mentions(caplog.text, "seed 0 -> 1")
    assert reuses(caplog.text, "scan")
    caplog.clear()
    assert workspace.run(out, "--overwrite") == 0
    assert mentions(caplog.text, "seed 1 -> 0")
    assert reuses(caplog.text, "training")
    assert resumes_encoding(caplog.text)
    assert first <= set(parts(out))
    assert features_of(out) == expected()
    assert leftovers(out) == []


def test_an_interrupted_replacement_keeps_the_old_results(
    workspace: Workspace, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out) == 0
    assert workspace.run(out, *OTHER, "--overwrite", disk=FullAfter("part", 2)) == 74
    assert features_of(out) == expected()
    before = finished_stamps(out)
    assert workspace.run(out) == 0
    assert stamps(out) == before, "the new run may resume"
    caplog.clear()
    assert workspace.run(out, *OTHER, "--overwrite") == 0
    assert resumes_encoding(caplog.text)
    assert features_of(out) == expected(*OTHER)


EPOCHS = [*STEPS, "--epochs", "3"]
N_STEPS = 2  # of an epoch


@pytest.mark.parametrize(
    ("kind", "n_named", "facts"),
    [
        ("checkpoint", 2, ("0 of 2", 2)),
        ("model", 1, ("trained",)),
        ("part", 2, ("trained", 28)),
    ],
)
def test_changed_settings_do_not_discard_a_started_training(
    workspace: Workspace,
    out: Path,
    expected: Callable[..., bytes],
    caplog: pytest.LogCaptureFixture,
    kind: str,
    n_named: int,
    facts: tuple[str | int, ...],
) -> None:
    assert workspace.run(out, *STEPS, disk=FullAfter(kind, n_named)) == 74
    before = finished_stamps(out)
    caplog.clear()
    assert workspace.run(out, *EPOCHS) == 78
    assert mentions(caplog.text, "ConfigError", f"output={out}", *facts, "epochs 2 -> 3")
    assert stamps(out) == before
    assert workspace.run(out, *STEPS) == 0
    assert features_of(out) == expected()


def test_changed_inputs_do_not_discard_an_unfinished_run(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out, disk=FullAfter("part", 2)) == 74
    (workspace.shards / "0.h5").rename(workspace.shards / "mine.h5")
    for flags in ([], ["--overwrite"]):
        caplog.clear()
        assert workspace.run(out, *flags) == 78
        assert mentions(caplog.text, f"output={out}", "trained", 28, "0.h5", "--restart")
    assert workspace.run(out, "--restart") == 0
    assert features_of(out) == undisturbed_features(workspace)


def test_a_training_without_a_checkpoint_can_be_discarded(
    workspace: Workspace, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out, *STEPS, "--optimizer", "momentum", disk=FullAfter("scan", 1)) == 74
    assert workspace.run(out, *STEPS) == 0
    assert mentions(caplog.text, "optimizer momentum -> adam")
    assert features_of(out) == expected()


class Diverging(standin.TrainingStep):
    """Takes a step to infinity in the second epoch."""

    def take_one(self, minibatch: np.ndarray, learning_rate: float, with_cost: bool) -> float | None:
        self.n_steps = getattr(self, "n_steps", 0) + 1
        rate = 1e30 if self.n_steps > N_STEPS else learning_rate
        return super().take_one(minibatch, rate, with_cost)


def test_a_diverged_training_can_be_replaced_but_not_the_next_one(
    workspace: Workspace,
    out: Path,
    expected: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    step = sys.modules["shardpress_kernels.step"]
    with monkeypatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(step, "TrainingStep", Diverging)
        assert workspace.run(out, *STEPS, "--optimizer", "momentum") == 65
        assert records(out)[-1]["key"] == "diverged"
    copy = out.with_name("copy")
    shutil.copytree(out, copy)
    assert workspace.run(copy, *STEPS) == 0, "no --overwrite is needed"
    assert features_of(copy) == expected()
    assert invalid_entries(copy) == leftovers(copy) == []

    assert workspace.run(out, *STEPS, disk=FullAfter("checkpoint", 3)) == 74
    caplog.clear()
    assert workspace.run(out, *EPOCHS) == 78
    assert mentions(caplog.text, "ConfigError", f"output={out}", "checkpoint", "epochs 2 -> 3")


def test_the_last_line_names_the_progress_of_the_checkpoint(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out, *STEPS, disk=FullAfter("checkpoint", 3)) == 74
    assert mentions(caplog.records[-1].message, "scan", "0 of 2", "step 3", "0 of 55")


def test_features_do_not_replace_the_model_that_makes_them(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out) == 0
    before = stamps(out)
    for model in (out, out / INDEX):
        for flags in ([], ["--overwrite"], ["--restart"]):
            caplog.clear()
            assert workspace.run(out, "--model", str(model), *flags) == 78
            assert mentions(caplog.text, "ConfigError", f"output={out}", "model")
    assert stamps(out) == before


@pytest.mark.parametrize("make", [os.link, os.symlink])
def test_links_to_the_features_of_the_output_are_no_input(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, make: Callable[[Path, Path], None]
) -> None:
    """The run would replace its own input."""
    assert workspace.run(out) == 0
    before = stamps(out)
    workspace.shards = workspace.shards.with_name("other names")
    workspace.shards.mkdir()
    make(out / parts(out)[0], workspace.shards / "x.h5")
    if make is os.symlink:
        workspace.shards /= "x.h5"  # links that lead out of a directory are always refused
    for flags in ([], ["--restart"]):
        caplog.clear()
        assert workspace.run(out, "--dataset", "features", *flags) == 78
        assert f"output={out}" in caplog.text
        assert f"file={workspace.shards}" in caplog.text
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
    "removed": (lambda workspace: (workspace.shards / "0.h5").unlink(), ("0.h5",)),
}


@pytest.mark.parametrize("kind", [kind for kind in INPUTS if kind != "touched"])
def test_a_changed_input_of_a_finished_run_is_detected(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    change, facts = INPUTS[kind]
    assert workspace.run(out) == 0
    before = stamps(out)
    change(workspace)
    assert workspace.run(out) == 78
    assert mentions(caplog.text, "ConfigError", *facts)
    assert stamps(out) == before
    assert workspace.run(out, "--restart" if kind == "removed" else "--overwrite") == 0
    assert features_of(out) == undisturbed_features(workspace)


def test_a_touched_input_is_read_once_and_changes_nothing(
    workspace: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert workspace.run(out) == 0
    before = stamps(out)
    touch(workspace)
    n_digests = []
    for _ in range(2):
        with monkeypatch.context() as patch:
            find_content = Mock(side_effect=inputs.with_content)
            patch.setattr(inputs, "with_content", find_content)
            assert workspace.run(out) == 0
        n_digests.append(find_content.call_count)
    assert n_digests == [1, 0]
    journal = "work/journal.jsonl"
    assert {**stamps(out), journal: None} == {**before, journal: None}


def test_an_edit_that_sizes_hide_is_found_by_the_next_run(workspace: Workspace, out: Path) -> None:
    """The program must not take the digest of earlier rows for that of the edited file."""
    assert workspace.run(out) == 0
    edit(workspace.shards / "2.h5")
    assert workspace.run(out, "--verify", "sizes") == 0
    workspace.add_shard("3.h5", np.zeros((5, 4), np.float32))
    assert workspace.run(out, "--append", "--verify", "sizes") == 0
    assert workspace.run(out) == 78
    assert workspace.run(out, "--append") == 0
    with h5py.File(workspace.shards / "2.h5") as file:
        expected = load_model(out).encode(file["X"][:])
    assert np.allclose(open_features(out).features[20:55], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["file", "folder", "copies", "swapped"])
def test_the_input_can_be_moved(workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """Only the index is written again, with the new paths. The order of the rows stays."""
    assert workspace.run(out) == 0
    before = stamps(out)
    features = features_of(out)
    folder = workspace.shards
    names = ["0.h5", "1.h5", "2.h5"]
    if kind == "file":
        names[0] = "mine.h5"
        (folder / "0.h5").rename(folder / "mine.h5")
    elif kind == "folder":
        workspace.shards = folder.rename(folder.with_name("moved"))
    elif kind == "copies":
        workspace.shards = folder.with_name("copies")
        workspace.shards.mkdir()
        for path in folder.iterdir():
            (workspace.shards / path.name).write_bytes(path.read_bytes())
    else:
        names = ["2.h5", "1.h5", "0.h5"]
        (folder / "0.h5").rename(folder / "x")
        (folder / "2.h5").rename(folder / "0.h5")
        (folder / "x").rename(folder / "2.h5")
    caplog.clear()
    assert workspace.run(out) == 0
    assert "training:" not in caplog.text
    assert reuses(caplog.text, "encoding")
    assert features_of(out) == features
    assert {name for name in before if name.startswith("parts/")} <= stamps(out).keys()
    paths = [str(workspace.shards / name) for name in names]
    result = Result.open(out)
    assert [shard.path for shard in result.facts.request.shards] == paths
    assert result.facts.appends == []
    assert result.facts.verification["n_rows"] == 55
    after = stamps(out)
    disk = RecordingDisk()
    assert workspace.run(out, disk=disk) == 0
    assert disk.calls == []
    assert stamps(out) == after


@pytest.mark.parametrize("folder", ["shards", "next"])
def test_overwrite_does_not_replace_results_of_other_inputs(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, folder: str
) -> None:
    """The option in a script refers to results of the same files, and not to others of the same names."""
    assert workspace.run(out) == 0
    before = stamps(out)
    disk = RecordingDisk()
    rows = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
    if folder == "next":
        workspace.shards = shutil.copytree(workspace.shards, workspace.shards.with_name("next"))
        name = "0.h5"
    else:
        (workspace.shards / "0.h5").unlink()
        name = "mine.h5"
    workspace.add_shard(name, rows)
    for flags in ([], ["--overwrite"], ["--overwrite", "--epochs", "1"]):
        caplog.clear()
        assert workspace.run(out, *flags, disk=disk) == 78
        assert mentions(caplog.text, f"output={out}", "0.h5", name, "--output", "--restart")
    assert disk.calls == []
    assert stamps(out) == before
    assert workspace.run(out, "--restart") == 0
    assert features_of(out) == undisturbed_features(workspace)


@pytest.mark.parametrize("kind", [kind for kind in INPUTS if kind != "removed"])
def test_a_changed_input_of_an_unfinished_run_is_detected(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    change, facts = INPUTS[kind]
    assert workspace.run(out, disk=FullAfter("part", 2)) == 74
    change(workspace)
    caplog.clear()
    assert workspace.run(out) == 0
    assert differs(caplog.text)
    assert mentions(caplog.text, *facts)
    assert not reuses(caplog.text, "scan")
    assert reuses(caplog.text, "training") == (kind == "touched"), "the scan finds the same rows"
    assert features_of(out) == undisturbed_features(workspace)
    assert leftovers(out) == []


# -- readers -----------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_readers_see_whole_results_while_runs_replace_them(workspace: Workspace, out: Path) -> None:
    whole = set()
    for flags in ([], OTHER):
        assert workspace.run(out, *flags, "--overwrite") == 0
        whole.add(open_features(out).features.compute().tobytes())
    assert len(whole) == 2
    over = threading.Event()
    visible = set()
    wrong = []

    def read() -> None:
        while not over.is_set() and not wrong:
            before = None
            try:
                before = Result.open(out)
                visible.add(open_features(out).features.compute().tobytes())
            except (DataError, OSError) as error:
                # A part may be removed while it is read, but only if the index already names other parts.
                if before is not None and Result.open(out).digest == before.digest:
                    wrong.append(error)
            except BaseException as error:
                wrong.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        n_runs = 0
        while not wrong and (n_runs < 6 or visible != whole):
            assert workspace.run(out, *([], OTHER)[n_runs % 2], "--overwrite") == 0
            n_runs += 1
    finally:
        over.set()
        reader.join()
    assert wrong == []
    assert visible == whole
