"""Tests of comparing two runs: the choice of their common rows, and the results."""

from __future__ import annotations

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.commands.table import main
from shardpress.features import open_features
from shardpress.records import Entry, Part
from shardpress.report.commonrows import all_pieces
from shardpress.report.compare import Likeness, compare, verdict
from tests.support.helpers import refused
from tests.support.interruptions import SIZES
from tests.support.standin import Workspace

N_ROWS = sum(SIZES)


def verdict_of(change: float | None, cka: float = 1.0, neighbours: float = 1.0) -> tuple[bool, str]:
    return verdict(Likeness(100, change, cka, neighbours))


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


def test_common_pieces_equal_a_pairwise_search() -> None:
    rng = np.random.default_rng(0)

    def cut(n_rows: int, path: str) -> list[Part]:
        edges = np.unique([0, n_rows, *rng.integers(0, n_rows, 9)]).tolist()
        return [
            Part(Entry(f"{path}-{start}", 0, ""), stop - start, 0, 0, 0, path, "X", start, stop)
            for start, stop in pairwise(edges)
            if rng.random() < 0.8
        ]

    for _ in range(20):
        a, b = (cut(100, "0.h5") + cut(50, "1.h5") for _ in range(2))
        rng.shuffle(b)
        starts = {part.file: part.start for part in a}
        pairs = [
            {(part.path, row): part.file for part in parts for row in range(part.start, part.stop)} for parts in (a, b)
        ]
        found = {
            (piece.name, starts[piece.parts[0]] + piece.starts[0] + i): piece.parts
            for piece in all_pieces(a, b)
            for i in range(piece.n_rows)
        }
        assert found == {row: (pairs[0][row], pairs[1][row]) for row in pairs[0].keys() & pairs[1].keys()}


@pytest.mark.process
def test_rows_are_matched_by_file_name_and_number(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    assert workspace.run(out) == 0
    (workspace.shards / "0.h5").unlink()
    workspace.add_shard("00.h5", np.random.default_rng(5).normal(size=(30, 4)).astype(np.float32))
    shutil.move(workspace.shards, tmp_path / "moved")
    workspace.shards = tmp_path / "moved"
    other = tmp_path / "other"
    assert workspace.run(other, "--model", str(out)) == 0
    found = compare(str(out), str(other))
    assert (found.n_common, found.likeness.n_rows, found.likeness.change, found.n_changed) == (35, 35, 0, 0)
    os.utime(workspace.shards / "2.h5", (0, 0))
    assert workspace.run(other, "--model", str(out), "--restart") == 0
    assert compare(str(out), str(other)).n_changed == 1
    assert "1 file " in str(compare(str(out), str(other)))


def test_files_of_equal_names_in_two_directories_are_distinct(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    shutil.copytree(workspace.shards, tmp_path / "more")
    rows = np.random.default_rng(6).normal(size=(20, 4)).astype(np.float32)
    first = workspace.shards
    workspace.shards = tmp_path / "more"
    workspace.add_shard("0.h5", rows)
    flags = ["--input", str(first)]
    assert workspace.run(out, *flags) == 0
    assert workspace.run(tmp_path / "other", *flags, "--seed", "1") == 0
    assert compare(str(out), str(out)).likeness.change == 0
    assert compare(str(out), str(tmp_path / "other")).n_common == 2 * N_ROWS


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
    for path in workspace.shards.iterdir():
        path.rename(path.with_name(f"x{path.name}"))
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
