"""Tests of comparing two runs: the choice of their common rows, and the results."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.commands.table import main
from shardpress.features import open_features
from shardpress.records import Entry, Part, Range, ShardFacts, Stat, in_order
from shardpress.report import commonrows
from shardpress.report.commonrows import CommonRows, EncodedRows, read_common_rows
from shardpress.report.compare import _Likeness, _verdict, compare
from shardpress.result import Use
from tests.support.helpers import refused
from tests.support.interruptions import SIZES
from tests.support.standin import Workspace

N_ROWS = sum(SIZES)


def verdict_of(change: float | None, cka: float = 1.0, neighbours: float = 1.0) -> tuple[bool, str]:
    return _verdict(_Likeness(100, change, cka, neighbours))


def test_verdict_says_whether_to_train_again() -> None:
    assert [verdict_of(change)[0] for change in (0, 1e-3, 0.02, 0.13, None)] == [False, False, False, True, True]
    same = verdict_of(0)[1]
    similar = verdict_of(0.13)[1]
    different = verdict_of(1.4, cka=0.3)[1]
    assert len({same, similar, different}) == 3
    assert verdict_of(None)[1] == similar
    assert verdict_of(1.4, neighbours=0.2)[1] == different


def test_run_equals_itself_and_a_run_with_other_parts(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    assert workspace.run(out) == 0
    assert workspace.run(tmp_path / "other", "--memory-budget", "20MiB", "block_rows=4") == 0
    for other in (out, tmp_path / "other"):
        found = compare(str(out), str(other))
        assert (found.likeness.change, found.retrain, found.n_common, found.n_changed) == (0, False, N_ROWS, 0)


def shard(path: str, rows: str | None, n_rows: int = 9, dtype: str = "<f4") -> ShardFacts:
    return ShardFacts(path, "X", [n_rows, 4], dtype, Stat(9, 0, 0, 0), rows=rows)


def encoded(shards: list[ShardFacts], parts: list[Part], use: int = Use.TRAINING) -> EncodedRows:
    n_rows = sum(shard.shape[0] for shard in shards)
    return EncodedRows(Path(), in_order(parts), 2, "encoder", shards, np.full(n_rows, use), is_supervised=False)


def random_parts(rng: np.random.Generator, *sizes: int) -> list[Part]:
    """Return a few parts that contain the rows of shards of these sizes in any order, with dead rows between them."""
    ranges: list[list[Range]] = [[] for _ in range(4)]
    ends = [0] * 4
    for number, size in enumerate(sizes):
        edges = np.unique([0, size, *rng.integers(0, size, 9)]).tolist()
        for start, stop in rng.permutation(list(pairwise(edges))).tolist():
            i = int(rng.integers(4))
            first = ends[i] + int(rng.integers(3))
            ranges[i].append(Range(first, number, start, stop))
            ends[i] = first + stop - start
    return [Part(Entry(f"part-{i}", 0, ""), ends[i] + 2, each) for i, each in enumerate(ranges) if each]


def test_rows_are_read_where_the_ranges_say() -> None:
    rng = np.random.default_rng(0)

    def read(path: Path, positions: np.ndarray) -> list[np.ndarray]:
        assert (np.diff(positions) > 0).all()  # as h5py requires
        return [np.full(len(positions), path.name), positions]

    for _ in range(20):
        run = encoded([shard("0.h5", "aa", 100), shard("1.h5", "bb", 50)], random_parts(rng, 100, 50))
        places = [(part.file, each.first + i) for part, each in run.ranges for i in range(each.n_rows)]
        rows = rng.permutation(150)[: rng.integers(1, 150)]
        files, positions = run.read(rows, read)
        assert list(zip(files.tolist(), positions.tolist(), strict=True)) == [places[row] for row in rows]


def common(monkeypatch: pytest.MonkeyPatch, a: EncodedRows, b: EncodedRows) -> CommonRows:
    """Return common rows whose features are the numbers of their parts and their positions in them."""

    def read(path: Path, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, None]:
        numbers = np.full(len(positions), int(path.name.rpartition("-")[2]))
        return np.column_stack([numbers, positions]), np.ones(len(positions), dtype=bool), None

    monkeypatch.setattr(commonrows, "read_features", read)
    return read_common_rows(a, b)


def test_shards_are_paired_by_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of a file are paired one to one; shards whose rows are unknown or have another dtype are not paired."""
    a = [shard("/0", "aa"), shard("/1", "aa"), shard("/2", "bb"), shard("/3", None), shard("/4", "cc")]
    b = [shard("/9", "ee"), shard("/0", "aa"), shard("/2", "dd"), shard("/3", None), shard("/4", "cc", dtype="<f8")]
    runs = []
    for shards in (a, b):
        runs.append(encoded(shards, [Part(Entry(str(i), 0, ""), 9, [Range(0, i, 0, 9)]) for i in range(len(shards))]))
    for before, now in (runs, runs[::-1]):
        found = common(monkeypatch, before, now)
        assert (found.n_rows, found.n_changed) == (9, 2)
        np.testing.assert_array_equal(found.a[:, 1], np.arange(9))
        np.testing.assert_array_equal(found.b[:, 1], np.arange(9))
        assert {int(found.a[0, 0]), int(found.b[0, 0])} == {0, 1}


