"""Tests of ``--append``: only new and changed files are encoded, and the results change in one commit."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.errors import DataError
from shardpress.features import open_features
from shardpress.result import INDEX, RESERVED, Result, Use
from shardpress.run import new_rows
from tests.support.appends import N_ROWS, add, add_extra, ids_of, write
from tests.support.bad_shards import errors
from tests.support.cases import case, each
from tests.support.faulty import RecordingDisk
from tests.support.interruptions import parts, stamps
from tests.support.logged import mentions
from tests.support.soak_protocol import invalid_entries, leftovers
from tests.support.standin import Workspace, features_of

SKIP = ("--on-bad-data", "skip", "--max-bad", "50%")


def names_of_bad_shards(output: Path) -> list[str]:
    return [Path(bad["file"]).name for bad in Result.open(output).facts.bad_shards]


@pytest.mark.process
@pytest.mark.parametrize(("n_steps", "flags"), [(4, []), pytest.param(12, ["--threads", "3"], marks=pytest.mark.slow)])
def test_appends_give_the_bits_of_one_run_with_the_model(
    growing: Workspace, finished: Path, n_steps: int, flags: list[str]
) -> None:
    model = shutil.copy(finished / INDEX, growing.folder / "trained.h5")
    before = stamps(finished / "parts")
    for step in range(n_steps):
        add(growing, f"9{99 - step}.h5", n_rows=1 + step, seed=step)  # sorts before earlier ones
        assert growing.run(finished, "--append", *flags) == 0
    assert before.items() <= stamps(finished / "parts").items()
    inputs = [growing.shards / f"{i}.h5" for i in range(len(N_ROWS))]
    inputs += sorted(growing.shards.glob("9*.h5"), reverse=True)
    whole = growing.folder / "whole"
    assert growing.run_on(inputs, whole, "--model", str(model)) == 0
    assert features_of(finished) == features_of(whole)
    assert invalid_entries(finished) == leftovers(finished) == []
    appended, expected = open_features(finished), open_features(whole)
    assert appended.extras.keys() - expected.extras.keys() == {"append_id"}
    assert ids_of(finished) == [0] * sum(N_ROWS) + [1 + i for i in range(n_steps) for _ in range(1 + i)]


@pytest.mark.slow
def test_a_training_does_not_use_the_scan_of_an_append(growing: Workspace, out: Path) -> None:
    """The scan of an append lacks what only a training needs, and the rows alone may suggest another scaling."""
    assert growing.run(out, "--scale", "std") == 0
    add(growing, "3.h5", n_rows=30)
    assert growing.run(out, "--scale", "std", "--append") == 0
    assert Result.open(out).report()["scan"]["scale"] == "std"
    for i in range(len(N_ROWS)):
        (growing.shards / f"{i}.h5").unlink()
    assert growing.run(out, "--scale", "std", "--retrain", "--drop-missing") == 0
    alone = growing.folder / "alone"
    assert growing.run(alone, "--scale", "std") == 0
    assert Result.open(out).report()["scan"] == Result.open(alone).report()["scan"]
    assert features_of(out) == features_of(alone)


def test_features_of_some_appends_can_be_opened(growing: Workspace, finished: Path) -> None:
    opened = open_features(finished)
    for name, n_rows in (("3.h5", 4), ("00.h5", 3)):  # the second one sorts before all others
        add(growing, name, n_rows=n_rows)
        assert growing.run(finished, "--append") == 0
    whole = open_features(finished)
    assert whole.extras["y"].compute()[-7:].tolist() == [0, 1, 2, 3, 0, 1, 2]
    ids = whole.extras["append_id"].compute()
    features = whole.features.compute()
    np.testing.assert_array_equal(opened.features.compute(), features[:44])  # of readers during the appends
    for chosen in (0, 1, [0, 2], (1, 2)):
        with case(str(chosen)):
            some = open_features(finished, appends=chosen)
            np.testing.assert_array_equal(some.features.compute(), features[np.isin(ids, chosen)])
    with pytest.raises(DataError, match="appends"):
        open_features(finished, appends=3)
    with h5py.File(finished / "index.h5") as index:
        np.testing.assert_array_equal(index["append_id"][()], ids)


# -- settings of the finished run ----------------------------------------------------------------------------------


def test_settings_of_the_finished_run_are_kept(growing: Workspace, out: Path) -> None:
    for path in growing.shards.iterdir():
        with h5py.File(path, "r+") as file:
            file["X"][0] = -999
    assert growing.run(out, "--missing-value", "-999", *SKIP) == 0
    with h5py.File(add(growing, "3.h5"), "r+") as file:
        file["X"][2] = -999
    assert growing.run(out, "--append") == 0
    assert np.flatnonzero(~open_features(out).valid.compute()).tolist() == [0, 20, 29, 46]
    assert len((out / "bad_rows.jsonl").read_text().splitlines()) == 4
    assert Result.open(out).facts.config["missing_value"] == -999


@each("flags", [["--seed", "1"], ["--storage-dtype", "float16"], ["--on-drift", "clip"], ["--overwrite"]])
def test_other_settings_are_refused(growing: Workspace, finished: Path, flags: list[str]) -> None:
    add(growing, "3.h5")
    before = stamps(finished)
    assert growing.run(finished, "--append", *flags) in (64, 78)
    assert stamps(finished) == before


@pytest.mark.process
def test_results_of_a_given_model_are_extended_with_no_other_model(growing: Workspace, finished: Path) -> None:
    other = growing.folder / "other"
    again = growing.folder / "again"
    assert growing.run(other, "--seed", "1") == 0
    assert growing.run(again, "--model", str(finished)) == 0
    add(growing, "3.h5")
    assert growing.run(again, "--append", "--model", str(other)) == 78
    assert growing.run(again, "--append", "--model", str(shutil.copy(finished / INDEX, growing.folder))) == 0
    assert ids_of(again) == [0] * 44 + [1] * 7
    assert (Result.open(again).use() == Use.TRAINING).all()  # the rows of the training are unknown


def test_a_directory_without_a_finished_run_is_refused(growing: Workspace, out: Path) -> None:
    assert growing.run(out, "--append") == 66
    assert not out.exists()
    out.mkdir()
    assert growing.run(out, "--append") == 66
    assert list(out.iterdir()) == []


# -- extras --------------------------------------------------------------------------------------------------------


UNFIT: list[tuple[int, dict[str, object], str]] = [
    (5, {"y": np.arange(6)}, "columns"),
    (4, {}, "y"),
    (4, {"y": np.arange(6.0)}, "float64"),
    (4, {"y": np.array([b"a"] * 6)}, "S1"),
]


@each("n_inputs, extras, words", UNFIT)
def test_files_that_do_not_fit_are_refused(
    growing: Workspace,
    finished: Path,
    caplog: pytest.LogCaptureFixture,
    n_inputs: int,
    extras: dict[str, object],
    words: str,
) -> None:
    write(growing.shards / "3.h5", n_inputs, **extras)
    before = stamps(finished)
    assert growing.run(finished, "--append") == 65
    assert mentions(errors(caplog), "3.h5", words)
    assert stamps(finished) == before


def test_extras_with_reserved_names_are_appended(growing: Workspace, out: Path) -> None:
    names = [*RESERVED, "source_valid"]
    for path, n_rows in zip(sorted(growing.shards.iterdir()), N_ROWS, strict=True):
        for name in names:
            add_extra(path, name, np.arange(n_rows))
    assert growing.run(out) == 0
    extras = {name: np.arange(6) for name in (*names, "y", "further")}
    write(growing.shards / "3.h5", **extras)
    assert growing.run(out, "--append") == 0
    found = open_features(out).extras
    assert set(found) == {"y", "append_id", *(f"source_{name}" for name in names)}
    assert all(found[f"source_{name}"].compute().tolist()[-6:] == list(range(6)) for name in names)
    assert ids_of(out) == [0] * 44 + [1] * 6


def test_rows_without_a_value_stay_marked(growing: Workspace, out: Path) -> None:
    write(growing.shards / "2.h5")  # without labels
    assert growing.run(out) == 0
    add(growing, "3.h5", n_rows=2)
    write(growing.shards / "4.h5")
    assert growing.run(out, "--append") == 0
    expected = [True] * 29 + [False] * 6 + [True] * 2 + [False] * 6
    assert open_features(out).extras["y_present"].compute().tolist() == expected
    for name in ("2.h5", "4.h5"):
        (growing.shards / name).unlink()
    assert growing.run(out, "--append", "--drop-missing") == 0
    assert open_features(out).extras["y_present"].compute().tolist() == [True] * 31


# -- files that are moved, missing or bad --------------------------------------------------------------------------


def test_copies_of_files_with_parts_of_other_sizes_are_recognized(growing: Workspace, out: Path) -> None:
    for path in list(growing.shards.iterdir()):
        path.unlink()
    for number, flags in enumerate(([], ["block_rows=12", "--append"])):
        add(growing, f"{number}.h5", n_rows=50, seed=number)
        assert growing.run(out, *flags) == 0
    before = parts(out)
    for path in sorted(growing.shards.iterdir()):
        shutil.copyfile(path, growing.shards / f"copy{path.name}")
        path.unlink()
    assert growing.run(out, "--append") == 0
    assert parts(out) == before


def test_a_moved_file_is_found_although_a_bad_one_takes_its_place(growing: Workspace, out: Path) -> None:
    assert growing.run(out, *SKIP) == 0
    before = features_of(out)
    (growing.shards / "1.h5").rename(growing.shards / "moved.h5")
    (growing.shards / "1.h5").write_bytes(b"bad")
    assert growing.run(out, "--append", *SKIP) == 0
    assert features_of(out) == before
    assert names_of_bad_shards(out) == ["1.h5"]


def test_missing_files_are_an_error_unless_their_rows_are_dropped(growing: Workspace, finished: Path) -> None:
    before = stamps(finished)
    part = parts(finished)[0]
    gone = growing.shards / "0.h5"
    gone.rename(growing.folder / "0.h5")
    for flags, code in (([], 78), (["--append"], 66)):
        assert growing.run(finished, *flags) == code
        assert mentions((finished / "run.log").read_text(), "0.h5", "--drop-missing")
    assert stamps(finished) == before
    assert growing.run(finished, "--append", "--drop-missing") == 0
    assert len(open_features(finished).features) == 24
    assert not (finished / part).exists()
    assert invalid_entries(finished) == leftovers(finished) == []
    (growing.folder / "0.h5").rename(gone)  # a file that returns is new
    assert growing.run(finished, "--append") == 0
    assert ids_of(finished) == [0] * 24 + [2] * 20


def test_a_bad_new_file_is_recorded_once_until_it_is_repaired(growing: Workspace, out: Path) -> None:
    assert growing.run(out, *SKIP) == 0
    before = parts(out)
    (growing.shards / "3.h5").write_bytes(b"bad")
    assert growing.run(out, "--append", *SKIP) == 0
    assert parts(out) == before
    assert names_of_bad_shards(out) == ["3.h5"]
    assert Result.open(out).facts.appends == []
    recording = RecordingDisk()
    assert growing.run(out, "--append", *SKIP, disk=recording) == 0
    assert recording.calls == []
    assert growing.run(out, "--append", "--on-bad-data", "skip", "--max-bad", "0") == 65
    add(growing, "3.h5", n_rows=5)
    assert growing.run(out, "--append", *SKIP) == 0
    assert names_of_bad_shards(out) == []
    assert ids_of(out) == [0] * 44 + [1] * 5


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
    assert names_of_bad_shards(finished) == ["3.h5", "4.h5", "7.h5"]


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


# -- verdicts ------------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_judged_are_not_published_with_fail(
    growing: Workspace, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise ValueError("cannot be judged")

    add(growing, "3.h5")
    with monkeypatch.context() as patch:
        patch.setattr(new_rows, "judge_new_rows", fail)
        assert growing.run(finished, "--append", "--on-append-drift", "fail") == 80
        assert open_features(finished).result.n_rows == 44
        assert growing.run(finished, "--append") == 0
    assert open_features(finished).result.n_rows == 51
    for path in growing.shards.iterdir():
        with h5py.File(path, "r+") as file:
            file["z"] = np.arange(len(file["X"]))  # late labels of all earlier files
    add_extra(add(growing, "4.h5", n_rows=9), "z", np.arange(9))
    assert growing.run(finished, "--append", "--on-append-drift", "fail") == 0
    assert Result.open(finished).facts.appends[-1]["drift"]["n_sampled"] == 9


def test_a_single_new_row_is_not_judged(growing: Workspace, finished: Path) -> None:
    add(growing, "3.h5", n_rows=1)
    assert growing.run(finished, "--append") == 0
    result = Result.open(finished)
    assert result.facts.summary["verdict"] is None
    assert "few" in result.facts.appends[-1]["drift"]["reasons"][0]
