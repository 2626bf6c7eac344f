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
from tests.support.appends import N_ROWS, add, add_extra, ids_of, write
from tests.support.bad_shards import errors
from tests.support.cases import case, each
from tests.support.faulty import RecordingDisk
from tests.support.interruptions import parts, stamps
from tests.support.logged import mentions
from tests.support.protocol import invalid_entries, leftovers
from tests.support.standin import Workspace, features_of

SKIP = ("--on-bad-data", "skip", "--max-bad", "50%")


def names_of_bad_shards(output: Path) -> list[str]:
    return [Path(bad["file"]).name for bad in Result.open(output).facts.bad_shards]


@pytest.mark.process
def test_appends_give_the_bits_of_one_run_with_the_model(growing: Workspace, finished: Path) -> None:
    """Features of each append can be opened by its number, and readers of an earlier result keep theirs."""
    n_steps = 4
    model = shutil.copy(finished / INDEX, growing.folder / "trained.h5")
    opened = open_features(finished)
    before = stamps(finished / "parts")
    for step in range(n_steps):
        add(growing, f"9{99 - step}.h5", n_rows=1 + step, seed=step)  # sorts before earlier ones
        assert growing.run(finished, "--append", "--threads", "3") == 0
    assert before.items() <= stamps(finished / "parts").items()
    inputs = [growing.shards / f"{i}.h5" for i in range(len(N_ROWS))]
    inputs += sorted(growing.shards.glob("9*.h5"), reverse=True)
    whole = growing.folder / "whole"
    assert growing.run_on(inputs, whole, "--model", str(model)) == 0
    assert features_of(finished) == features_of(whole)
    assert invalid_entries(finished) == leftovers(finished) == []
    ids = np.array([0] * sum(N_ROWS) + [1 + i for i in range(n_steps) for _ in range(1 + i)])
    assert ids_of(finished) == ids.tolist()
    features = open_features(finished).features.compute()
    np.testing.assert_array_equal(opened.features.compute(), features[ids == 0])
    for chosen in (0, 1, [0, 2], (1, 2)):
        with case(str(chosen)):
            some = open_features(finished, appends=chosen)
            np.testing.assert_array_equal(some.features.compute(), features[np.isin(ids, chosen)])
    with pytest.raises(DataError, match="appends"):
        open_features(finished, appends=n_steps + 1)


# -- settings of the finished run ----------------------------------------------------------------------------------


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


def add_to_all(runs: Workspace, name: str) -> list[int]:
    """Write an extra, the number of the file, into each file of the first run. Return its values."""
    for number, path in enumerate(sorted(runs.shards.iterdir())):
        add_extra(path, name, np.full(N_ROWS[number], number))
    return [0] * 20 + [1] * 9 + [2] * 15


@pytest.mark.process
def test_extras_can_be_included_later(growing: Workspace, out: Path) -> None:
    """The features stay the same. No run without a flag removes the extra."""
    values = add_to_all(growing, "obs/z")
    assert growing.run(out) == 0
    before = open_features(out).features.compute()
    use = Result.open(out).use()
    plan = growing.plan(out, "--include", "obs/z")
    assert plan.problems == []
    assert {stage.name for stage in plan.stages} == {"start", "encoding", "report"}
    assert growing.run(out, "--include", "obs/z") == 0
    opened = open_features(out)
    np.testing.assert_array_equal(opened.features.compute(), before)
    np.testing.assert_array_equal(opened.result.use(), use)
    assert opened.extras["z"].compute().tolist() == values
    recording = RecordingDisk()
    for again in (["--append"], ["--append", "--include", "obs/z"], ["--include", "obs/z"]):  # append keeps the extra
        assert growing.run(out, *again, disk=recording) == 0
    assert recording.calls == []
    assert growing.run(out) == 78
    assert growing.run(out, "--append", "--include", "obs/nothing") == 65
    add(growing, "1.h5", n_rows=N_ROWS[1], seed=5)
    assert growing.run(out, "--include", "obs/z") == 78, "changed rows are not encoded without --append"
    assert growing.run(out, "--overwrite") == 0
    assert set(open_features(out).extras) == {"y"}


