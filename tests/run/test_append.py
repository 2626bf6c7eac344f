"""Tests of ``--append``: only new and changed files are encoded, and the results change in one commit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.classify.compare import Options, compare_representations
from pipeline.encoding import encode as encode_module
from pipeline.errors import DataError
from pipeline.features import open_features
from pipeline.formats import seal
from pipeline.output.lock import locked
from pipeline.output.records import OUTPUT, manifest_path, read_manifest
from pipeline.run.digests import digests_of_rows
from pipeline.shards.open import open_shards
from tests.support.cases import case
from tests.support.faulty import RecordingDisk
from tests.support.helpers import write_shard
from tests.support.interruptions import flip, stamps
from tests.support.logged import COMPLETE, mentions
from tests.support.soak_protocol import invalid_entries, leftovers, run_seen_by_readers
from tests.support.standin import Workspace, features_of

N_ROWS = (20, 9, 15)


@pytest.fixture
def runs(make_workspace: Callable[..., Workspace]) -> Workspace:
    return make_workspace(*N_ROWS)


@pytest.fixture
def finished(runs: Workspace, out: Path) -> Path:
    """Return the output directory of a finished run."""
    assert runs.run(out) == 0
    return out


def add(runs: Workspace, name: str, n_rows: int = 7, seed: int = 1) -> Path:
    rows = np.random.default_rng(seed).normal(size=(n_rows, 4)).astype(np.float32)
    return runs.add_shard(name, rows)


def parts_of(output: Path) -> list[str]:
    return [part["file"] for part in read_manifest(output)["parts"]]


def ids_of(output: Path) -> list[int]:
    return open_features(output).extras["append_id"].compute().tolist()


# -- the same results as a run with the model ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_steps", "flags"),
    [
        (4, []),
        pytest.param(30, [], marks=pytest.mark.slow),
        pytest.param(4, ["--threads", "3"], marks=pytest.mark.slow),
    ],
)
def test_appends_give_the_bits_of_one_run_with_the_model(
    runs: Workspace, finished: Path, n_steps: int, flags: list[str]
) -> None:
    model = shutil.copy(finished / "model.h5", runs.folder / "trained.h5")
    for step in range(n_steps):
        add(runs, f"{len(N_ROWS) + step}.h5", n_rows=1 + step, seed=step)
        assert runs.run(finished, "--append", *flags) == 0
    whole = runs.folder / "whole"
    assert runs.run(whole, "--model", str(model)) == 0
    assert features_of(finished) == features_of(whole)
    assert invalid_entries(finished) == leftovers(finished) == []
    appended, expected = open_features(finished), open_features(whole)
    assert appended.extras.keys() - expected.extras.keys() == {"append_id"}
    assert ids_of(finished) == [0] * sum(N_ROWS) + [1 + i for i in range(n_steps) for _ in range(1 + i)]


def test_earlier_parts_are_not_written_again(runs: Workspace, finished: Path) -> None:
    before = stamps(finished)
    add(runs, "3.h5")
    assert runs.run(finished, "--append") == 0
    after = stamps(finished)
    kept = {name: stamp for name, stamp in before.items() if name.startswith(("parts/", "commits/", "stages/"))}
    assert kept.items() <= after.items()


def test_without_new_files_nothing_is_written(
    runs: Workspace, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = stamps(finished)
    recording = RecordingDisk()
    assert runs.run(finished, "--append", disk=recording) == 0
    assert recording.calls == []
    assert stamps(finished) == before
    assert mentions((finished / "run.log").read_text(), COMPLETE, 44, 4, 2)


def test_rows_are_in_the_order_of_arrival(runs: Workspace, finished: Path) -> None:
    add(runs, "00.h5", n_rows=3)  # sorts before all others
    assert runs.run(finished, "--append") == 0
    labels = open_features(finished).extras["y"].compute()
    assert labels[-3:].tolist() == [0, 1, 2]
    assert labels[:20].tolist() == list(range(20))


def test_features_of_some_appends_can_be_opened(runs: Workspace, finished: Path) -> None:
    for i in (3, 4):
        add(runs, f"{i}.h5", n_rows=i)
        assert runs.run(finished, "--append") == 0
    whole = open_features(finished)
    ids = whole.extras["append_id"].compute()
    for chosen in (0, 1, [0, 2], (1, 2)):
        with case(str(chosen)):
            some = open_features(finished, appends=chosen)
            expected = whole.features.compute()[np.isin(ids, chosen)]
            np.testing.assert_array_equal(some.features.compute(), expected)
            assert some.manifest["n_rows"] == len(expected)
    with pytest.raises(DataError, match="appends"):
        open_features(finished, appends=3)
    with h5py.File(finished / "index.h5") as index:
        np.testing.assert_array_equal(index["append_id"][()], ids)


# -- changed, missing and damaged files ----------------------------------------------------------------------------


def test_only_changed_files_are_encoded_again(
    runs: Workspace, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = parts_of(finished)
    features = open_features(finished).features.compute()
    add(runs, "1.h5", n_rows=9)
    assert runs.run(finished, "--append") == 0
    assert mentions(caplog.text, "1.h5")
    after = open_features(finished).features.compute()
    assert set(before) - set(parts_of(finished)) == {name for name in before if "part-000001" in name}
    np.testing.assert_array_equal(after[:20], features[:20])
    np.testing.assert_array_equal(after[29:], features[29:])
    assert (after[20:29] != features[20:29]).any()
    assert ids_of(finished) == [0] * 20 + [1] * 9 + [0] * 15
    assert invalid_entries(finished) == leftovers(finished) == []


def test_a_file_that_grew_replaces_its_rows(runs: Workspace, finished: Path) -> None:
    add(runs, "0.h5", n_rows=33)
    assert runs.run(finished, "--append") == 0
    assert ids_of(finished) == [1] * 33 + [0] * 24


def test_a_file_edited_in_place_is_encoded_again(runs: Workspace, finished: Path) -> None:
    path = runs.shards / "2.h5"
    status = os.stat(path)
    with h5py.File(path, "r+") as file:
        file["X"][3, 1] += 1
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert runs.run(finished, "--append") == 0
    assert ids_of(finished) == [0] * 29 + [1] * 15


def test_a_touched_or_moved_data_set_is_the_same(runs: Workspace, finished: Path) -> None:
    for path in runs.shards.iterdir():
        path.chmod(0o600)
    moved = runs.folder / "moved"
    runs.shards.rename(moved)
    runs.shards = moved
    recording = RecordingDisk()
    assert runs.run(finished, "--append", disk=recording) == 0
    assert recording.calls == []


def test_missing_files_are_an_error_unless_their_rows_are_dropped(runs: Workspace, finished: Path) -> None:
    before = stamps(finished)
    gone = runs.shards / "0.h5"
    gone.rename(runs.folder / "0.h5")
    assert runs.run(finished, "--append") == 66
    assert mentions((finished / "run.log").read_text(), "0.h5", "--drop-missing")
    assert stamps(finished) == before
    assert runs.run(finished, "--append", "--drop-missing") == 0
    assert len(open_features(finished).features) == 24
    assert not any("part-000000" in path.name for path in (finished / "parts").iterdir())
    assert invalid_entries(finished) == leftovers(finished) == []
    (runs.folder / "0.h5").rename(gone)  # a file that returns is new
    assert runs.run(finished, "--append") == 0
    assert ids_of(finished) == [0] * 24 + [2] * 20


def test_dropping_all_rows_is_refused(runs: Workspace, finished: Path) -> None:
    for path in list(runs.shards.iterdir()):
        path.unlink()
    add(runs, "9.h5")
    before = stamps(finished)
    assert runs.run(finished, "--append") == 66
    assert stamps(finished) == before


@pytest.mark.parametrize("is_deleted", [False, True])
def test_damaged_parts_are_encoded_again(runs: Workspace, finished: Path, is_deleted: bool) -> None:
    expected = features_of(finished)
    part = finished / next(name for name in parts_of(finished) if "part-000001" in name)
    if is_deleted:
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:-1])
    assert runs.run(finished, "--append") == 0
    assert features_of(finished) == expected
    assert invalid_entries(finished) == leftovers(finished) == []


# -- settings and files of the finished run ------------------------------------------------------------------------


def test_settings_of_the_finished_run_are_kept(runs: Workspace, out: Path) -> None:
    for path in runs.shards.iterdir():
        with h5py.File(path, "r+") as file:
            file["X"][0] = -999
    assert runs.run(out, "--missing-value", "-999", "--on-bad-data", "quarantine", "--max-bad-rows", "9") == 0
    path = add(runs, "3.h5")
    with h5py.File(path, "r+") as file:
        file["X"][2] = -999
    assert runs.run(out, "--append") == 0
    assert np.flatnonzero(~open_features(out).valid.compute()).tolist() == [0, 20, 29, 46]
    lines = (out / "quarantine.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert read_manifest(out)["config"]["missing_value"] == -999


@pytest.mark.parametrize(
    "flags",
    [["--seed", "1"], ["--storage-dtype", "float16"], ["--on-drift", "clip"], ["--append", "--overwrite"]],
    ids=lambda flags: flags[-1],
)
def test_other_settings_are_refused(runs: Workspace, finished: Path, flags: list[str]) -> None:
    add(runs, "3.h5")
    before = stamps(finished)
    assert runs.run(finished, "--append", *flags) in (64, 78)
    assert stamps(finished) == before


def test_another_model_is_refused(runs: Workspace, finished: Path) -> None:
    other = runs.folder / "other"
    assert runs.run(other, "--seed", "1") == 0
    add(runs, "3.h5")
    assert runs.run(finished, "--append", "--model", str(other)) == 78
    assert runs.run(finished, "--append", "--model", str(shutil.copy(finished / "model.h5", runs.folder))) == 0


def test_results_of_a_given_model_can_be_extended(runs: Workspace, finished: Path) -> None:
    again = runs.folder / "again"
    assert runs.run(again, "--model", str(finished)) == 0
    add(runs, "3.h5")
    assert runs.run(again, "--append", "--model", str(finished)) == 0
    assert ids_of(again) == [0] * 44 + [1] * 7


def test_float16_features_stay_float16(runs: Workspace, out: Path) -> None:
    assert runs.run(out, "--max-feature-error", "0.001") == 0
    add(runs, "3.h5")
    assert runs.run(out, "--append") == 0
    assert open_features(out).features.dtype == np.float16


def test_optional_files_are_kept_up_to_date(runs: Workspace, out: Path) -> None:
    assert runs.run(out, "--format", "parquet", "--single-file") == 0
    add(runs, "3.h5")
    assert runs.run(out, "--append") == 0
    assert run_seen_by_readers(out) is not None  # compares the Parquet files and the single file with the features
    assert (out / "single.h5").exists()
    assert len(list((out / "parquet").iterdir())) == len(parts_of(out))


def test_optional_files_can_be_added(runs: Workspace, finished: Path) -> None:
    before = parts_of(finished)
    assert runs.run(finished, "--append", "--format", "parquet", "--single-file") == 0
    assert parts_of(finished) == before
    assert run_seen_by_readers(finished) is not None
    assert (finished / "single.h5").exists()


def test_a_run_without_append_names_it(runs: Workspace, finished: Path) -> None:
    path = add(runs, "3.h5")
    assert runs.run(finished) == 78
    assert mentions((finished / "run.log").read_text(), "--append", "--model", "--overwrite")
    assert runs.run(finished, "--append") == 0
    assert runs.run(finished) == 78  # it would train on all files
    path.unlink()
    assert runs.run(finished) == 78
    assert runs.run(finished, "--overwrite") in (0, 78)


# -- refused files and directories ---------------------------------------------------------------------------------


def write(path: Path, n_inputs: int = 4, **extras: object) -> None:
    rows = np.random.default_rng(2).normal(size=(6, n_inputs)).astype(np.float32)
    write_shard(path, rows, extras=extras)


@pytest.mark.parametrize(
    ("n_inputs", "extras", "words"),
    [
        (5, {"y": np.arange(6)}, "columns"),
        (4, {}, "y"),
        (4, {"y": np.arange(6.0)}, "float64"),
        (4, {"y": np.array([b"a"] * 6)}, "S1"),
    ],
    ids=["another width", "no extra", "an extra of another dtype", "an extra of text"],
)
def test_files_that_do_not_fit_are_refused(
    runs: Workspace, finished: Path, n_inputs: int, extras: dict[str, object], words: str
) -> None:
    write(runs.shards / "3.h5", n_inputs, **extras)
    before = stamps(finished)
    assert runs.run(finished, "--append") == 65
    text = (finished / "run.log").read_text()
    assert mentions(text, "3.h5")
    assert mentions(text, words)
    assert stamps(finished) == before


def test_further_extras_are_left_out(runs: Workspace, finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(runs.shards / "3.h5", y=np.arange(6), z=np.arange(6))
    assert runs.run(finished, "--append") == 0
    assert any(record.levelname == "WARNING" and "z" in record.message for record in caplog.records)
    assert set(open_features(finished).extras) == {"y", "append_id"}


def test_rows_without_a_value_stay_marked(runs: Workspace, out: Path) -> None:
    write(runs.shards / "2.h5")  # without labels
    assert runs.run(out) == 0
    assert open_features(out).extras["y_present"].compute().tolist() == [True] * 29 + [False] * 6
    add(runs, "3.h5", n_rows=2)
    write(runs.shards / "4.h5")
    assert runs.run(out, "--append") == 0
    assert open_features(out).extras["y_present"].compute().tolist()[35:] == [True] * 2 + [False] * 6


def test_a_refused_new_file_can_be_left_out(runs: Workspace, out: Path) -> None:
    flags = ("--on-bad-data", "skip", "--max-bad-shards", "1")
    assert runs.run(out, *flags) == 0
    (runs.shards / "3.h5").write_bytes(b"bad")
    add(runs, "4.h5")
    assert runs.run(out, "--append", *flags) == 0
    assert [Path(bad["file"]).name for bad in read_manifest(out)["bad_shards"]] == ["3.h5"]
    add(runs, "3.h5", n_rows=5)  # repaired
    assert runs.run(out, "--append", *flags) == 0
    assert read_manifest(out)["bad_shards"] == []
    assert ids_of(out) == [0] * 44 + [1] * 7 + [2] * 5


def test_a_directory_without_a_finished_run_is_refused(runs: Workspace, out: Path) -> None:
    assert runs.run(out, "--append") == 66
    assert not out.exists()
    out.mkdir()
    assert runs.run(out, "--append") == 66
    assert list(out.iterdir()) == []


def test_a_second_append_at_the_same_time_is_refused(runs: Workspace, finished: Path) -> None:
    add(runs, "3.h5")
    with locked(finished):
        assert runs.run(finished, "--append") == 75
    assert runs.run(finished, "--append") == 0


def test_an_append_during_a_read_changes_no_value(runs: Workspace, finished: Path) -> None:
    opened = open_features(finished)
    before = opened.features[:5].compute()
    add(runs, "3.h5")
    assert runs.run(finished, "--append") == 0
    np.testing.assert_array_equal(opened.features[:5].compute(), before)
    assert opened.features.compute().shape == (44, 2)


def test_a_damaged_model_is_replaced_by_the_result_of_the_training(runs: Workspace, finished: Path) -> None:
    expected = (finished / "model.h5").read_bytes()
    flip((finished / "model.h5").resolve())
    add(runs, "3.h5")
    assert runs.run(finished, "--append") == 0
    assert (finished / "model.h5").read_bytes() == expected
    flip((finished / "model.h5").resolve())
    flip(next((finished / "stages").glob("model-*.h5")))
    add(runs, "4.h5")
    assert runs.run(finished, "--append") == 65


@pytest.mark.parametrize("name", ["index.h5", "encoder.npz", "report.html"])
@pytest.mark.parametrize("has_new_file", [False, True])
def test_missing_files_of_the_finished_run_are_written_again(
    runs: Workspace, finished: Path, name: str, has_new_file: bool
) -> None:
    (finished / name).resolve().unlink()
    if has_new_file:
        add(runs, "3.h5")
    assert runs.run(finished, "--append") == 0
    assert run_seen_by_readers(finished) is not None
    assert (finished / name).exists()


def test_a_damaged_manifest_is_reported_without_harm(runs: Workspace, finished: Path) -> None:
    flip((finished / "manifest.json").resolve())
    before = stamps(finished)
    assert runs.run(finished, "--append") == 65
    assert stamps(finished) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["request"].pop("inputs"),
        lambda manifest: manifest["request"]["inputs"].update(shards=[3]),
        lambda manifest: manifest["parts"][0].pop("path"),
        lambda manifest: manifest["parts"][0].update(shard="x"),
        lambda manifest: manifest.update(config=[]),
        lambda manifest: manifest["config"].update(missing_value=[1, {}]),
        lambda manifest: manifest.update(appends=3),
    ],
)
def test_a_forged_manifest_is_refused(
    runs: Workspace, finished: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    manifest = read_manifest(finished)
    change(manifest)
    manifest_path(finished).resolve().write_bytes(seal(OUTPUT, manifest))
    add(runs, "3.h5")
    before = stamps(finished)
    assert runs.run(finished, "--append") in (65, 78)
    assert stamps(finished) == before


def test_only_bad_new_files_leave_the_results_complete(runs: Workspace, out: Path) -> None:
    flags = ("--on-bad-data", "skip", "--max-bad-shards", "50%")
    assert runs.run(out, *flags) == 0
    (runs.shards / "3.h5").write_bytes(b"bad")
    before = stamps(out)
    assert runs.run(out, "--append", *flags) == 0
    assert stamps(out) == before
    assert mentions((out / "run.log").read_text(), COMPLETE, 44)
    assert runs.run(out, "--append", "--on-bad-data", "skip", "--max-bad-shards", "0") == 65


def test_a_single_new_row_is_not_judged(runs: Workspace, finished: Path) -> None:
    add(runs, "3.h5", n_rows=1)
    assert runs.run(finished, "--append") == 0
    manifest = read_manifest(finished)
    assert manifest["summary"]["verdict"] is None
    assert "few" in manifest["appends"][-1]["drift"]["reasons"][0]


def test_rows_outside_the_range_are_expected_if_some_rows_did_not_determine_it(runs: Workspace, out: Path) -> None:
    """With ``--fit-on``, rows like those that were left out are no drift."""
    rng = np.random.default_rng(3)

    def mixed(name: str, n_rows: int) -> None:
        path = add(runs, name, n_rows, seed=len(name))
        is_wide = rng.random(n_rows) < 0.5
        with h5py.File(path, "r+") as file:
            file["X"][...] = rng.normal(size=(n_rows, 4)) * np.where(is_wide, 2, 1)[:, None]
            file["y"][...] = is_wide

    for path in list(runs.shards.iterdir()):
        path.unlink()
    mixed("0.h5", 1200)
    flags = ("--fit-on", "y == 0")
    assert runs.run(out, *flags) == 0
    mixed("1.h5", 600)
    assert runs.run(out, "--append", *flags) == 0
    drift = read_manifest(out)["appends"][-1]["drift"]
    assert drift["outside_share"] > 0.1
    assert abs(drift["outside_share"] - drift["reference_outside_share"]) < 0.1
    assert drift["verdict"] == "keep"


# -- labels that are added later -----------------------------------------------------------------------------------


def add_extra(path: Path, name: str, values: object) -> None:
    """Write a dataset into an existing file, as a user who labels rows does."""
    with h5py.File(path, "r+") as file:
        file[name] = values


@pytest.fixture
def not_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if rows are encoded."""

    def encode(*_arguments: object) -> None:
        raise AssertionError("rows were encoded")

    monkeypatch.setattr(encode_module, "_encode_rows", encode)


