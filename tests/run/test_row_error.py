"""Tests of ``--row-error``: errors are those of the values before the clipping, and are verified and reported.

`tests/interop/test_same_features.py` compares them with an independent computation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from msgspec.structs import replace

from shardpress.cli import main
from shardpress.features import open_features
from shardpress.formats import digest
from shardpress.interop.estimator import TiedAutoencoder
from shardpress.records import Entry
from shardpress.report import sample as sampling
from shardpress.report.page.build import page_of, text_of
from shardpress.report.verify import verify
from shardpress.result import INDEX, Result, load_model, result_bytes
from tests.support.appends import add
from tests.support.bad_shards import NO_LIMITS, Shards
from tests.support.helpers import write_shard
from tests.support.logged import mentions
from tests.support.standin import Workspace

LARGEST = float(np.finfo(np.float32).max)


def errors_of(output: Path) -> np.ndarray:
    return np.asarray(open_features(output).extras["error"].compute())


def rows_with_outliers(size: int = 90, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Return positive rows with two outliers and some missing values."""
    rng = np.random.default_rng(seed)
    rows = rng.gamma(4, 5, (size, 4)) + 1
    rows[rng.random(rows.shape) < 0.05] = np.nan
    rows[7, 1] = 1048
    rows[8, 2] = 9e4
    rows[0] = np.nan
    return rows.astype(dtype)


@pytest.mark.process
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_errors_are_those_of_values_before_the_clipping(shards: Shards, storage: str) -> None:
    """Two outliers have the largest errors, and bad rows have none."""
    rows = rows_with_outliers()
    shards.add(rows)
    flags = ["--clip-quantile", "0.02", "--storage-dtype", storage, "--on-bad-data", "skip", *NO_LIMITS]
    assert shards.run("--row-error", *flags) == 0
    found = errors_of(shards.output)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found), np.isnan(rows).any(axis=1))
    assert np.argsort(-np.nan_to_num(found))[:2].tolist() == [8, 7]
    assert not verify(str(shards.output), len(rows)).faults


@pytest.mark.process
def test_an_error_that_overflows_is_the_largest_number(shards: Shards) -> None:
    rows = rows_with_outliers(dtype=np.float64)
    rows[20, 3] = 1e300
    shards.add(rows[1:])
    assert shards.run("--row-error", "--impute", "mean", "--clip-quantile", "0.05") == 0
    found = errors_of(shards.output)
    assert found[19] == LARGEST
    assert found.argmax() == 19
    assert not verify(str(shards.output), len(rows)).faults


@pytest.mark.process
def test_bits_do_not_depend_on_other_rows_blocks_or_threads(shards: Shards, tmp_path: Path) -> None:
    for i, dtype in enumerate((np.float32, np.float64)):
        shards.add(rows_with_outliers(50 + 3 * i, i, dtype)[1:])
    flags = ["--row-error", "--impute", "mean", "--clip-quantile", "0.02"]
    assert shards.run(*flags) == 0
    expected = errors_of(shards.output)
    for i, sizes in enumerate((["block_rows=4", "--threads", "1"], ["block_rows=12", "--threads", "3"])):
        assert shards.run(*flags, *sizes, output=tmp_path / str(i)) == 0
        np.testing.assert_array_equal(errors_of(tmp_path / str(i)), expected)
    alone = shards.another("alone")
    alone.add(shards.arrays[1])
    assert alone.run("--row-error", "--model", str(shards.output)) == 0
    np.testing.assert_array_equal(errors_of(alone.output), expected[len(shards.arrays[0]) :])


@pytest.mark.process
def test_values_outside_the_range_of_a_model_count_unclipped(shards: Shards, model: str, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).uniform(-30, 30, (40, 4)).astype(np.float32)
    rows[[3, 30], 1] = [500, -1e30]
    shards.add(rows)
    fitted = load_model(model)
    for on_drift in ("pass", "clip"):
        output = tmp_path / on_drift
        assert shards.run("--row-error", "--model", model, "--on-drift", on_drift, output=output) == 0
        with np.errstate(over="ignore"):
            x = (rows.astype(np.float64) - fitted.scaler.shift) * fitted.scaler.scale
        y = fitted.decode(open_features(output).features.compute())
        expected = np.minimum(np.square(y - x).mean(axis=1), LARGEST)
        np.testing.assert_allclose(errors_of(output), expected, rtol=1e-4)
        assert not verify(str(output), len(rows)).faults


