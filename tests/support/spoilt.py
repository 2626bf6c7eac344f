"""Shards of which some rows, chunks or files are bad, whole runs over them, and what these must make of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import cli
from pipeline.features import open_features
from pipeline.model import Model, load_model
from pipeline.output.disk import Disk
from pipeline.output.records import plain_name, read_manifest
from tests.support import standin
from tests.support.damage import damage
from tests.support.helpers import write_shard

__all__ = [
    *("KEEP", "TOLERANT", "Impatient", "Shards", "Silent", "check", "encoded", "errors", "quarantined", "results"),
    *("spoilt", "state"),
]

SETTINGS = ["--n-features", "2", "--epochs", "2", "--batch-size", "20", "--block-rows", "8", "--threads", "2"]
KEEP = ["--max-bad-rows", "100%", "--max-bad-shards", "100%"]
TOLERANT = pytest.mark.parametrize("mode", ["skip", "quarantine"])


class Silent(standin.Autoencoder):
    """No device warns of the NaN and Inf of rows that are skipped, as NumPy does, which stands in for it."""

    def encode(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        with np.errstate(all="ignore"):
            return super().encode(rows, out)


class Shards:
    """A folder of small shards, and what they hold."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder / "shards", folder / "out"
        self.folder.mkdir()
        self.arrays: list[np.ndarray] = []

    def add(self, rows: Any, **how: Any) -> Path:
        """A shard more, whose labels count on over all shards."""
        first = sum(map(len, self.arrays))
        path = self.folder / f"{len(self.arrays)}.h5"
        write_shard(path, rows, extras={"y": np.arange(first, first + len(rows))}, **how)
        self.arrays.append(np.asarray(rows))
        return path

    def fill(self, *sizes: int, seed: int = 0, dtype: Any = np.float32, **how: Any) -> None:
        """Shards of these sizes with good rows."""
        rng = np.random.default_rng(seed)
        for size in sizes:
            self.add((rng.normal(size=(size, 4)) * 10).astype(dtype), **how)

    def rewrite(self, number: int, rows: np.ndarray, **how: Any) -> None:
        """A shard's rows anew, in the same place."""
        first = sum(map(len, self.arrays[:number]))
        path = self.folder / f"{number}.h5"
        write_shard(path, rows, extras={"y": np.arange(first, first + len(rows))}, **how)
        self.arrays[number] = rows

    def another(self, name: str) -> Shards:
        """A folder of none yet, beside this one."""
        folder = self.folder.parent / name
        folder.mkdir()
        return Shards(folder)

    def run(self, *flags: str, output: Path | None = None, disk: Disk | None = None) -> int:
        """Exit code of a run over all of them."""
        given = ["--input", str(self.folder), "--output", str(output or self.output), *SETTINGS, *flags]
        return cli.main("", given, disk or standin.Unsynced())


def errors(caplog: pytest.LogCaptureFixture) -> str:
    """What the last run said of its failure."""
    return [record.getMessage() for record in caplog.records if record.msg == "%s: %s"][-1]


def encoded(model: Model, rows: np.ndarray) -> np.ndarray:
    """Features of rows, by the same arithmetic as in a run."""
    autoencoder = Silent(model.network, *model.scaler.arrays(rows.dtype))
    autoencoder.set_parameters(model.parameters)
    return autoencoder.encode(rows)


def check(output: Path, arrays: Sequence[np.ndarray], bad: Sequence[int], model: Model | None = None) -> None:
    """Hold a finished run against the encoder: every good row's bits at its place, NaN for the bad ones."""
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
    assert found.manifest["n_bad"] == found.manifest["summary"]["n_bad"] == len(bad)


def quarantined(output: Path) -> list[dict[str, Any]]:
    """The lines of the list of bad data, which the manifest knows."""
    assert "quarantine.jsonl" in [plain_name(line["file"]) for line in read_manifest(output)["files"]]
    return [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]


def state(output: Path) -> dict[str, bytes]:
    """Every file of an output directory but those that say who is at work and what was last asked for."""
    apart = (".lock", "run.log", "run.json")
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.name not in apart
    }


def results(output: Path) -> dict[str, bytes]:
    """What the manifest names, and itself."""
    manifest = read_manifest(output)
    names = ["manifest.json", *(line["file"] for line in [*manifest["parts"], *manifest["files"]])]
    return {name: (output / name).read_bytes() for name in names}


class Impatient(Disk):
    """Its user presses Ctrl-C while file number `number` of a folder is made."""

    def __init__(self, folder: str, number: int) -> None:
        self._folder, self._left = folder, number

    def create(self, path: Path) -> int:
        self._left -= path.parent.name == self._folder
        if self._left < 0:
            raise KeyboardInterrupt
        return super().create(path)


def spoilt(shards: Shards) -> list[int]:
    """Shards with bad rows, one that cannot be read, and one that is refused; numbers of the bad rows."""
    shards.fill(30, 41, 50, fletcher32=True)
    rows = shards.arrays[0].copy()
    rows[[3, 17], 2] = np.nan
    shards.rewrite(0, rows)
    damage(shards.folder / "1.h5")
    (shards.folder / "x.h5").write_bytes(b"no HDF5")
    return [3, 17, *range(30, 71)]
