"""Tests of `shardpress inspect --all`, which finds files with equal rows under different names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shardpress.commands import inspect
from shardpress.commands.table import main
from tests.support.damage import damage
from tests.support.helpers import write_shard
from tests.support.logged import mentions

pytestmark = pytest.mark.process

ROWS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
Capture = pytest.CaptureFixture[str]


def equal(folder: Path, capsys: Capture) -> list[list[str]]:
    """Return the names of equal files, in pairs."""
    assert main(["inspect", "--all", "--json", str(folder)]) == 0
    return [[Path(path).stem for path in pair] for pair in json.loads(capsys.readouterr().out)["equal"]]


def write(folder: Path, **arrays: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in arrays.items():
        write_shard(folder / f"{name}.h5", rows)
    return folder


@pytest.mark.parametrize("n_bytes", [1, 84, 2**23])
def test_equal_rows_under_other_names_are_found(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, n_bytes: int
) -> None:
    monkeypatch.setattr(inspect, "_BLOCK_BYTES", n_bytes)
    for row in (0, 24, 49):
        changed = ROWS.copy()
        changed[row, 1] += 1
        write(tmp_path, **{f"changed-{row}": changed})
    write(tmp_path, a=ROWS, b=ROWS[::-1], c=ROWS, d=ROWS[:49], e=ROWS.astype(np.float64), f=ROWS)
    write(tmp_path, g=ROWS[:0], h=ROWS[:0])
    assert equal(tmp_path, capsys) == [["a", "c"], ["a", "f"]]
    assert main(["inspect", "--all", str(tmp_path)]) == 0
    assert mentions(capsys.readouterr().out, "EQUAL ROWS", "a.h5", "c.h5")


def test_an_unreadable_file_is_equal_to_none(tmp_path: Path, capsys: Capture) -> None:
    for name in "ab":
        write_shard(tmp_path / f"{name}.h5", ROWS, chunks=(50, 3), fletcher32=True)
    damage(tmp_path / "b.h5")
    assert equal(tmp_path, capsys) == []
