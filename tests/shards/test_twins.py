"""Tests of shards with equal rows under different names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shardpress.commands.table import main
from shardpress.shards.open import open_shards
from shardpress.shards.shard import Shard
from shardpress.shards.twins import find_twins
from tests.support.cases import case
from tests.support.damage import damage
from tests.support.helpers import write_shard

pytestmark = pytest.mark.process

ROWS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)


def changed(row: int) -> np.ndarray:
    rows = ROWS.copy()
    rows[row, 1] += 1
    return rows


def shards_of(folder: Path, **arrays: np.ndarray) -> tuple[Shard, ...]:
    return tuple(open_shards([str(write_shard(folder / f"{name}.h5", rows)) for name, rows in arrays.items()]))


def names(shards: tuple[Shard, ...]) -> list[tuple[str, str]]:
    return [(Path(first.path).stem, Path(second.path).stem) for first, second in find_twins(shards)]


def test_equal_rows_under_other_names_are_found(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, a=ROWS, b=changed(0), c=ROWS, d=ROWS[:49], e=ROWS.astype(np.float64), f=ROWS)
    assert names(shards) == [("a", "c"), ("a", "f")]


def test_rows_that_differ_in_one_value_are_not_equal(tmp_path: Path) -> None:
    for row in (0, 24, 49):
        with case(row):
            folder = tmp_path / str(row)
            folder.mkdir()
            assert names(shards_of(folder, a=ROWS, b=changed(row))) == []


def test_empty_shards_are_not_equal(tmp_path: Path) -> None:
    assert names(shards_of(tmp_path, a=ROWS[:0], b=ROWS[:0], c=ROWS)) == []


def test_unreadable_shard_has_no_twin(tmp_path: Path) -> None:
    for name in "ab":
        write_shard(tmp_path / f"{name}.h5", ROWS, chunks=(50, 3), fletcher32=True)
    damage(tmp_path / "b.h5")
    assert names(tuple(open_shards([str(tmp_path)]))) == []


def test_inspect_all_names_files_with_equal_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        write_shard(tmp_path / f"{name}.h5", ROWS)
    assert main(["inspect", "--all", str(tmp_path)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("EQUAL ROWS")]
    assert "a.h5" in line
    assert "b.h5" in line
    assert main(["inspect", "--all", "--json", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["equal"] == [[str(tmp_path / "a.h5"), str(tmp_path / "b.h5")]]