@pytest.mark.parametrize(
    "storage", [[], ["--storage-dtype", "float16"], ["--max-feature-error", "0.01"], ["--compression", "gzip"]]
)
def test_labels_written_into_the_files_are_copied_without_encoding(
    runs: Workspace, out: Path, request: pytest.FixtureRequest, storage: list[str]
) -> None:
    assert runs.run(out, *storage) == 0
    before = open_features(out).features.compute()
    errors = [part.get("max_error") for part in read_manifest(out)["parts"]]
    for number, path in enumerate(sorted(runs.shards.iterdir())):
        add_extra(path, "z", np.full(N_ROWS[number], number))
    request.getfixturevalue("not_encoded")
    assert runs.run(out) == 78
    assert mentions((out / "run.log").read_text(), "--append")
    assert runs.run(out, "--append") == 0
    opened = open_features(out)
    np.testing.assert_array_equal(opened.features.compute(), before)
    assert opened.features.dtype == before.dtype
    assert [part.get("max_error") for part in read_manifest(out)["parts"]] == errors
    assert opened.extras["z"].compute().tolist() == [0] * 20 + [1] * 9 + [2] * 15
    assert ids_of(out) == [0] * 44
    assert read_manifest(out)["appends"][-1]["n_copied"] == 3
    assert run_seen_by_readers(out) is not None
    assert invalid_entries(out) == leftovers(out) == []
    recording = RecordingDisk()
    assert runs.run(out, "--append", disk=recording) == 0
    assert recording.calls == []


