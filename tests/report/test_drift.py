"""Tests of drift in the report: sums over ranges and shards, the order, and a note if counts are lower bounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shardpress.records import Range
from shardpress.report.facts import drift_facts
from shardpress.report.page.document import Table
from shardpress.report.page.verdict import _drift
from shardpress.scan.drift import MAX_LISTED_COLUMNS, outside_of
from shardpress.scan.scaler import Scaler
from tests.support.helpers import numbered_shards

RANGE = Scaler(np.zeros(30), np.ones(30))


def ranges_of(rows: np.ndarray, range_rows: int) -> list[Range]:
    """Return the drift of the ranges of three shards. Some of their rows are outside the range."""
    ranges = []
    for shard in range(3):
        for start in range(0, len(rows[shard]), range_rows):
            some = rows[shard][start : start + range_rows]
            out = some[((some < 0) | (some > 1)).any(axis=1)]
            found = outside_of(out, RANGE)[:MAX_LISTED_COLUMNS] if len(out) else []
            ranges.append(Range(0, shard, start, start + len(some), n_outside=len(out), outside=found))
    return ranges


def test_counts_of_drift_do_not_depend_on_the_ranges(tmp_path: Path) -> None:
    shards = numbered_shards(tmp_path, 40, 40, 40)
    rows = np.random.default_rng(0).uniform(0.1, 0.9, (3, 40, 30))
    rows[0, 5:9, 3] = 2
    rows[1, 7, 3] = -4
    rows[1, 8:30, 4] = 1.5
    rows[1, 30, 11] = 9
    summary = drift_facts(shards, ranges_of(rows, 7), "clip")
    assert summary == drift_facts(shards, ranges_of(rows, 40), "clip")
    assert (summary["n_rows"], summary["n_outside"], summary["n_columns"], summary["n_shards"]) == (120, 28, 3, 2)
    assert [
        (each["column"], each["n_values"], each["n_shards"], each["value"], each["excess"])
        for each in summary["columns"]
    ] == [
        (4, 22, 1, 1.5, 0.5),
        (3, 5, 2, -4, 4),
        (11, 1, 1, 9, 8),
    ]
    assert [(Path(each["file"]).name, each["n_outside"]) for each in summary["shards"]] == [("1.h5", 24), ("0.h5", 4)]
    words, columns, files = _drift(summary)
    assert "28 of 120 rows (23 %)" in str(words)
    assert str(words) != str(next(_drift(drift_facts(shards, ranges_of(rows, 7), "pass"))))
    assert isinstance(columns, Table)
    assert columns.rows[1] == ("3", "5", "2", "0 to 1", "-4", "4")
    assert isinstance(files, Table)
    assert files.rows[1] == (str(tmp_path / "0.h5"), "4", "40")


def test_first_of_many_columns_are_listed_with_a_note(tmp_path: Path) -> None:
    shards = numbered_shards(tmp_path, 40, 40, 40)
    rows = np.full((3, 40, 30), 0.5)
    rows[:, :, : MAX_LISTED_COLUMNS - 1] = 2.0
    summary = drift_facts(shards, ranges_of(rows, 40), "pass")
    assert (summary["n_columns"], len(summary["columns"])) == (MAX_LISTED_COLUMNS - 1, 10)
    complete = str(next(_drift(summary)))
    shortened = str(next(_drift(drift_facts(shards, ranges_of(np.full(rows.shape, 2.0), 40), "pass"))))
    assert shortened.startswith(complete)
    assert "20 farthest columns" in shortened.removeprefix(complete)


def test_no_drift_means_no_section(tmp_path: Path) -> None:
    shards = numbered_shards(tmp_path, 40, 40, 40)
    facts = drift_facts(shards, ranges_of(np.full((3, 40, 30), 0.5), 8), "pass")
    assert list(_drift(facts)) == list(_drift(None)) == []
