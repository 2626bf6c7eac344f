"""Tests of comparing two runs: the choice of their common rows, the similarity of their features, and the verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.commands.registry import main
from shardpress.report.commonrows import EncodedRows, read_common_rows
from shardpress.report.compare import _likeness, compare
from shardpress.result.finished import Use
from shardpress.result.records import Entry, Part, Range, ShardFacts, Stat, in_order
from tests.support.cases import each
from tests.support.interruptions import SIZES
from tests.support.parts import shard_id
from tests.support.standin import Workspace

N_ROWS = sum(SIZES)


def shard(path: str, rows: str | None, n_rows: int = 9, dtype: str = "<f4") -> ShardFacts:
    return ShardFacts(shard_id(0), path, "X", [n_rows, 4], dtype, Stat(9, 0, 0, 0), rows=rows)


def whole_parts(folder: Path, shards: list[ShardFacts]) -> EncodedRows:
    """Return a run with a part for each shard, whose features are the numbers of the parts and of their rows."""
    parts = []
    for i, facts in enumerate(shards):
        n_rows = facts.shape[0]
        with h5py.File(folder / str(i), "w") as file:
            file["features"] = np.column_stack([np.full(n_rows, i), np.arange(n_rows)])
            file["valid"] = np.ones(n_rows, dtype=bool)
        parts.append(Part(Entry(str(i), 0, ""), n_rows, [Range(0, shard_id(i), 0, n_rows)]))
    use = np.full(sum(each.shape[0] for each in shards), Use.TRAINING)
    return EncodedRows(
        folder, in_order(parts, map(shard_id, range(len(parts)))), 2, "encoder", shards, use, is_supervised=False
    )


def test_shards_are_paired_by_their_rows(tmp_path: Path) -> None:
    """Copies of a file are paired one to one; shards whose rows are unknown or have another dtype are not paired."""
    a = [shard("/0", "aa"), shard("/1", "aa"), shard("/2", "bb"), shard("/3", None), shard("/4", "cc")]
    b = [shard("/9", "ee"), shard("/0", "aa"), shard("/2", "dd"), shard("/3", None), shard("/4", "cc", dtype="<f8")]
    runs = (whole_parts(tmp_path, a), whole_parts(tmp_path, b))
    for before, now in (runs, runs[::-1]):
        found = read_common_rows(before, now)
        assert (found.n_rows, found.n_changed) == (9, 2)
        np.testing.assert_array_equal(found.a[:, 1], np.arange(9))
        np.testing.assert_array_equal(found.b[:, 1], np.arange(9))
        assert {int(found.a[0, 0]), int(found.b[0, 0])} == {0, 1}


@each(
    "is_supervised, n_unused, are_enough",
    [(True, 0, False), (True, 29, False), (True, 30, True), (False, 299, False), (False, 300, True)],
)
def test_rows_are_held_out_that_trained_neither_model(
    tmp_path: Path, is_supervised: bool, n_unused: int, are_enough: bool
) -> None:
    """Without enough of them, a third of the rows is held out; in both cases, whole stretches of a third."""
    run = whole_parts(tmp_path, [shard("/0", "aa", 1200)])
    before = replace(run, use=np.full(1200, Use.LEFT_OUT))
    now = replace(run, use=before.use.copy(), is_supervised=is_supervised)
    thirds = np.flatnonzero(read_common_rows(before, now).is_held_out)
    assert len(thirds) == pytest.approx(400, abs=10)
    assert (np.diff(thirds) == 1).mean() > 0.8, "stretches"
    before.use[thirds[:50]] = Use.TRAINING
    now.use[thirds[50 + n_unused :]] = Use.TRAINING
    found = read_common_rows(before, now)
    assert found.trained_neither == are_enough
    expected = thirds[50 : 50 + n_unused] if are_enough else thirds
    np.testing.assert_array_equal(np.flatnonzero(found.is_held_out), expected)


# -- similarity of features, against slow definitions ----------------------------------------------------------------

RNG = np.random.default_rng(0)
A = RNG.normal(size=(300, 6)) * [3, 2, 2, 1, 1, 0.5] + RNG.normal(size=6)


def test_alignment_and_neighbours_equal_their_definitions() -> None:
    """Kornblith et al. define CKA as HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = A A' and L = B B'."""
    B = np.tanh(A @ RNG.normal(size=(6, 9))) + RNG.normal(size=(300, 9)) / 4
    center = np.eye(len(A)) - 1 / len(A)
    K, L = (center @ each @ each.T @ center for each in (A, B))
    shared = 0
    for i in range(len(A)):
        neighbours = [set(np.argsort(np.linalg.norm(each - each[i], axis=1))[1:11]) for each in (A, B)]
        shared += len(neighbours[0] & neighbours[1])
    found = _likeness(A, B)
    assert found.cka == pytest.approx((K * L).sum() / np.sqrt((K * K).sum() * (L * L).sum()))
    assert found.neighbours == pytest.approx(shared / (10 * len(A)))
    for a, b in ((A[:2], A[:2]), (A[:3], np.ones((3, 2))), (np.ones((3, 2)), np.ones((3, 2)))):
        of_few_rows = _likeness(a, b)
        assert np.isfinite([of_few_rows.cka, of_few_rows.neighbours]).all()


def test_run_equals_itself_and_a_run_with_other_parts(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    assert workspace.run(out) == 0
    assert workspace.run(tmp_path / "other", "--memory-budget", "20MiB", "block_rows=4") == 0
    for other in (out, tmp_path / "other"):
        found = compare(str(out), str(other), with_map=True)
        assert (found.likeness.change, found.retrain, found.n_common, found.n_changed) == (0, False, N_ROWS, 0)
        assert found.alignment is not None
        assert found.alignment.r2.min() > 0.9999
    assert compare(str(out), str(out), 10).likeness.n_rows == 10


def test_rows_bad_in_one_run_are_not_compared(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(6).normal(size=(20, 4)).astype(np.float32)
    rows[4, 1] = 0.5
    workspace.add_shard("3.h5", rows)
    flags = ["--on-bad-data", "skip", "--max-bad", "50%"]
    other = tmp_path / "other"
    assert workspace.run(out, *flags) == 0
    assert workspace.run(other, *flags, "--missing-value", "0.5") == 0
    for a, b in ((out, other), (other, out), (other, other)):
        assert compare(str(a), str(b)).likeness.n_rows == N_ROWS + 19


def test_the_verdict_says_whether_to_train_again(workspace: Workspace, out: Path, capsys: Any) -> None:
    assert workspace.run(out) == 0
    other = out.with_name("other")
    assert workspace.run(other, "--n-features", "3") == 0
    found = compare(str(out), str(other))
    assert (found.retrain, found.likeness.change) == (True, None)
    for flags, needs_training in ((["--seed", "1"], True), (["--storage-dtype", "float16"], False)):
        assert workspace.run(other, "--overwrite", *flags) == 0
        found = compare(str(out), str(other))
        assert found.retrain == needs_training
        assert found.likeness.change is not None
        assert (found.likeness.change > 0.01) == needs_training
    capsys.readouterr()
    assert main(["compare", str(out), str(other)]) == 0
    assert capsys.readouterr().out.startswith(f"{found.verdict}\n")
    assert main(["compare", str(out), str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found.facts() | {"n_features": list(found.n_features)}