# -- repeated runs and appends -------------------------------------------------------------------------------------


@pytest.mark.process
def test_an_append_writes_errors_like_the_finished_run(growing: Workspace, out: Path) -> None:
    assert growing.run(out, "--row-error", "--clip-quantile", "0.05") == 0
    path = add(growing, "3.h5")
    with h5py.File(path, "r+") as file:
        file["X"][2] = 900
    assert growing.run(out, "--append") == 0
    found = errors_of(out)
    assert found.argmax() == 46
    other = growing.folder / "other"
    assert growing.run(other, "--row-error", "--model", str(out)) == 0
    np.testing.assert_array_equal(errors_of(other), found)


# -- verification and report -----------------------------------------------------------------------------------------


def test_a_changed_error_is_a_fault(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out, "--row-error", "--clip-quantile", "0.05") == 0
    assert not verify(str(out), 1000).faults
    result = Result.open(out)
    part = result.parts[1]
    with h5py.File(out / part.file, "r+") as file:
        file["error"][2] *= 1.001
    data = (out / part.file).read_bytes()
    entry = Entry(part.file, len(data), digest([data]))
    parts = [replace(each, entry=entry) if each is part else each for each in result.parts]
    (out / INDEX).write_bytes(result_bytes(lambda file: None, result.model, result.facts, parts, {}, {}))
    (fault,) = verify(str(out), 1000).faults
    assert fault.file == part.file
    assert mentions(fault.fault, "row 2", "error is")


def test_the_report_lists_the_worst_of_all_rows(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_MAX_ROWS", 20)
    rows = rows_with_outliers(800)[1:]
    rows[777, 3] = 1e6
    rows[500] = np.nan
    shards.add(rows[:400])
    shards.add(rows[400:])
    flags = ["--clip-quantile", "0.02", "--impute", "mean", "--on-bad-data", "skip", *NO_LIMITS]
    assert shards.run(*flags, "--row-error") == 0
    errors = errors_of(shards.output)
    report = Result.open(shards.output).report()
    worst = report["sample"]["worst"]
    order = np.argsort(-np.nan_to_num(errors))[:10]
    assert [each["error"] for each in worst] == errors[order].tolist()
    files = [(str(shards.folder / f"{row // 400}.h5"), row % 400) for row in order]
    assert [(each["file"], each["row"]) for each in worst] == files
    assert [each["column"] for each in worst[:3]] == [3, 2, 1]
    assert report["sample"]["n_rows"] == 20
    assert "Worst rows of all 798 " in text_of(page_of(report))


# -- kernels -------------------------------------------------------------------------------------------------------

NETWORKS = {
    "head": ["--target", "y", "--fit-on", "y<2", "--hidden", "5"],
    "nested": ["--nested", "--n-features", "9", "--hidden", "none"],
    "hidden": ["--output-layer", "hidden", "--hidden", "7"],
}


@pytest.mark.compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_errors_of_every_kind_of_network_equal_the_model(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 256, (300, 12), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    write_shard(tmp_path / "in/0.h5", rows, extras={"y": rng.integers(0, 3, 300)})
    output = tmp_path / "out"
    flags = ["--row-error", "--clip-quantile", "0.05", "--epochs", "2", *NETWORKS[name]]
    assert main("", ["--input", str(tmp_path / "in"), "--output", str(output), *flags]) == 0
    found = errors_of(output)
    model = load_model(output)
    expected = model.row_errors(rows, model.encode(rows))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert (found - np.square(model.decode(model.encode(rows)) - model.scaler.transform(rows)).mean(axis=1)).max() > 0
    np.testing.assert_array_equal(-TiedAutoencoder.from_run(output).score_samples(rows), found)
