"""Tests of statistics of a sample of rows: they do not depend on the division into parts, and match known values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shardpress import ridge
from shardpress.labels import LabelChoice
from shardpress.report.baselines import are_correct
from shardpress.report.measures import measure
from shardpress.report.sample import Sample, SampleSpec, draw_sample
from tests.support.cases import each
from tests.support.pages import make_parts, model_of

ROWS = np.random.default_rng(1).random((5000, 6)).astype(np.float32)


def make_sample(folder: Path, rows: np.ndarray, part_rows: int, spec: SampleSpec, **arrays: np.ndarray) -> Sample:
    folder.mkdir(exist_ok=True)
    found = draw_sample(make_parts(folder, spec.model, rows, part_rows, **arrays), spec)
    assert found is not None
    return found


def test_sample_is_bounded_even_and_independent_of_parts(tmp_path: Path) -> None:
    spec = SampleSpec(model_of(6, 2))
    one, two = (make_sample(tmp_path / str(n), ROWS, n, spec, y=np.arange(5000)) for n in (5000, 37))
    assert 1800 < len(one.rows) <= 2000
    np.testing.assert_array_equal(one.rows, one.extras["y"])
    np.testing.assert_array_equal(one.extras["y"], two.extras["y"])
    np.testing.assert_array_equal(one.scaled, two.scaled)
    np.testing.assert_array_equal(one.scaled, ROWS[one.rows])
    assert np.diff(np.concatenate([[-1], one.rows, [5000]])).max() < 100  # no large gaps


def test_sample_fits_in_its_memory_without_bad_rows(tmp_path: Path) -> None:
    rows = ROWS.copy()
    rows[::2, 3] = np.nan
    found = make_sample(tmp_path / "some", rows, 5000, SampleSpec(model_of(6, 2), memory_bytes=2**22))
    assert 100 < len(found.rows) < 1000
    assert np.isfinite(found.scaled).all()
    assert (found.rows % 2 == 1).all()


def test_no_sample_without_good_rows_or_memory(tmp_path: Path) -> None:
    model = model_of(6, 2)
    parts = make_parts(tmp_path, model, np.full((50, 6), np.nan), 50)
    assert draw_sample(parts, SampleSpec(model)) is None
    assert draw_sample(parts, SampleSpec(model, memory_bytes=64)) is None
    assert draw_sample([], SampleSpec(model)) is None


def test_errors_and_worst_rows_are_found_by_file_and_row(tmp_path: Path) -> None:
    model = model_of(6, 3)
    rows = ROWS[:300].copy()
    rows[217, 4] = 40
    parts = make_parts(tmp_path, model, rows, 100)
    sample = draw_sample(parts, SampleSpec(model))
    assert sample is not None
    facts = measure(sample, parts, model, LabelChoice())
    errors = np.square(rows - model.decode(model.encode(rows).astype(np.float32))).mean(axis=1)
    assert facts["mean_error"] == pytest.approx(errors.mean(), rel=1e-6)
    assert facts["n_rows"] == 300 == sum(facts["errors"]["counts"])
    assert facts["errors"]["quantiles"]["1"] == pytest.approx(errors.max(), rel=1e-6)
    worst = facts["worst"][0]
    assert (worst["row"], worst["column"], worst["file"]) == (217, 4, parts[0].block.shard.path)
    assert "probe" not in facts
    assert len(json.dumps(facts)) < 100_000


@each("n_inputs", [1, 2])
def test_few_columns_are_drawn_without_a_loss(tmp_path: Path, n_inputs: int) -> None:
    model = model_of(n_inputs, 1)
    rows = ROWS[:90, :n_inputs]
    parts = make_parts(tmp_path, model, rows, 90)
    sample = draw_sample(parts, SampleSpec(model))
    assert sample is not None
    points = measure(sample, parts, model, LabelChoice())["points"]
    assert np.shape(points["inputs"]) == np.shape(points["codes"]) == np.shape(points["reconstructions"]) == (90, 2)
    distances = np.linalg.norm(np.diff(points["inputs"], axis=0), axis=1)
    np.testing.assert_allclose(distances, np.linalg.norm(np.diff(rows, axis=0), axis=1), atol=1e-3)


IMAGES = {
    "flat square": ((49,), [7, 7]),
    "flat, no square": ((50,), None),
    "flat, few": ((36,), None),
    "plane": ((20, 30), [20, 30]),
    "one channel": ((8, 9, 1), [8, 9]),
    "colours": ((8, 9, 3), [8, 9, 3]),
    "large": ((100, 64), [25, 16]),
}


@each("axes, expected", IMAGES.values())
def test_rows_of_image_shape_are_shown_as_images(
    axes: tuple[int, ...], expected: list[int] | None, tmp_path: Path
) -> None:
    width = int(np.prod(axes))
    rows = np.linspace(0, 1, 8 * width, dtype=np.float32).reshape(8, *axes)
    model = model_of(width, 3)
    parts = make_parts(tmp_path, model, rows, 8)
    sample = draw_sample(parts, SampleSpec(model))
    assert sample is not None
    pairs = measure(sample, parts, model, LabelChoice())["pairs"]
    assert pairs["shape"] == expected


def test_probe_finds_labels_in_features_but_not_in_noise() -> None:
    rng = np.random.default_rng(0)
    codes = np.arange(900) % 3
    is_test = np.arange(900) % 4 == 0
    noise = rng.normal(size=(900, 20))
    clear = noise.copy()
    clear[:, 5] += 10 * (codes == 1)
    clear[:, 6] += 10 * (codes == 2)
    clear[:, 7] = 3.0
    assert accuracy(clear, codes, is_test) == 1.0
    assert 0.2 < accuracy(noise, codes, is_test) < 0.47  # three standard errors around a third


def accuracy(rows: np.ndarray, codes: np.ndarray, is_test: np.ndarray) -> float:
    return float(are_correct(rows, codes, is_test).mean())


def random_rows(n_rows: int, n_columns: int, rank: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return centred rows and targets. `rank` is the rank of the rows. By default, they have full rank."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n_rows, n_columns))
    if rank is not None:
        x = rng.normal(size=(n_rows, rank)) @ rng.normal(size=(rank, n_columns))
    targets = rng.normal(size=(n_rows, 2)) + 2 * x[:, :2]
    return x - x.mean(axis=0), targets - targets.mean(axis=0)


RIDGE_SHAPES = {
    "tall": (30, 7, None),
    "square": (9, 9, None),
    "wide": (7, 30, None),
    "low rank": (40, 9, 3),
    "wide and low rank": (9, 40, 3),
}


@each("n_rows, n_columns, rank", RIDGE_SHAPES.values())
def test_ridge_weights_solve_the_normal_equations(n_rows: int, n_columns: int, rank: int | None) -> None:
    x, targets = random_rows(n_rows, n_columns, rank)
    for penalty in (1e-3, 0.1, 10.0):
        weights = np.linalg.solve(x.T @ x + penalty * n_rows * np.eye(n_columns), x.T @ targets)
        found = ridge._weights(x, targets, np.array([penalty]))
        np.testing.assert_allclose(found, weights, rtol=1e-6, atol=1e-8)


def test_ridge_weights_of_constant_columns_are_zero() -> None:
    for shape in ((5, 3), (3, 5)):
        _, targets = random_rows(*shape)
        assert not ridge.fit_ridge(np.ones(shape), targets)[0].any()


def test_probe_of_constant_columns_predicts_the_commonest_class() -> None:
    codes = np.arange(90) % 5 // 2  # two of class 0, two of class 1, one of class 2
    is_test = np.arange(90) >= 60
    codes[:7] = 1
    assert accuracy(np.ones((90, 4)), codes, is_test) == np.mean(codes[is_test] == 1)


def test_probe_with_more_columns_than_rows_generalizes() -> None:
    rng = np.random.default_rng(0)
    codes = np.arange(200) % 2
    is_test = np.arange(200) >= 100
    wide = rng.normal(size=(200, 500))
    wide[:, :50] += 2 * codes[:, None]
    assert accuracy(wide, codes, is_test) > 0.95


@each("n_rows, n_columns, rank", RIDGE_SHAPES.values())
def test_penalty_minimizes_generalized_cross_validation_error(n_rows: int, n_columns: int, rank: int | None) -> None:
    x, targets = random_rows(n_rows, n_columns, rank)
    errors = []
    for penalty in ridge._PENALTIES:  # use the matrix that maps targets to predictions, which is slow
        inverse = np.linalg.inv(x.T @ x + penalty * n_rows * np.eye(n_columns))
        predict = x @ inverse @ x.T + 1 / n_rows
        residuals = targets - predict @ targets
        errors.append(n_rows * np.square(residuals).sum() / (n_rows - np.trace(predict)) ** 2)
    squares, eigenvectors = np.linalg.eigh(x @ x.T)
    squares = np.maximum(squares, 0)
    found = []
    for penalty in ridge._PENALTIES:
        shrinkage = squares / (squares + penalty * n_rows)
        found.append(ridge._validation_error(shrinkage, eigenvectors.T @ targets, targets))
    np.testing.assert_allclose(found, errors, rtol=1e-5)
    best = ridge._PENALTIES[np.argmin(errors)]
    weights = np.linalg.solve(x.T @ x + best * n_rows * np.eye(n_columns), x.T @ targets)
    np.testing.assert_allclose(ridge._weights(x, targets, ridge._PENALTIES), weights, rtol=1e-6, atol=1e-8)
