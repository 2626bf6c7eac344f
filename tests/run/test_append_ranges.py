"""Tests of the ranges that all rows would have, which each append reports from the stored scans of the shards."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.model import load_model
from shardpress.report.page.build import page_of, read_report, text_of
from shardpress.run import scan_stage
from tests.support.appends import N_ROWS, add, add_extra
from tests.support.standin import Workspace

COLUMN = 1


def add_wide(runs: Workspace, name: str, factor: float, n_rows: int = 7, seed: int = 1) -> None:
    """Write another file, or replace one, whose rows have large values in one column."""
    path = add(runs, name, n_rows, seed)
    with h5py.File(path, "r+") as file:
        file["X"][:, COLUMN] *= factor


def range_in(runs: Workspace) -> tuple[float, float]:
    """Return the range of the column in all files of the data set."""
    columns = []
    for path in runs.shards.iterdir():
        with h5py.File(path) as file:
            columns.append(file["X"][:, COLUMN])
    return float(np.concatenate(columns).min()), float(np.concatenate(columns).max())


def check_range(runs: Workspace, output: Path) -> None:
    """Check the range that the report states for the column, which is at least the training range."""
    low, high = range_in(runs)
    found = {each["column"]: each for each in read_report(output)["ranges"]["columns"]}.get(COLUMN)
    if found is not None:
        expected = (min(low, found["low"]), max(high, found["high"]))
        assert (found["all_low"], found["all_high"]) == pytest.approx(expected)
        return
    scaler = load_model(output).scaler
    assert scaler.minimum[COLUMN] <= low
    assert high <= scaler.maximum[COLUMN]


def test_ranges_of_all_rows_need_only_the_scans_of_new_files(growing: Workspace, finished: Path) -> None:
    for number, factor in enumerate((3, 1, 5), len(N_ROWS)):
        add_wide(growing, f"{number}.h5", factor, seed=number)
        assert growing.run(finished, "--append") == 0
        check_range(growing, finished)
    assert read_report(finished)["ranges"]["columns"][0]["column"] == COLUMN
    assert "wider range" in text_of(page_of(read_report(finished)))


def test_replaced_and_removed_rows_do_not_count(growing: Workspace, finished: Path) -> None:
    for number, factor in ((3, 9), (4, 5), (5, 3)):
        add_wide(growing, f"{number}.h5", factor, seed=number)
    assert growing.run(finished, "--append") == 0
    check_range(growing, finished)
    add_wide(growing, "3.h5", 1)  # replaces the file with the largest values
    assert growing.run(finished, "--append") == 0
    check_range(growing, finished)
    (growing.shards / "4.h5").unlink()
    add_wide(growing, "6.h5", 1)
    assert growing.run(finished, "--append", "--drop-missing") == 0
    check_range(growing, finished)
    (growing.shards / "5.h5").unlink()
    assert growing.run(finished, "--append", "--drop-missing") == 0  # no new rows
    check_range(growing, finished)
    add_wide(growing, "0.h5", 2, n_rows=N_ROWS[0])  # a file of the training
    assert growing.run(finished, "--append") == 0
    check_range(growing, finished)


def test_new_rows_are_scanned_although_others_are_copied(growing: Workspace, finished: Path) -> None:
    for number, path in enumerate(sorted(growing.shards.iterdir())):
        add_extra(path, "z", np.arange(N_ROWS[number]))
    add_wide(growing, "3.h5", 9)
    add_extra(growing.shards / "3.h5", "z", np.arange(7))
    assert growing.run(finished, "--append") == 0
    check_range(growing, finished)
    assert read_report(finished)["stages"]["scan"]["n_rows"] == 7
    add_wide(growing, "4.h5", 3)
    add_extra(growing.shards / "4.h5", "z", np.arange(7))
    assert growing.run(finished, "--append") == 0
    check_range(growing, finished)


def test_bad_rows_are_counted_although_others_are_copied(growing: Workspace, out: Path) -> None:
    flags = ("--on-bad-data", "skip", "--max-bad", "1")
    assert growing.run(out, *flags) == 0
    for number, path in enumerate(sorted(growing.shards.iterdir())):
        add_extra(path, "z", np.arange(N_ROWS[number]))
    for number, n_bad in ((3, 2), (4, 1)):
        path = add(growing, f"{number}.h5")
        add_extra(path, "z", np.arange(7))
        with h5py.File(path, "r+") as file:
            file["X"][:n_bad, 2] = np.nan
    assert growing.run(out, "--append", *flags) == 65
    (growing.shards / "3.h5").unlink()
    assert growing.run(out, "--append", *flags) == 0
    report = read_report(out)
    assert report["bad"]["rows"]["n"] == 1
    assert report["bad"]["rows"]["first"][0]["file"].endswith("4.h5")


@pytest.mark.parametrize("flags", [["--clip-quantile", "0.05"], ["--transform", "rank"]], ids=["clip", "rank"])
def test_ranges_that_are_not_those_of_values_are_not_compared(growing: Workspace, out: Path, flags: list[str]) -> None:
    assert growing.run(out, *flags) == 0
    add(growing, "3.h5")
    assert growing.run(out, "--append") == 0
    assert read_report(out)["ranges"] is None


def test_without_ranges_of_shards_whole_scans_count(
    growing: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_stage, "_MOST_RANGE_BYTES", 0)
    assert growing.run(out) == 0
    add_wide(growing, "3.h5", 9)
    assert growing.run(out, "--append") == 0
    check_range(growing, out)
    _, widest = range_in(growing)
    (growing.shards / "3.h5").unlink()
    assert growing.run(out, "--append", "--drop-missing") == 0
    assert read_report(out)["ranges"]["columns"][0]["all_high"] == pytest.approx(widest)
