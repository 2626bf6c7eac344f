"""Tests of statistics of a sample of rows: they do not depend on the division into parts, and match known values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from sklearn.decomposition import PCA

from shardpress.hdf5.shard import Block
from shardpress.model.about import About
from shardpress.report.baselines import are_correct
from shardpress.report.sampling import Sample, SampleSpec, draw_sample, training_stretches
from shardpress.result.records import to_json
from shardpress.shards.open import open_shards
from tests.support.cases import each
from tests.support.pages import make_parts, measured, model_of

ROWS = np.random.default_rng(1).random((5000, 6)).astype(np.float32)


def make_sample(folder: Path, rows: np.ndarray, part_rows: int, spec: SampleSpec, **arrays: np.ndarray) -> Sample:
    folder.mkdir(exist_ok=True)
    found = draw_sample(make_parts(folder, spec.model, rows, part_rows, **arrays), spec)
    assert found is not None
    return found


def test_sample_is_even_and_independent_of_parts(tmp_path: Path) -> None:
    spec = SampleSpec(model_of(6, 2))
    one, two = (make_sample(tmp_path / str(n), ROWS, n, spec, y=np.arange(5000)) for n in (5000, 37))
    assert 1800 < len(one.rows) <= 2000
    np.testing.assert_array_equal(one.rows, one.extras["y"])
    np.testing.assert_array_equal(one.extras["y"], two.extras["y"])
    np.testing.assert_array_equal(one.scaled, two.scaled)
    np.testing.assert_array_equal(one.scaled, ROWS[one.rows])
    assert np.diff(np.concatenate([[-1], one.rows, [5000]])).max() < 100  # no large gaps


def test_sample_fits_in_its_memory_without_bad_rows(tmp_path: Path) -> None:
    model = model_of(6, 2)
    rows = ROWS.copy()
    rows[::2, 3] = np.nan
    found = make_sample(tmp_path / "some", rows, 5000, SampleSpec(model, memory_bytes=2**22))
    assert 100 < len(found.rows) < 1000
    assert np.isfinite(found.scaled).all()
    assert (found.rows % 2 == 1).all()
    bad = make_parts(tmp_path, model, np.full((50, 6), np.nan), 50)
    assert draw_sample(bad, SampleSpec(model)) is None
    assert draw_sample([], SampleSpec(model)) is None


def test_errors_and_worst_rows_are_found_by_file_and_row(tmp_path: Path) -> None:
    model = model_of(6, 3)
    rows = ROWS[:300].copy()
    rows[217, 4] = 40
    parts = make_parts(tmp_path, model, rows, 100)
    _, facts = measured(model, parts)
    errors = np.square(rows - model.decode(model.encode(rows).astype(np.float32))).mean(axis=1)
    assert facts.mean_error == pytest.approx(errors.mean(), rel=1e-6)
    assert facts.n_rows == 300 == sum(facts.errors.counts)
    assert facts.errors.quantiles["1"] == pytest.approx(errors.max(), rel=1e-6)
    worst = facts.worst[0]
    assert (worst.row, worst.column, worst.file) == (217, 4, parts[0].block.shard.path)
    assert facts.probe is None
    assert len(to_json(facts)) < 100_000


@each("axes, expected", [((36,), None), ((8, 9, 1), [8, 9]), ((8, 9, 3), [8, 9, 3])])
def test_rows_of_image_shape_are_shown_as_images(
    axes: tuple[int, ...], expected: list[int] | None, tmp_path: Path
) -> None:
    width = int(np.prod(axes))
    rows = np.linspace(0, 1, 8 * width, dtype=np.float32).reshape(8, *axes)
    model = model_of(width, min(3, width))
    _, facts = measured(model, make_parts(tmp_path, model, rows, 8))
    assert facts.pairs.shape == expected
    assert np.shape(facts.points.inputs) == (8, 2)


# -- the first features of a nested model ------------------------------------------------------------------------------

RNG = np.random.default_rng(5)
CLASSES = RNG.integers(0, 4, 600)
# 24 columns. Later columns vary less. The classes differ in the last column only.
NESTED_ROWS = RNG.normal(size=(600, 24)) * np.geomspace(1, 0.1, 24)
NESTED_ROWS[:, -1] += 0.25 * CLASSES
NESTED_ROWS = (0.5 + NESTED_ROWS / 20).astype(np.float32)


def test_errors_and_accuracies_are_those_of_the_first_features(tmp_path: Path) -> None:
    model = replace(model_of(24, 20), about=About({"nested": True}))
    (part,) = make_parts(tmp_path, model, NESTED_ROWS, 600, y=CLASSES)
    is_odd = np.arange(600) % 2 == 1
    sample, facts = measured(model, [replace(part, trained=is_odd, fitted=is_odd)])
    assert facts.widths is not None
    assert (facts.widths.n_fitted, facts.widths.n_rows, facts.widths.are_held_out) == (300, 300, True)
    widths = facts.widths.widths
    assert [width.n_features for width in widths] == [8, 16, 20]
    rows = sample.scaled[~sample.trained].astype(np.float64)
    W = model.parameters["W"].astype(np.float64)
    pca = PCA(20).fit(sample.scaled[sample.trained].astype(np.float64))
    scores = pca.transform(rows)
    for width in widths:
        n = width.n_features
        features = sample.features[:, :n].astype(np.float64)
        decoded = features[~sample.trained] @ W[:, :n].T + model.parameters["b_output"]
        assert width.error == pytest.approx(np.square(decoded - rows).mean(), rel=1e-6)
        expected = np.square(scores[:, :n] @ pca.components_[:n] + pca.mean_ - rows).mean()
        assert width.components == pytest.approx(expected, rel=1e-3)
        assert width.score == pytest.approx(are_correct(features, sample.extras["y"], ~sample.trained).mean())
    accuracies = [width.components_score for width in widths]
    assert accuracies[-1] > accuracies[0] + 0.1


# -- the rows of linear models and of principal components -------------------------------------------------------------


@each("part_rows", [5000, 37])
def test_components_are_those_of_training_rows_in_any_parts(tmp_path: Path, part_rows: int) -> None:
    """The components are fitted to more rows than the sample has, without the validation rows."""
    model = model_of(6, 2)
    fitted = np.arange(5000) % 10 > 0
    y = (ROWS[:, 0] > 0.5).astype(np.int64)
    parts = make_parts(tmp_path, model, ROWS, part_rows, y=y)
    parts = [replace(part, fitted=fitted[part.block.start : part.block.stop]) for part in parts]
    drawn = draw_sample(parts, SampleSpec(model), training_stretches(parts, SampleSpec(model)))
    assert drawn is not None
    np.testing.assert_array_equal(drawn.rows, np.flatnonzero(fitted))
    sample, facts = measured(model, parts)
    probe = facts.probe
    assert probe is not None
    assert (probe.n_fitted, probe.n_train + probe.n_test) == (4500, 4000)
    assert facts.n_rows == len(sample.rows) <= 2000
    some = SampleSpec(model, memory_bytes=2**20)
    fewer = draw_sample(parts, some, training_stretches(parts, some))
    assert fewer is not None
    assert 100 < some.sizes.n_fitted == len(fewer.rows) < 4500
    assert fitted[fewer.rows].all()
    assert np.diff(np.concatenate([[-1], fewer.rows, [5000]])).max() < 200


@each("share", [0.2, 0.002])
def test_rows_of_classifiers_are_those_with_a_label(tmp_path: Path, share: float) -> None:
    model = model_of(6, 2)
    is_labelled = np.random.default_rng(2).random(5000) < share
    y = np.where(is_labelled, (ROWS[:, 0] > 0.5).astype(float), np.nan)
    rows = ROWS.copy()
    rows[::7] = np.nan
    parts = make_parts(tmp_path, model, rows, 1000, y=y)
    is_trained = np.arange(1000) % 10 > 0
    parts = [replace(part, trained=is_trained) for part in parts]
    _, facts = measured(model, parts)
    probe = facts.probe
    if share < 0.01:
        assert probe is None
        return
    is_usable = is_labelled & np.isfinite(rows[:, 0])
    is_test = np.tile(~is_trained, 5)
    assert (probe.n_train, probe.n_test) == ((is_usable & ~is_test).sum(), (is_usable & is_test).sum())


def test_rows_beside_a_damaged_chunk_are_sampled(tmp_path: Path) -> None:
    """A chunk whose rows are stored as bad rows is not read again."""
    model = model_of(6, 2)
    rows = ROWS[:64]
    (part,) = make_parts(tmp_path, model, rows, 64)
    damage_row(tmp_path / "rows.h5", rows, 21)
    with h5py.File(part.file, "r+") as file:
        file["valid"][21] = False
    (shard,) = open_shards([str(tmp_path / "rows.h5")])
    sample, _ = measured(model, [replace(part, block=Block(shard, 0, 64))])
    np.testing.assert_array_equal(sample.rows, np.delete(np.arange(64), 21))


def damage_row(path: Path, rows: np.ndarray, i: int) -> None:
    """Write rows in compressed chunks of one row, and damage one chunk."""
    with h5py.File(path, "w") as file:
        data = file.create_dataset("X", data=rows, chunks=(1, rows.shape[1]), compression="gzip")
        place = data.id.get_chunk_info(i)
    with path.open("r+b") as raw:
        raw.seek(place.byte_offset)
        raw.write(bytes(place.size))