@pytest.mark.process
def test_extras_can_be_included_later_without_encoding(
    runs: Workspace, out: Path, request: pytest.FixtureRequest
) -> None:
    for number, path in enumerate(sorted(runs.shards.iterdir())):
        add_extra(path, "obs/z", np.full(N_ROWS[number], number))
    assert runs.run(out) == 0
    before = open_features(out).features.compute()
    request.getfixturevalue("not_encoded")
    assert runs.run(out, "--include", "obs/z") == 78
    assert mentions((out / "run.log").read_text(), "--append")
    assert runs.run(out, "--append", "--include", "obs/z") == 0
    opened = open_features(out)
    np.testing.assert_array_equal(opened.features.compute(), before)
    assert opened.extras["z"].compute().tolist() == [0] * 20 + [1] * 9 + [2] * 15
    assert set(opened.extras) == {"y", "z", "append_id"}
    recording = RecordingDisk()
    for flags in ([], ["--include", "obs/z"]):  # the extra is kept without the flag
        assert runs.run(out, "--append", *flags, disk=recording) == 0
    assert recording.calls == []


@pytest.mark.process
def test_an_extra_that_does_not_exist_is_refused(runs: Workspace, finished: Path) -> None:
    before = stamps(finished)
    assert runs.run(finished, "--append", "--include", "obs/nothing") == 65
    assert stamps(finished) == before


