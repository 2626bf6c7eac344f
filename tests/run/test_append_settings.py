"""Tests of ``--append``: settings and files of the finished run, and inputs that are refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from msgspec import structs

from shardpress.features import open_features
from shardpress.interop.export import export
from shardpress.report.page.build import is_current
from shardpress.result import INDEX, RESERVED, Result, Use, result_bytes
from shardpress.run import new_rows
from tests.support.appends import N_ROWS, add, add_extra, ids_of, write
from tests.support.bad_shards import errors
from tests.support.faulty import RecordingDisk
from tests.support.interruptions import parts, stamps
from tests.support.logged import mentions
from tests.support.standin import Workspace

pytestmark = pytest.mark.slow


# -- settings and files of the finished run ------------------------------------------------------------------------


def test_settings_of_the_finished_run_are_kept(growing: Workspace, out: Path) -> None:
    for path in growing.shards.iterdir():
        with h5py.File(path, "r+") as file:
            file["X"][0] = -999
    assert growing.run(out, "--missing-value", "-999", "--on-bad-data", "skip", "--max-bad", "9") == 0
    path = add(growing, "3.h5")
    with h5py.File(path, "r+") as file:
        file["X"][2] = -999
    assert growing.run(out, "--append") == 0
    assert np.flatnonzero(~open_features(out).valid.compute()).tolist() == [0, 20, 29, 46]
    lines = (out / "bad_rows.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert Result.open(out).facts.config["missing_value"] == -999


@pytest.mark.parametrize(
    "flags",
    [["--seed", "1"], ["--storage-dtype", "float16"], ["--on-drift", "clip"], ["--append", "--overwrite"]],
    ids=lambda flags: flags[-1],
)
def test_other_settings_are_refused(growing: Workspace, finished: Path, flags: list[str]) -> None:
    add(growing, "3.h5")
    before = stamps(finished)
    assert growing.run(finished, "--append", *flags) in (64, 78)
    assert stamps(finished) == before


@pytest.mark.process
def test_another_model_is_refused(growing: Workspace, finished: Path) -> None:
    other = growing.folder / "other"
    assert growing.run(other, "--seed", "1") == 0
    add(growing, "3.h5")
    assert growing.run(finished, "--append", "--model", str(other)) == 78
    assert growing.run(finished, "--append", "--model", str(shutil.copy(finished / INDEX, growing.folder))) == 0


@pytest.mark.process
def test_results_of_a_given_model_can_be_extended(growing: Workspace, finished: Path) -> None:
    again = growing.folder / "again"
    assert growing.run(again, "--model", str(finished)) == 0
    add(growing, "3.h5")
    assert growing.run(again, "--append", "--model", str(finished)) == 0
    assert ids_of(again) == [0] * 44 + [1] * 7
    assert (Result.open(again).use() == Use.TRAINING).all()  # the rows of the training are unknown


@pytest.mark.parametrize("is_overwritten", [False, True])
def test_float16_features_stay_float16(growing: Workspace, out: Path, is_overwritten: bool) -> None:
    if is_overwritten:
        assert growing.run(out) == 0
    assert growing.run(out, "--storage-dtype", "float16", "--overwrite") == 0
    add(growing, "3.h5")
    assert growing.run(out, "--append") == 0
    found = open_features(out).features
    assert (found.shape, found.dtype) == ((51, 2), np.float16)
    assert Result.open(out).facts.config["storage_dtype"] == "float16"


def test_an_export_after_an_append_writes_only_new_files(growing: Workspace, finished: Path) -> None:
    for form in ("parquet", "hdf5"):
        export(finished, form)
    before = stamps(finished / "parquet")
    add(growing, "3.h5")
    add(growing, "1.h5", n_rows=9, seed=5)  # its rows take the place of the earlier ones
    assert growing.run(finished, "--append") == 0
    for form in ("parquet", "hdf5"):
        export(finished, form)
    expected = open_features(finished)
    pd.testing.assert_frame_equal(pd.read_parquet(finished / "parquet"), expected.to_pandas())
    np.testing.assert_array_equal(open_features(finished / "features.h5").features, expected.features)
    after = stamps(finished / "parquet")
    assert len(after) == len(parts(finished)) == 4
    assert len(before.items() & after.items()) == len(before) - 1 == 2


def test_a_run_without_append_names_it(growing: Workspace, finished: Path) -> None:
    path = add(growing, "3.h5")
    assert growing.run(finished) == 78
    assert mentions((finished / "run.log").read_text(), "--append", "--model", "--overwrite")
    assert growing.run(finished, "--append") == 0
    (finished / "run.log").unlink()
    assert growing.run(finished) == 78  # it would train on all files
    assert mentions((finished / "run.log").read_text(), "appended", "--append", "--retrain")
    path.unlink()
    assert growing.run(finished) == 78
    assert growing.run(finished, "--overwrite") in (0, 78)


# -- refused files and directories ---------------------------------------------------------------------------------


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
    growing: Workspace,
    finished: Path,
    n_inputs: int,
    extras: dict[str, object],
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write(growing.shards / "3.h5", n_inputs, **extras)
    before = stamps(finished)
    assert growing.run(finished, "--append") == 65
    assert mentions(errors(caplog), "3.h5", words)
    assert stamps(finished) == before


def test_further_extras_are_left_out(growing: Workspace, finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(growing.shards / "3.h5", y=np.arange(6), z=np.arange(6))
    assert growing.run(finished, "--append") == 0
    assert any(record.levelname == "WARNING" and "z" in record.message for record in caplog.records)
    assert set(open_features(finished).extras) == {"y", "append_id"}


def test_extras_with_reserved_names_are_appended(growing: Workspace, out: Path) -> None:
    names = [*RESERVED, "source_valid"]
    for path, n_rows in zip(sorted(growing.shards.iterdir()), N_ROWS, strict=True):
        for name in names:
            add_extra(path, name, np.arange(n_rows))
    assert growing.run(out) == 0
    write(growing.shards / "3.h5", y=np.arange(6), **{name: np.arange(6) for name in names})
    assert growing.run(out, "--append") == 0
    found = open_features(out).extras
    assert set(found) == {"y", "append_id", *(f"source_{name}" for name in names)}
    assert all(found[f"source_{name}"].compute().tolist()[-6:] == list(range(6)) for name in names)
    assert ids_of(out) == [0] * 44 + [1] * 6


def test_masks_stay_when_all_rows_have_a_value(growing: Workspace, out: Path) -> None:
    write(growing.shards / "3.h5")
    assert growing.run(out) == 0
    (growing.shards / "3.h5").unlink()
    add(growing, "4.h5")
    before = parts(out)
    assert growing.run(out, "--append", "--drop-missing") == 0
    assert parts(out)[: len(before) - 1] == before[:-1]  # nothing else was encoded again
    add(growing, "5.h5")
    assert growing.run(out, "--append") == 0
    assert open_features(out).extras["y_present"].compute().all()


def test_rows_without_a_value_stay_marked(growing: Workspace, out: Path) -> None:
    write(growing.shards / "2.h5")  # without labels
    assert growing.run(out) == 0
    assert open_features(out).extras["y_present"].compute().tolist() == [True] * 29 + [False] * 6
    add(growing, "3.h5", n_rows=2)
    write(growing.shards / "4.h5")
    assert growing.run(out, "--append") == 0
    assert open_features(out).extras["y_present"].compute().tolist()[35:] == [True] * 2 + [False] * 6


def test_a_refused_new_file_can_be_left_out(growing: Workspace, out: Path) -> None:
    flags = ("--on-bad-data", "skip", "--max-bad", "50%")
    assert growing.run(out, *flags) == 0
    (growing.shards / "3.h5").write_bytes(b"bad")
    add(growing, "4.h5")
    assert growing.run(out, "--append", *flags) == 0
    assert [Path(bad["file"]).name for bad in Result.open(out).facts.bad_shards] == ["3.h5"]
    add(growing, "3.h5", n_rows=5)  # repaired
    assert growing.run(out, "--append", *flags) == 0
    assert Result.open(out).facts.bad_shards == []
    assert ids_of(out) == [0] * 44 + [1] * 7 + [2] * 5


def test_a_directory_without_a_finished_run_is_refused(growing: Workspace, out: Path) -> None:
    assert growing.run(out, "--append") == 66
    assert not out.exists()
    out.mkdir()
    assert growing.run(out, "--append") == 66
    assert list(out.iterdir()) == []


def test_an_append_during_a_read_changes_no_value(growing: Workspace, finished: Path) -> None:
    opened = open_features(finished)
    before = opened.features[:5].compute()
    add(growing, "3.h5")
    assert growing.run(finished, "--append") == 0
    np.testing.assert_array_equal(opened.features[:5].compute(), before)
    assert opened.features.compute().shape == (44, 2)


@pytest.mark.parametrize("has_new_file", [False, True])
def test_a_missing_report_is_written_again(growing: Workspace, finished: Path, has_new_file: bool) -> None:
    (finished / "report.html").unlink()
    if has_new_file:
        add(growing, "3.h5")
    assert growing.run(finished, "--append") == 0
    assert is_current(finished / "report.html", Result.open(finished).digest)


@pytest.mark.parametrize(
    "values",
    [
        {"missing_value": [1, {}]},
        {"on_bad_data": 3},
        {"max_bad": []},
        {"include": "y"},
        {"include": [7]},
        {"labels": {}},
    ],
    ids=str,
)
def test_forged_settings_of_the_finished_run_are_refused(
    growing: Workspace, finished: Path, values: dict[str, object]
) -> None:
    result = Result.open(finished)
    facts = structs.replace(result.facts, config={**result.facts.config, **values})
    data = result_bytes(lambda file: None, result.model, facts, result.parts, {}, {})
    (finished / INDEX).write_bytes(data)
    add(growing, "3.h5")
    before = stamps(finished)
    assert growing.run(finished, "--append") in (65, 78)
    assert stamps(finished) == before


def test_damaged_files_are_named_with_flags_that_continue(
    growing: Workspace, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(growing.shards / "0.h5", n_inputs=5)  # the first file does not decide on the number of columns
    truncated = add(growing, "3.h5")
    truncated.write_bytes(truncated.read_bytes()[:-100])
    (growing.shards / "4.h5").write_bytes(b"bad")
    add(growing, "5.h5")
    add(growing, "6.h5", n_rows=0)
    write(growing.shards / "7.h5")  # lacks the extra y
    before = stamps(finished)
    assert growing.run(finished, "--append") == 65
    message = errors(caplog)
    assert mentions(message, "4 of 8 files", "0.h5", "3.h5", "4.h5", "7.h5")
    assert stamps(finished) == before
    (flags,) = re.findall(r"--on-bad-data skip --max-bad \d+%", message)
    assert growing.run(finished, "--append", *flags.split()) == 0
    assert ids_of(finished) == [0] * 44 + [1] * 7
    assert [Path(bad["file"]).name for bad in Result.open(finished).facts.bad_shards] == ["3.h5", "4.h5", "7.h5"]


def test_rows_of_damaged_files_stay_until_they_are_dropped(
    growing: Workspace, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = open_features(finished).features.compute()
    (growing.shards / "0.h5").write_bytes(b"bad")
    (growing.shards / "2.h5").write_bytes(b"bad")
    add(growing, "3.h5")
    assert growing.run(finished, "--append", "--drop-missing") == 65
    assert growing.run(finished, "--append", "--drop-missing", "--on-bad-data", "skip") == 0  # no limit refers to them
    assert mentions(caplog.text, "0.h5", "2.h5")
    np.testing.assert_array_equal(open_features(finished).features.compute()[:44], before)
    (growing.shards / "0.h5").unlink()
    assert growing.run(finished, "--append", "--on-bad-data", "skip") == 66
    assert growing.run(finished, "--append", "--on-bad-data", "skip", "--drop-missing") == 0
    np.testing.assert_array_equal(open_features(finished).features.compute()[:24], before[20:])


def test_a_bad_new_file_is_recorded_once(growing: Workspace, out: Path) -> None:
    flags = ("--on-bad-data", "skip", "--max-bad", "50%")
    assert growing.run(out, *flags) == 0
    before = parts(out)
    (growing.shards / "3.h5").write_bytes(b"bad")
    assert growing.run(out, "--append", *flags) == 0
    assert parts(out) == before
    assert [Path(bad["file"]).name for bad in Result.open(out).facts.bad_shards] == ["3.h5"]
    assert Result.open(out).facts.appends == []
    recording = RecordingDisk()
    assert growing.run(out, "--append", *flags, disk=recording) == 0
    assert recording.calls == []
    assert growing.run(out, "--append", "--on-bad-data", "skip", "--max-bad", "0") == 65


def test_rows_that_cannot_be_judged_are_not_published_with_fail(
    growing: Workspace, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise ValueError("cannot be judged")

    monkeypatch.setattr(new_rows, "judge_new_rows", fail)
    add(growing, "3.h5")
    assert growing.run(finished, "--append", "--on-append-drift", "fail") == 80
    assert open_features(finished).result.n_rows == 44
    assert growing.run(finished, "--append") == 0
    assert open_features(finished).result.n_rows == 51


def test_rows_are_judged_although_all_earlier_files_got_labels(growing: Workspace, finished: Path) -> None:
    for path in growing.shards.iterdir():
        with h5py.File(path, "r+") as file:
            file["z"] = np.arange(len(file["X"]))
    add_extra(add(growing, "3.h5"), "z", np.arange(7))
    assert growing.run(finished, "--append", "--on-append-drift", "fail") == 0
    assert Result.open(finished).facts.appends[-1]["drift"]["n_sampled"] == 7


def test_a_single_new_row_is_not_judged(growing: Workspace, finished: Path) -> None:
    add(growing, "3.h5", n_rows=1)
    assert growing.run(finished, "--append") == 0
    result = Result.open(finished)
    assert result.facts.summary["verdict"] is None
    assert "few" in result.facts.appends[-1]["drift"]["reasons"][0]


def test_rows_outside_the_range_are_expected_if_some_rows_did_not_determine_it(growing: Workspace, out: Path) -> None:
    """With ``--fit-on``, rows like those that were left out are no drift."""
    rng = np.random.default_rng(3)

    def mixed(name: str, n_rows: int) -> None:
        path = add(growing, name, n_rows, seed=len(name))
        is_wide = rng.random(n_rows) < 0.5
        with h5py.File(path, "r+") as file:
            file["X"][...] = rng.normal(size=(n_rows, 4)) * np.where(is_wide, 2, 1)[:, None]
            file["y"][...] = is_wide

    for path in list(growing.shards.iterdir()):
        path.unlink()
    mixed("0.h5", 1200)
    flags = ("--fit-on", "y == 0")
    assert growing.run(out, *flags) == 0
    mixed("1.h5", 600)
    assert growing.run(out, "--append", *flags) == 0
    drift = Result.open(out).facts.appends[-1]["drift"]
    assert drift["outside_share"] > 0.1
    assert abs(drift["outside_share"] - drift["reference_outside_share"]) < 0.1
    assert drift["verdict"] == "keep"
