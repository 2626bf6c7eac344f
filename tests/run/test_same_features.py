"""Tests that features and errors have the same bits on all paths, with the compiled kernels.

The kinds are those with paths of their own: rows, columns or targets that are selected, added or estimated.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from shardpress.output.disk import Disk
from shardpress.result.features import open_features
from shardpress.result.finished import load_model
from tests.support.bad_shards import InterruptedDisk
from tests.support.fields import run_with_sizes
from tests.support.helpers import write_shard

pytestmark = [pytest.mark.compiler, pytest.mark.process, pytest.mark.slow]

INDICATORS = ["--impute", "median", "--missing-indicator"]
MISSING = ["--missing-value", "16"]
# The targets of most rows are estimated. Nested features exclude a hidden output layer.
KINDS = {
    "nested": ["--target", "few", "--nested", "yes", "--fit-on", "is_train == 1"],
    "wide": ["--target", "y", "--output-layer", "hidden", "--hidden", "48", *MISSING, *INDICATORS],
}
COMMON = ["--n-features", "16", "--epochs", "2", "--row-error", "--clip-quantile", "0.01", "checkpoint_seconds=0"]
STREAMED = ("--threads", "3", "block_rows=100", "--memory-budget", "16MiB")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with shards of digits: few for one process, and many for replicas."""
    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    for name, n_copies in (("few", 1), ("many", 5)):
        (folder / name).mkdir()
        rows = np.tile(data.data, (n_copies, 1)).astype(np.uint8)
        labels = np.tile(data.target, n_copies)
        numbers = np.arange(len(rows))
        extras = {
            "y": labels,
            "few": np.where(numbers % 20 == 3, labels, np.nan),  # the targets of other rows are estimated
            "is_train": (numbers % 4 != 0).astype(np.int8),
        }
        for i, part in enumerate(np.array_split(numbers, 2)):
            shard = {extra: values[part] for extra, values in extras.items()}
            write_shard(folder / f"{name}/{i}.h5", rows[part], extras=shard)
    return folder


def run(shards: Path, output: Path, *flags: str, disk: Disk | None = None) -> int:
    return run_with_sizes(["--input", str(shards), "--output", str(output), *COMMON, *flags], disk)


def bits_of(output: Path) -> bytes:
    found = open_features(output)
    return bytes(found.features.compute().tobytes() + found.extras["error"].compute().tobytes())


@pytest.fixture(scope="module")
def expected(folder: Path) -> Callable[[str], Path]:
    """Return a function that gives the output of an undisturbed run of a kind."""

    @cache
    def output_of(kind: str) -> Path:
        output = folder / f"features-{kind}"
        assert run(folder / "few", output, *KINDS[kind], "--threads", "1") == 0
        return output

    return output_of


@pytest.mark.parametrize("kind", KINDS)
def test_interruptions_threads_and_blocks_change_no_bit(
    folder: Path, tmp_path: Path, expected: Callable[[str], Path], kind: str
) -> None:
    shards = folder / "few"
    bits = bits_of(expected(kind))
    if kind == "nested":
        target = load_model(expected(kind)).about.training.target
        assert target.share == pytest.approx(1 / 15, abs=0.001)
    assert run(shards, tmp_path / "streamed", *KINDS[kind], *STREAMED) == 0
    assert bits_of(tmp_path / "streamed") == bits
    output = tmp_path / "interrupted"
    assert run(shards, output, *KINDS[kind], disk=InterruptedDisk("work", 5)) == 130
    assert run(shards, output, *KINDS[kind], *STREAMED, disk=InterruptedDisk("work", 4)) == 130
    assert run(shards, output, *KINDS[kind]) == 0
    assert bits_of(output) == bits


@pytest.mark.parametrize("kind", KINDS)
def test_worker_processes_train_the_same_replicas(folder: Path, tmp_path: Path, kind: str) -> None:
    """The run with workers is interrupted once."""
    flags = (*KINDS[kind], "--replicas", "2")
    assert run(folder / "many", tmp_path / "alone", *flags) == 0
    output = tmp_path / "workers"
    assert run(folder / "many", output, *flags, "--workers", "2", disk=InterruptedDisk("work", 4)) == 130
    assert run(folder / "many", output, *flags, "--workers", "2") == 0
    assert bits_of(output) == bits_of(tmp_path / "alone")


def test_appends_give_the_bits_of_one_run_with_the_model(folder: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for i, flags in enumerate((KINDS["wide"], ["--append", "--workers", "2"])):
        shutil.copyfile(folder / f"few/{i}.h5", shards / f"{i}.h5")
        assert run(shards, tmp_path / "out", *flags) == 0
    assert run(shards, tmp_path / "whole", "--model", str(tmp_path / "out"), *MISSING) == 0
    assert bits_of(tmp_path / "out") == bits_of(tmp_path / "whole")