@pytest.mark.process
def test_labels_of_some_files_are_copied_with_a_mask(runs: Workspace, finished: Path) -> None:
    add_extra(runs.shards / "1.h5", "obs/z", np.arange(9))
    assert runs.run(finished, "--append", "--include", "obs/z") == 0
    opened = open_features(finished)
    assert opened.extras["z_present"].compute().tolist() == [False] * 20 + [True] * 9 + [False] * 15
    assert opened.extras["z"].compute()[20:29].tolist() == list(range(9))
    add(runs, "3.h5", n_rows=2)  # without the extra
    assert runs.run(finished, "--append") == 0
    assert open_features(finished).extras["z_present"].compute().tolist()[-2:] == [False, False]


def test_changed_rows_are_encoded_again_despite_new_labels(runs: Workspace, finished: Path) -> None:
    for number, path in enumerate(sorted(runs.shards.iterdir())):
        add_extra(path, "z", np.arange(N_ROWS[number]))
    with h5py.File(runs.shards / "1.h5", "r+") as file:
        file["X"][0, 0] += 1
    before = open_features(finished).features.compute()
    assert runs.run(finished, "--append") == 0
    after = open_features(finished).features.compute()
    assert np.flatnonzero((before != after).any(axis=1)).tolist() == [20]
    assert ids_of(finished) == [0] * 20 + [1] * 9 + [0] * 15
    facts = read_manifest(finished)["appends"][-1]
    assert (facts["n_copied"], facts["n_changed"], facts["n_rows"]) == (2, 1, 9)


