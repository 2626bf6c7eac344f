"""Write shards with bad rows, damaged chunks or unreadable files, run the program on them, and check the results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.model.encoder import Model
from shardpress.output.disk import Disk
from shardpress.result.features import open_features
from shardpress.result.finished import load_model
from tests.support import standin
from tests.support.damage import damage
from tests.support.fields import run_with_sizes
from tests.support.helpers import write_shard

SETTINGS = ["--n-features", "2", "--epochs", "2", "--batch-size", "20", "--threads", "2"]
SKIP = ["--on-bad-data", "skip", "--max-bad", "100%"]


class Shards:
    """A folder of small shards, and their rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "shards"
        self.output = folder / "out"
        self.folder.mkdir()
        self.arrays: list[np.ndarray] = []

    def add(self, rows: Any, **options: Any) -> None:
        """Add a shard, with labels that are numbered over all shards."""
        self.arrays.append(np.empty(0))
        self.rewrite(len(self.arrays) - 1, rows, **options)

    def fill(self, *sizes: int, seed: int = 0, **options: Any) -> None:
        """Add shards of these sizes with good rows."""
        rng = np.random.default_rng(seed)
        for size in sizes:
            self.add((rng.normal(size=(size, 4)) * 10).astype(np.float32), **options)

    def rewrite(self, number: int, rows: Any, **options: Any) -> None:
        """Replace the rows of a shard."""
        first = sum(map(len, self.arrays[:number]))
        path = self.folder / f"{number}.h5"
        write_shard(path, rows, extras={"y": np.arange(first, first + len(rows))}, **options)
        self.arrays[number] = np.asarray(rows)

    def another(self, name: str) -> Shards:
        """Return an empty folder of shards next to this one."""
        folder = self.folder.parent / name
        folder.mkdir()
        return Shards(folder)

    def run(self, *flags: str, output: Path | None = None, disk: Disk | None = None) -> int:
        """Run the program on all shards and return its exit code. Flags can be sizes such as ``block_rows=4``."""
        arguments = ["--input", str(self.folder), "--output", str(output or self.output), *SETTINGS, *flags]
        return run_with_sizes(arguments, disk or standin.UnsyncedDisk())


def errors(caplog: pytest.LogCaptureFixture) -> str:
    """Return the error message of the last run."""
    return [record.getMessage() for record in caplog.records if record.msg == "%s: %s"][-1]


def encoded(model: Model, rows: np.ndarray) -> np.ndarray:
    """Return features of rows, computed with the same arithmetic as in a run."""
    autoencoder = standin.Autoencoder(model.network, *model.scaler.arrays(rows.dtype))
    autoencoder.set_parameters(model.parameters)
    return autoencoder.encode(rows)


def check(output: Path, arrays: Sequence[np.ndarray], bad: Sequence[int], model: Model | None = None) -> None:
    """Check that a finished run has the features of the encoder for good rows, bit for bit, and NaN for bad rows."""
    found = open_features(output)
    features, valid, y = (array.compute() for array in (found.features, found.valid, found.extras["y"]))
    assert np.flatnonzero(~valid).tolist() == sorted(bad)
    assert np.isnan(features[~valid]).all()
    assert y.tolist() == list(range(len(valid)))
    first = 0
    for rows in arrays:
        good = np.flatnonzero(valid[first : first + len(rows)])
        expected = encoded(model or load_model(output), rows[good])
        assert features[first + good].tobytes() == expected.tobytes()
        assert np.isfinite(expected).all()
        first += len(rows)
    assert first == len(valid)
    assert found.result.n_bad == found.result.facts.last.n_bad == len(bad)


def bad_lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "bad_rows.jsonl").read_text().splitlines()]


class InterruptedDisk(Disk):
    """Disk that raises KeyboardInterrupt, as Ctrl-C does, when file number `number` of a folder is created."""

    def __init__(self, folder: str, number: int) -> None:
        self._folder = folder
        self._left = number

    def create(self, path: Path) -> int:
        self._left -= path.parent.name == self._folder
        if self._left < 0:
            raise KeyboardInterrupt
        return super().create(path)


def fill_with_bad_data(shards: Shards) -> list[int]:
    """Write shards with bad rows, an unreadable shard and a refused one. Return the numbers of the bad rows."""
    shards.fill(30, 41, 50, fletcher32=True)
    rows = shards.arrays[0].copy()
    rows[[3, 17], 2] = np.nan
    shards.rewrite(0, rows)
    damage(shards.folder / "1.h5")
    (shards.folder / "x.h5").write_bytes(b"no HDF5")
    return [3, 17, *range(30, 71)]
