"""Tests of `--transform rank`: results are those of a run over files that contain the ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from shardpress.features import open_features
from shardpress.interop.onnx import encoder_onnx
from shardpress.model import Model
from shardpress.report.verify import verify
from shardpress.result import load_model
from shardpress.scan import ranges, sample
from tests.run.test_cleaning import check_resumption, features_of, rows_with_gaps
from tests.support.bad_shards import NO_LIMITS, Shards, check, errors
from tests.support.cases import case
from tests.support.helpers import csr, write_csr, write_shard
from tests.support.logged import mentions

RANKED = ["--transform", "rank"]
CLEANED = ["--impute", "mean", "--missing-indicator", "--clip-quantile", "0.02"]


def ranked(rows: np.ndarray, model: Model) -> np.ndarray:
    """Return the ranks of rows, value by value."""
    tables = model.scaler.tables
    assert tables is not None
    found = np.empty(rows.shape, np.float64 if rows.dtype in (np.float64, np.int32) else np.float32)
    for row, column in np.ndindex(rows.shape):
        values = tables.knots[column]
        ranks = tables.ranks[column]
        found[row, column] = np.interp(float(rows[row, column]), values, ranks, left=0, right=1)
    return found


@pytest.mark.slow
def test_ranks_equal_a_run_over_ranked_rows(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[tuple[Any, float, list[str]]] = [
        (np.float32, np.nan, CLEANED),
        (np.float64, np.nan, ["--impute", "median"]),
        (np.float32, 0, ["--scale", "std"]),
        (np.uint8, 0, []),
        (np.int32, 0, []),
    ]
    for n_sampled in (2**22, 200):  # all rows, or a part of them
        monkeypatch.setattr(ranges, "SAMPLED_VALUES", n_sampled)
        monkeypatch.setattr(sample, "_LEAST_ROWS", 8)
        for i, (dtype, missing, flags) in enumerate(kinds):
            with case(n_sampled=n_sampled, dtype=dtype, flags=flags):
                raw = shards.another(f"raw-{i}-{n_sampled}")
                whole = shards.another(f"ranked-{i}-{n_sampled}")
                rows = rows_with_gaps(dtype, missing, 0)
                raw.add(rows[:31])
                raw.add(rows[31:])
                assert raw.run(*RANKED, *flags) == 0
                model = load_model(raw.output)
                ranks = ranked(rows, model)
                whole.add(ranks[:31])
                whole.add(ranks[31:])
                assert whole.run(*flags) == 0
                other = load_model(whole.output).scaler
                for name in ("minimum", "maximum", "fill", "center", "factor", "indicators"):
                    np.testing.assert_array_equal(getattr(model.scaler, name), getattr(other, name))
                assert features_of(raw.output) == features_of(whole.output)
                assert not verify(str(raw.output), 1000).faults


@pytest.mark.process
def test_blocks_threads_and_the_form_of_files_change_no_rank(shards: Shards, tmp_path: Path) -> None:
    rows = rows_with_gaps(np.float32, np.nan, 0, n=300)
    rows[np.random.default_rng(1).random(rows.shape) < 0.3] = 0
    sparse = shards.another("sparse")
    for i, part in enumerate((rows[:120], rows[120:])):
        shards.add(part)
        write_csr(sparse.folder / f"{i}.h5", csr(part), part.shape)
    flags = [*RANKED, *CLEANED, "--row-scale", "max"]
    assert shards.run(*flags) == 0
    for block_rows, n_threads in ((4, 1), (64, 3)):
        output = tmp_path / f"{block_rows}"
        assert shards.run(*flags, f"block_rows={block_rows}", "--threads", str(n_threads), output=output) == 0
        assert features_of(output) == features_of(shards.output)
    assert sparse.run(*flags) == 0
    assert features_of(sparse.output) == features_of(shards.output)


@pytest.mark.slow
def test_a_given_model_ranks_other_rows(shards: Shards, tmp_path: Path) -> None:
    shards.add(rows_with_gaps(np.float32, np.nan, 0))
    assert shards.run(*RANKED, *CLEANED) == 0
    model = load_model(shards.output)
    for dtype in (np.float32, np.float64, np.int32):
        later = shards.another(f"later-{np.dtype(dtype).name}")
        output = tmp_path / np.dtype(dtype).name
        rows = rows_with_gaps(dtype, 7, 50, seed=3)
        rows[0] = 30_000
        later.add(rows)
        flags = ["--model", str(shards.output), "--on-drift", "raise", "--on-bad-data", "skip", *NO_LIMITS]
        assert later.run(*flags, output=output) == 0
        assert load_model(output).fingerprint == model.fingerprint
        ranks = ranked(rows, model)
        assert set(ranks[0].tolist()) == {1}
        check(output, [model.scaler.cleaned(rows.astype(ranks.dtype))], [], model)
        assert not verify(str(output), 1000).faults


@pytest.mark.process
def test_rows_with_inf_stay_bad(shards: Shards, tmp_path: Path) -> None:
    rows = rows_with_gaps(np.float32, 0, 0)
    rows[11, 2] = np.inf
    rows[40, 0] = np.nan
    shards.add(rows)
    assert shards.run(*RANKED) == 65
    flags = ["--on-bad-data", "skip", *NO_LIMITS, "--overwrite"]
    assert shards.run(*RANKED, *flags) == 0
    model = load_model(shards.output)
    check(shards.output, [model.scaler.cleaned(rows)], [11, 40], model)
    assert shards.run(*flags, "--model", str(shards.output), output=tmp_path / "again") == 0
    assert features_of(tmp_path / "again") == features_of(shards.output)


@pytest.mark.slow
def test_a_resumed_run_has_the_same_ranks(shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards.add(rows_with_gaps(np.float32, np.nan, 0, n=50))
    shards.add(rows_with_gaps(np.float32, np.nan, 0, seed=1))
    check_resumption(shards, [*RANKED, *CLEANED], tmp_path, caplog)


@pytest.mark.process
@pytest.mark.compiler
@pytest.mark.slow
def test_worker_processes_rank_rows(tmp_path: Path) -> None:
    from shardpress import cli

    folder = tmp_path / "shards"
    folder.mkdir()
    rows = rows_with_gaps(np.float32, np.nan, 0, n=3000)
    write_shard(folder / "0.h5", rows[:1000])
    write_shard(folder / "1.h5", rows[1000:])
    for name, flags in (("alone", []), ("workers", ["--workers", "2"])):
        settings = ["--n-features", "2", "--epochs", "2", *RANKED, "--impute", "mean", *flags]
        assert cli.main("", ["--input", str(folder), "--output", str(tmp_path / name), *settings]) == 0
    assert features_of(tmp_path / "alone") == features_of(tmp_path / "workers")
    model = load_model(tmp_path / "alone")
    found = open_features(tmp_path / "alone").features.compute()
    np.testing.assert_allclose(found, model.encode(rows), atol=1e-5)


@pytest.mark.process
def test_a_given_model_with_another_transformation_is_refused(
    shards: Shards, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    shards.fill(20)
    assert shards.run("--model", model, *RANKED) == 78
    assert mentions(errors(caplog), "transform", "rank")


@pytest.mark.process
def test_an_exported_encoder_ranks_the_rows_of_a_run(shards: Shards) -> None:
    shards.fill(60)
    assert shards.run(*RANKED) == 0
    session = onnxruntime.InferenceSession(encoder_onnx(load_model(shards.output)), providers=["CPUExecutionProvider"])
    (found,) = session.run(["features"], {"rows": shards.arrays[0]})
    np.testing.assert_allclose(found, open_features(shards.output).features.compute(), atol=1e-5)
