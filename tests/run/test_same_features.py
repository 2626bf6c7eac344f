"""Tests that features with a target have the same bits on all paths, with the compiled kernels.

The kinds are nested features, wide features, and a target that only a few rows have, so that others are estimated.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from shardpress.output.disk import Disk
from shardpress.result import load_model
from tests.run.test_cleaning import features_of
from tests.support.bad_shards import InterruptedDisk
from tests.support.fields import run_with_sizes
from tests.support.helpers import write_shard

pytestmark = [pytest.mark.compiler, pytest.mark.process, pytest.mark.slow]

KINDS = {
    "nested": ["--target", "y", "--nested", "yes"],
    "wide": ["--target", "y", "--output-layer", "hidden", "--hidden", "48"],
    "few": ["--target", "few"],
}
COMMON = ["--n-features", "16", "--epochs", "2", "checkpoint_seconds=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with shards of digits: few for one process, and many for replicas."""
    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    for name, n_copies in (("few", 1), ("many", 5)):
        (folder / name).mkdir()
        rows = np.tile(data.data, (n_copies, 1)).astype(np.uint8)
        labels = np.tile(data.target, n_copies)
        few = np.where(np.arange(len(rows)) % 20 == 3, labels, np.nan)
        for i, part in enumerate(np.array_split(np.arange(len(rows)), 2)):
            write_shard(folder / f"{name}/{i}.h5", rows[part], extras={"y": labels[part], "few": few[part]})
    return folder


def run(shards: Path, output: Path, kind: str, *flags: str, disk: Disk | None = None) -> int:
    arguments = ["--input", str(shards), "--output", str(output), *COMMON, *KINDS[kind], *flags]
    return run_with_sizes(arguments, disk)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_has_the_same_bits(folder: Path, tmp_path: Path, kind: str) -> None:
    shards = folder / "few"
    assert run(shards, tmp_path / "whole", kind) == 0
    for n_files in (5, 9):
        output = tmp_path / f"interrupted-{n_files}"
        assert run(shards, output, kind, disk=InterruptedDisk("work", n_files)) == 130
        assert run(shards, output, kind) == 0
        assert features_of(output) == features_of(tmp_path / "whole")


@pytest.mark.parametrize("kind", KINDS)
def test_worker_processes_train_the_same_replicas(folder: Path, tmp_path: Path, kind: str) -> None:
    results = []
    for name, flags in (("alone", []), ("workers", ["--workers", "2"])):
        assert run(folder / "many", tmp_path / name, kind, "--replicas", "2", *flags) == 0
        results.append(features_of(tmp_path / name))
    assert results[0] == results[1]


def test_threads_and_blocks_estimate_the_same_targets(folder: Path, tmp_path: Path) -> None:
    results = set()
    for i, flags in enumerate((["--threads", "1"], ["--threads", "3", "block_rows=100"])):
        assert run(folder / "few", tmp_path / str(i), "few", *flags) == 0
        results.add(features_of(tmp_path / str(i)))
    assert len(results) == 1
    about = load_model(tmp_path / "0").about["training"]["target"]
    assert about["share"] == pytest.approx(0.05, abs=0.001)


@pytest.mark.parametrize("flags", [["--threads", "1"], ["--threads", "3"], ["--workers", "2"]], ids=" ".join)
def test_appends_give_the_bits_of_one_run_with_the_model(tmp_path: Path, flags: list[str]) -> None:
    digits = load_digits()
    shards = tmp_path / "shards"
    shards.mkdir()
    rows = digits.data.astype(np.uint8)
    first, second, third = np.array_split(np.arange(len(rows)), 3)
    common = ["--input", str(shards), *COMMON, *flags]
    for name, part in (("0.h5", first), ("1.h5", second), ("2.h5", third)):
        write_shard(shards / name, rows[part], extras={"y": digits.target[part]})
        append = ["--append"] if (tmp_path / "out").exists() else []
        assert run_with_sizes([*common, "--output", str(tmp_path / "out"), *append]) == 0
    assert run_with_sizes([*common, "--output", str(tmp_path / "whole"), "--model", str(tmp_path / "out")]) == 0
    assert features_of(tmp_path / "out") == features_of(tmp_path / "whole")
