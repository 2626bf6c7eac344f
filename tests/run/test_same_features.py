"""Tests that features have the same bits on all paths, with the compiled kernels.

The kinds are those with paths of their own: rows, columns or targets that are selected, added or estimated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from shardpress.features import open_features
from shardpress.output.disk import Disk
from shardpress.result import load_model
from tests.support.bad_shards import InterruptedDisk
from tests.support.fields import run_with_sizes
from tests.support.helpers import write_shard

pytestmark = [pytest.mark.compiler, pytest.mark.process, pytest.mark.slow]

KINDS = {
    "nested": ["--target", "y", "--nested", "yes"],
    "wide": ["--target", "y", "--output-layer", "hidden", "--hidden", "48"],
    "few": ["--target", "few"],
    "selected": ["--target", "y", "--fit-on", "is_train == 1"],
    "indicators": ["--missing-value", "16", "--impute", "median", "--missing-indicator"],
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


def run(shards: Path, output: Path, kind: str, *flags: str, disk: Disk | None = None) -> int:
    arguments = ["--input", str(shards), "--output", str(output), *COMMON, *KINDS[kind], *flags]
    return run_with_sizes(arguments, disk)


def features_of(output: Path) -> bytes:
    return bytes(open_features(output).features.compute().tobytes())


@pytest.fixture(scope="module")
def expected(folder: Path) -> Callable[[str], bytes]:
    """Return a function that gives the features of an undisturbed run of a kind."""

    @cache
    def features_of_kind(kind: str) -> bytes:
        assert run(folder / "few", folder / f"features-{kind}", kind, "--threads", "1") == 0
        return features_of(folder / f"features-{kind}")

    return features_of_kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_has_the_same_bits(
    folder: Path, tmp_path: Path, expected: Callable[[str], bytes], kind: str
) -> None:
    for n_files in (5, 9):
        output = tmp_path / f"interrupted-{n_files}"
        assert run(folder / "few", output, kind, disk=InterruptedDisk("work", n_files)) == 130
        assert run(folder / "few", output, kind) == 0
        assert features_of(output) == expected(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_blocks_and_streamed_rows_change_no_bit(
    folder: Path, tmp_path: Path, expected: Callable[[str], bytes], kind: str
) -> None:
    flags = ("--threads", "3", "block_rows=100", "--memory-budget", "16MiB")
    assert run(folder / "few", tmp_path / "out", kind, *flags) == 0
    assert features_of(tmp_path / "out") == expected(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_worker_processes_train_the_same_replicas(folder: Path, tmp_path: Path, kind: str) -> None:
    results = []
    for name, flags in (("alone", []), ("workers", ["--workers", "2"])):
        assert run(folder / "many", tmp_path / name, kind, "--replicas", "2", *flags) == 0
        results.append(features_of(tmp_path / name))
    assert results[0] == results[1]


def test_few_targets_are_used(folder: Path, expected: Callable[[str], bytes]) -> None:
    expected("few")
    about = load_model(folder / "features-few").about["training"]["target"]
    assert about["share"] == pytest.approx(0.05, abs=0.001)


@pytest.mark.parametrize("flags", [["--threads", "3"], ["--workers", "2"]], ids=" ".join)
def test_appends_give_the_bits_of_one_run_with_the_model(tmp_path: Path, flags: list[str]) -> None:
    digits = load_digits()
    shards = tmp_path / "shards"
    shards.mkdir()
    rows = digits.data.astype(np.uint8)
    common = ["--input", str(shards), *COMMON, *flags]
    for i, part in enumerate(np.array_split(np.arange(len(rows)), 3)):
        write_shard(shards / f"{i}.h5", rows[part], extras={"y": digits.target[part]})
        append = ["--append"] if i else []
        assert run_with_sizes([*common, "--output", str(tmp_path / "out"), *append]) == 0
    assert run_with_sizes([*common, "--output", str(tmp_path / "whole"), "--model", str(tmp_path / "out")]) == 0
    assert features_of(tmp_path / "out") == features_of(tmp_path / "whole")