@pytest.mark.slow
def test_rows_without_a_value_stay_marked(growing: Workspace, out: Path) -> None:
    write(growing.shards / "2.h5")  # without labels
    assert growing.run(out) == 0
    add(growing, "3.h5", n_rows=2)
    write(growing.shards / "4.h5")
    add_extra(growing.shards / "1.h5", "obs/z", np.arange(9))
    assert growing.run(out, "--append", "--include", "obs/z") == 0
    extras = open_features(out).extras
    assert extras["y_present"].compute().tolist() == [True] * 29 + [False] * 6 + [True] * 2 + [False] * 6
    assert extras["z_present"].compute().tolist() == [False] * 20 + [True] * 9 + [False] * 14
    assert extras["z"].compute()[20:29].tolist() == list(range(9))
    assert Result.open(out).facts.appends[-1]["drift"]["n_sampled"] == 8, (
        "all rows are encoded, but the new ones judged"
    )
    for name in ("2.h5", "4.h5"):
        (growing.shards / name).unlink()
    add(growing, "5.h5", n_rows=1)
    assert growing.run(out, "--append", "--drop-missing") == 0
    extras = open_features(out).extras
    assert extras["y_present"].compute().tolist() == [True] * 32
    assert extras["z_present"].compute().tolist() == [False] * 20 + [True] * 9 + [False] * 3


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


def test_bad_rows_of_a_file_with_corrected_labels_are_no_new_ones(growing: Workspace, out: Path) -> None:
    with h5py.File(growing.shards / "1.h5", "r+") as file:
        file["X"][4, 2] = np.nan
    flags = ("--on-bad-data", "skip", "--max-bad", "5%")
    assert growing.run(out, *flags) == 0
    with h5py.File(growing.shards / "1.h5", "r+") as file:
        file["y"][2] = 70
    assert growing.run(out, "--append", *flags) == 0  # the row is one of nine in this file
    opened = open_features(out)
    assert opened.extras["y"].compute()[22] == 70
    assert np.flatnonzero(~opened.valid.compute()).tolist() == [24]
    assert Result.open(out).facts.appends == []


# -- files that are missing or bad ---------------------------------------------------------------------------------


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
    write(growing.shards / "8.h5", y=np.arange(6.0))  # not of the dtype of y
    before = stamps(finished)
    assert growing.run(finished, "--append") == 65
    message = errors(caplog)
    assert mentions(message, "5 of 9 files", "0.h5", "3.h5", "4.h5", "7.h5", "8.h5")
    assert stamps(finished) == before
    (flags,) = re.findall(r"--on-bad-data skip --max-bad \d+%", message)
    assert growing.run(finished, "--append", *flags.split()) == 0
    assert ids_of(finished) == [0] * 44 + [1] * 7
    assert names_of_bad_shards(finished) == ["3.h5", "4.h5", "7.h5", "8.h5"]


@pytest.mark.slow
def test_rows_of_damaged_files_stay_until_they_are_dropped(
    growing: Workspace, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    skip = ("--on-bad-data", "skip")  # no limit refers to these files
    before = open_features(finished).features.compute()
    (growing.shards / "0.h5").write_bytes(b"bad")
    (growing.shards / "2.h5").write_bytes(b"bad")
    add_extra(add(growing, "3.h5"), "obs/z", np.arange(7))
    assert growing.run(finished, "--append", "--drop-missing") == 65
    assert growing.run(finished, "--append", "--drop-missing", *skip) == 0
    assert mentions(caplog.text, "0.h5", "2.h5")
    np.testing.assert_array_equal(open_features(finished).features.compute()[:44], before)
    assert Result.open(finished).facts.bad_shards == []
    published = stamps(finished)
    # These runs would encode all rows again.
    assert growing.run(finished, "--append", "--include", "obs/z", *skip) == 65
    assert growing.run(finished, "--overwrite", "--seed", "1", *SKIP) == 65
    assert stamps(finished) == published
    (growing.shards / "0.h5").unlink()
    assert growing.run(finished, "--append", *skip) == 66
    assert growing.run(finished, "--append", *skip, "--drop-missing") == 0
    np.testing.assert_array_equal(open_features(finished).features.compute()[:24], before[20:])
