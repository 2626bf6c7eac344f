"""Tests of `shardpress inspect --all`, which finds files with equal rows under different names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shardpress.commands import inspect
from shardpress.commands.table import main
from tests.support.cases import case
from tests.support.damage import damage
from tests.support.helpers import write_shard

pytestmark = pytest.mark.process

ROWS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
Capture = pytest.CaptureFixture[str]


def changed(row: int) -> np.ndarray:
    rows = ROWS.copy()
    rows[row, 1] += 1
    return rows


def equal(folder: Path, capsys: Capture) -> list[list[str]]:
    """Return the names of equal files, in pairs."""
    assert main(["inspect", "--all", "--json", str(folder)]) == 0
    return [[Path(path).stem for path in pair] for pair in json.loads(capsys.readouterr().out)["equal"]]


def write(folder: Path, **arrays: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in arrays.items():
        write_shard(folder / f"{name}.h5", rows)
    return folder


def test_equal_rows_under_other_names_are_found(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path, a=ROWS, b=changed(0), c=ROWS, d=ROWS[:49], e=ROWS.astype(np.float64), f=ROWS)
    write(tmp_path, g=ROWS[:0], h=ROWS[:0])
    assert equal(tmp_path, capsys) == [["a", "c"], ["a", "f"]]


@pytest.mark.parametrize("n_bytes", [1, 84, 2**23])
def test_rows_that_differ_in_one_value_or_in_their_order_are_not_equal(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, n_bytes: int
) -> None:
    monkeypatch.setattr(inspect, "_BLOCK_BYTES", n_bytes)
    for i, other in enumerate((changed(0), changed(24), changed(49), ROWS[::-1])):
        with case(i):
            assert equal(write(tmp_path / str(i), a=ROWS, b=other), capsys) == []


def test_an_unreadable_file_is_equal_to_none(tmp_path: Path, capsys: Capture) -> None:
    for name in "ab":
        write_shard(tmp_path / f"{name}.h5", ROWS, chunks=(50, 3), fletcher32=True)
    damage(tmp_path / "b.h5")
    assert equal(tmp_path, capsys) == []


def test_files_with_equal_rows_are_named(tmp_path: Path, capsys: Capture) -> None:
    assert main(["inspect", "--all", str(write(tmp_path, a=ROWS, b=ROWS))]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("EQUAL ROWS")]
    assert "a.h5" in line
    assert "b.h5" in line