@pytest.mark.parametrize(
    ("is_supervised", "n_unused", "are_enough"),
    [(True, 0, False), (True, 29, False), (True, 30, True), (False, 299, False), (False, 300, True)],
)
def test_rows_are_held_out_that_trained_neither_model(
    monkeypatch: pytest.MonkeyPatch, is_supervised: bool, n_unused: int, are_enough: bool
) -> None:
    """Without enough of them, a third of the rows is held out; in both cases, whole stretches of a third."""
    parts = [Part(Entry("0", 0, ""), 1200, [Range(0, 0, 0, 1200)])]
    before = encoded([shard("/0", "aa", 1200)], parts, Use.LEFT_OUT)
    now = replace(before, use=before.use.copy(), is_supervised=is_supervised)
    thirds = np.flatnonzero(common(monkeypatch, before, now).is_held_out)
    assert len(thirds) == pytest.approx(400, abs=10)
    assert (np.diff(thirds) == 1).mean() > 0.8, "stretches"
    before.use[thirds[:50]] = Use.TRAINING
    now.use[thirds[50 + n_unused :]] = Use.TRAINING
    found = common(monkeypatch, before, now)
    assert found.trained_neither == are_enough
    expected = thirds[50 : 50 + n_unused] if are_enough else thirds
    np.testing.assert_array_equal(np.flatnonzero(found.is_held_out), expected)


@pytest.mark.process
def test_rows_are_matched_by_their_content(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    assert workspace.run(out) == 0
    (workspace.shards / "0.h5").unlink()
    workspace.add_shard("00.h5", np.random.default_rng(5).normal(size=(30, 4)).astype(np.float32))
    shutil.move(workspace.shards, tmp_path / "moved")
    workspace.shards = tmp_path / "moved"
    (workspace.shards / "1.h5").rename(workspace.shards / "9.h5")
    os.utime(workspace.shards / "2.h5", (0, 0))
    other = tmp_path / "other"
    assert workspace.run(other, "--model", str(out)) == 0
    found = compare(str(out), str(other))
    assert (found.n_common, found.likeness.n_rows, found.likeness.change, found.n_changed) == (35, 35, 0, 0)


@pytest.mark.process
def test_changed_files_are_counted_and_not_compared(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    assert workspace.run(out) == 0
    workspace.add_shard("0.h5", np.random.default_rng(5).normal(size=(20, 4)).astype(np.float32))
    other = tmp_path / "other"
    assert workspace.run(other, "--model", str(out)) == 0
    found = compare(str(out), str(other))
    assert (found.n_common, found.n_changed) == (35, 1)
    assert "1 file " in str(found)


def test_rows_bad_in_both_runs_are_not_compared(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(6).normal(size=(20, 4)).astype(np.float32)
    rows[4] = np.nan
    workspace.add_shard("3.h5", rows)
    flags = ["--on-bad-data", "skip", "--max-bad", "50%"]
    assert workspace.run(out, *flags) == 0
    assert compare(str(out), str(out)).likeness.n_rows == N_ROWS + 19


def test_rows_bad_in_one_run_are_not_compared(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(6).normal(size=(20, 4)).astype(np.float32)
    rows[4, 1] = 0.5
    workspace.add_shard("3.h5", rows)
    flags = ["--on-bad-data", "skip", "--max-bad", "50%"]
    other = tmp_path / "other"
    assert workspace.run(out, *flags) == 0
    assert workspace.run(other, *flags, "--missing-value", "0.5") == 0
    for a, b in ((out, other), (other, out)):
        assert compare(str(a), str(b)).likeness.n_rows == N_ROWS + 19


def test_different_numbers_of_features_are_compared(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    assert workspace.run(out) == 0
    assert workspace.run(tmp_path / "wide", "--n-features", "3") == 0
    found = compare(str(out), str(tmp_path / "wide"))
    assert (found.n_features, found.likeness.change, found.retrain) == ((2, 3), None, True)
    assert "None" not in str(found)


def test_requested_number_of_rows_is_compared(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out) == 0
    assert compare(str(out), str(out), 10).likeness.n_rows == 10


def test_storage_format_hardly_changes_features(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    assert workspace.run(out) == 0
    assert workspace.run(tmp_path / "half", "--storage-dtype", "float16", "--compression", "gzip") == 0
    found = compare(str(out), str(tmp_path / "half"))
    assert found.likeness.change is not None
    assert 0 < found.likeness.change < 0.01
    assert (found.retrain, found.likeness.n_rows) == (False, N_ROWS)
    assert open_features(tmp_path / "half").features.dtype == np.float16


def test_copied_index_without_its_parts_is_refused(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    assert workspace.run(out) == 0
    copy = shutil.copy(out / "index.h5", tmp_path / "copy.h5")
    with refused(65, f"file={tmp_path}/parts/", "Copy the whole directory"):
        compare(str(out), str(copy))


def test_runs_without_common_rows_are_refused(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    assert workspace.run(out) == 0
    for i, n_rows in enumerate(SIZES):
        rows = np.random.default_rng(i + 5).normal(size=(n_rows, 4))
        workspace.add_shard(f"{i}.h5", rows.astype(np.float32))
    assert workspace.run(tmp_path / "other") == 0
    with refused(65, f"output={out}", f"output={tmp_path / 'other'}", " 0 rows"):
        compare(str(out), str(tmp_path / "other"))
    with refused(66, "nowhere"):
        compare(str(out), str(tmp_path / "nowhere"))


def test_command_prints_the_verdict_and_numbers(workspace: Workspace, out: Path, capsys: Any) -> None:
    assert workspace.run(out) == 0
    capsys.readouterr()
    assert main(["compare", str(out), str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"{verdict_of(0)[1]}\n")
    assert main(["compare", str(out), str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["retrain"], found["likeness"]["cka"]) == (False, pytest.approx(1))
