"""Months of appends: rows that do not change, and rows that change in three ways.

A run over twenty files trains the model. Then one file arrives, and then ten more, all with the same distribution: the
verdict is *keep*. A file whose values are shifted, one whose rows are rotated in the space of the features, and one
with a column that is stuck at one value are found, and the reason names what has changed.

Sample: one seed; with TEST_CASES=all, a hundred seeds with at most five false alarms and at least 95 hits per kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.report.page.build import page_of, text_of
from shardpress.report.summary import report_of
from shardpress.result.finished import Result
from shardpress.run import budget
from tests.support.cases import ALL_CASES
from tests.support.standin import Workspace, features_of

N_ROWS = 200  # rows of a file
N_COLUMNS = 12
FLAGS = ("--n-features", "4", "--epochs", "4", "--validation-fraction", "0.1", "block_rows=1024", "--quiet")
SEEDS = range(100 if ALL_CASES else 1)
STUCK = 7
DEVIATIONS = np.array([3.0, 2.0, 1.0, 0.5])  # standard deviations of the causes of the rows


class Month:
    """Runs into one output directory, while files arrive from a machine whose sensors depend on four causes.

    Parameters
    ----------
    workspace : Workspace
    seed : int
        Seed of the rows and of their dependence on the causes.
    """

    def __init__(self, workspace: Workspace, seed: int) -> None:
        self._rng = np.random.default_rng((seed, 1))
        self._mixing = np.random.default_rng((seed, 2)).normal(size=(len(DEVIATIONS), N_COLUMNS))
        self._workspace = workspace
        self._n_files = 0
        self.output = workspace.folder / "features"

    def arrive(self, n_files: int, kind: str = "unchanged") -> None:
        """Add files to the input."""
        for _ in range(n_files):
            self._workspace.add_shard(f"{self._n_files:02d}.h5", self._rows(kind).astype(np.float32))
            self._n_files += 1

    def _rows(self, kind: str) -> np.ndarray:
        causes = DEVIATIONS * self._rng.normal(size=(N_ROWS, len(DEVIATIONS)))
        if kind == "rotated":  # the weakest cause now varies like the strongest one, and vice versa
            causes = causes[:, ::-1]
        rows = causes @ self._mixing + 0.3 * self._rng.normal(size=(N_ROWS, N_COLUMNS))
        if kind == "shifted":
            rows[:, :4] += 2 * np.abs(self._mixing[0, :4]) * DEVIATIONS[0]
        if kind == "foreign":  # rows of another machine, which do not depend on the causes
            rows = 5 * self._rng.normal(size=rows.shape)
        if kind == "stuck":
            rows[:, STUCK] = rows[0, STUCK]
        return rows

    def run(self, *flags: str) -> int:
        return self._workspace.run(self.output, *FLAGS, *flags)

    def append(self, n_files: int, kind: str = "unchanged") -> Any:
        """Append files, and return the verdict on their rows."""
        self.arrive(n_files, kind)
        assert self.run("--append") == 0
        return Result.open(self.output).facts.appends[-1].append.verdict


@pytest.fixture
def month(empty: Workspace, monkeypatch: pytest.MonkeyPatch) -> Month:
    """Return twenty files. Parts have many rows; the stand-in makes them as small as possible."""
    monkeypatch.setattr(budget, "_PART_BYTES", 2**20)
    month = Month(empty, seed=0)
    month.arrive(n_files=20)
    return month


# Whether a verdict names what has changed.
REASONS: dict[str, Callable[[Any], bool]] = {
    "shifted": lambda found: found.mean_shift > 0.5 or found.outside_share > 0.1,
    "rotated": lambda found: found.covariance_shift > 1,
    "stuck": lambda found: STUCK in [column.column for column in found.stuck_columns],
}


def test_without_held_out_rows_there_is_no_verdict(month: Month) -> None:
    assert month.run("--validation-fraction", "0") == 0
    month.arrive(n_files=1)
    for strictness in ("fail", "watch"):
        assert month.run("--validation-fraction", "0", "--append", "--on-append-drift", strictness) == 80
    assert month.run("--validation-fraction", "0", "--append") == 0
    assert Result.open(month.output).facts.appends[-1].append.verdict is None
    assert "held out no rows" in text_of(page_of(report_of(Result.open(month.output))))


@pytest.mark.process
def test_an_append_can_end_before_drifted_rows_are_published(month: Month) -> None:
    """Rows are compared with those that trained the given model."""
    assert month.run() == 0
    trained = month.output.rename(month.output.with_name("trained"))
    assert month.run("--model", str(trained)) == 0
    assert month.append(n_files=1).level == "keep"
    month.arrive(n_files=1, kind="foreign")
    before = features_of(month.output)
    assert month.run("--append", "--on-append-drift", "fail") == 80
    assert features_of(month.output) == before
    assert month.run("--append", "--on-append-drift", "warn") == 0
    assert Result.open(month.output).facts.appends[-1].append.verdict.level == "retrain"


def test_rows_to_watch_are_published_unless_watch_is_set(month: Month) -> None:
    assert month.run() == 0
    month.arrive(n_files=1)
    assert month.run("--append", "--on-append-drift", "watch") == 0, "the verdict is keep"
    month.arrive(n_files=1, kind="stuck")
    before = features_of(month.output)
    assert month.run("--append", "--on-append-drift", "watch") == 80
    assert features_of(month.output) == before
    assert month.run("--append", "--on-append-drift", "fail") == 0
    assert Result.open(month.output).facts.appends[-1].append.verdict.level == "watch"
    month.arrive(n_files=1, kind="foreign")
    before = features_of(month.output)
    assert month.run("--append", "--on-append-drift", "watch") == 80
    assert features_of(month.output) == before


@pytest.mark.slow
def test_verdicts_are_reliable(month: Month, tmp_path: Path) -> None:
    false_alarms = 0
    later_alarms = 0
    hits = Counter[str]()
    for seed in SEEDS:
        folder = tmp_path / f"{seed}"
        folder.mkdir()
        month = Month(Workspace(folder), seed)
        month.arrive(n_files=20)
        assert month.run() == 0
        unchanged = [month.append(n_files=1), month.append(n_files=10)]
        false_alarms += any(found.level != "keep" for found in unchanged)
        for kind, is_right in REASONS.items():
            found = month.append(n_files=1, kind=kind)
            hits[kind] += found.level != "keep" and is_right(found)
        text = text_of(page_of(report_of(Result.open(month.output))))
        assert "Appended rows" in text
        assert f"olumn {STUCK}" in text
        later_alarms += month.append(n_files=1).level != "keep"  # earlier drift does not move the reference
    assert max(false_alarms, later_alarms) <= 0.05 * len(SEEDS)
    assert min(hits[kind] for kind in REASONS) >= 0.95 * len(SEEDS)