def test_bad_rows_and_drift_are_copied(runs: Workspace, out: Path) -> None:
    with h5py.File(runs.shards / "1.h5", "r+") as file:
        file["X"][4, 2] = np.nan
    assert runs.run(out, "--on-bad-data", "quarantine", "--max-bad-rows", "1") == 0
    lines = (out / "quarantine.jsonl").read_text()
    for number, path in enumerate(sorted(runs.shards.iterdir())):
        add_extra(path, "z", np.arange(N_ROWS[number]))
    assert runs.run(out, "--append") == 0
    assert (out / "quarantine.jsonl").read_text() == lines
    assert np.flatnonzero(~open_features(out).valid.compute()).tolist() == [24]


def test_a_damaged_part_is_not_copied(runs: Workspace, finished: Path) -> None:
    expected = open_features(finished).features.compute()
    (finished / parts_of(finished)[0]).write_bytes(b"damaged")
    for number, path in enumerate(sorted(runs.shards.iterdir())):
        add_extra(path, "z", np.arange(N_ROWS[number]))
    assert runs.run(finished, "--append") == 0
    np.testing.assert_array_equal(open_features(finished).features.compute(), expected)
    assert read_manifest(finished)["appends"][-1]["n_copied"] == 2


@pytest.mark.parametrize("options", [{}, {"chunks": (4, 4)}, {"chunks": (5, 2), "compression": "gzip"}])
def test_the_digest_of_rows_ignores_other_datasets(tmp_path: Path, options: dict[str, object]) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 4))
    path = tmp_path / "0.h5"
    write_shard(path, rows, **options)
    (before,) = digests_of_rows(open_shards([str(path)]), 1)
    assert before is not None
    add_extra(path, "y", np.arange(20))
    assert digests_of_rows(open_shards([str(path)]), 1) == [before]
    with h5py.File(path, "r+") as file:
        file["X"][7, 2] += 1
    assert digests_of_rows(open_shards([str(path)]), 1) != [before]
    with h5py.File(path, "r+") as file:
        file["X"][7] = rows[7]
        del file["X"]
        file.create_dataset("X", data=rows.reshape(10, 8), **({} if not options else {"chunks": (5, 4)}))
    assert digests_of_rows(open_shards([str(path)], "X"), 1) != [before]


# -- classifiers ---------------------------------------------------------------------------------------------------


def test_appended_rows_test_classifiers_of_supervised_features(runs: Workspace, out: Path) -> None:
    for path in sorted(runs.shards.iterdir()):
        with h5py.File(path, "r+") as file:
            file["y"][...] = file["X"][:, 0] > 0
    assert runs.run(out, "--target", "y") == 0
    options = Options(str(out), test=None, labels="y", passes=20, memory_budget=2**28, seed=0)
    with pytest.raises(DataError, match="targets"):
        compare_representations(options)
    path = add(runs, "3.h5", n_rows=30)
    with h5py.File(path, "r+") as file:
        file["y"][...] = file["X"][:, 0] > 0
    assert runs.run(out, "--append") == 0
    found = compare_representations(options)
    assert found.tested_on.startswith("the 30 rows")
    assert found.n_train == sum(N_ROWS)
