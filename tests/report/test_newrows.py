"""Tests of the verdict on new rows: estimates against slow ones, degenerate samples, and the rate of false alarms.

Models are linear networks of principal components, which need no training. `tests/run/test_append_scenarios.py` counts
how many changes are found, and false alarms for independent rows.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.signal import lfilter

from shardpress.hdf5.columns import NO_COLUMNS
from shardpress.model.encoder import Model
from shardpress.model.scaler import Scaler
from shardpress.report.newrows import Verdict, judge_new_rows
from shardpress.report.reference import Reference
from shardpress.report.sampling import Sample
from shardpress.result.records import plain
from shardpress.training.components import principal_components
from shardpress_kernels.network import Network
from tests.support.cases import each, sample

SEEDS = sample(range(400), 6)
FILES = ["new.h5"]


def mixture(rng: np.random.Generator, n_rows: int, n_columns: int) -> np.ndarray:
    """Return rows of three clusters with correlated columns."""
    spectrum = np.geomspace(3, 0.1, n_columns) / np.sqrt(n_columns)
    mixing = rng.normal(size=(3, n_columns, n_columns)) * spectrum
    centers = rng.normal(0, 1.5, (3, n_columns))
    clusters = rng.integers(0, 3, n_rows)
    noise = rng.normal(size=(n_rows, n_columns))
    return np.asarray(centers[clusters] + np.einsum("ni,nij->nj", noise, mixing[clusters]))


def components_model(rows: np.ndarray, n_features: int) -> Model:
    """Return a linear model of principal components, and a scaler for the range of all rows."""
    scaler = Scaler(rows.min(axis=0), rows.max(axis=0))
    found = principal_components(scaler.scaled(rows), n_features, np.random.default_rng(0))
    parameters = {
        "W": found.components.astype(np.float32),
        "b_hidden": (-found.mean @ found.components).astype(np.float32),
        "b_output": found.mean.astype(np.float32),
    }
    return Model(scaler, Network((rows.shape[1], n_features), code="linear"), parameters)


def sample_of(model: Model, rows: np.ndarray) -> Sample:
    """Return a sample of consecutive rows, in stretches of eight."""
    numbers = np.arange(len(rows))
    features = model.encode(rows).astype(np.float32)
    scaled = model.scaler.transform(rows)
    return Sample(scaled, features, {}, 0 * numbers, numbers, numbers // 8, numbers < 0, numbers < 0)


def judged(reference: Reference, model: Model, rows: np.ndarray) -> Verdict:
    """Return the verdict on rows. The sample contains all of them."""
    low = model.scaler.minimum[: rows.shape[1]]
    high = model.scaler.maximum[: rows.shape[1]]
    n_outside = int(((rows < low) | (rows > high)).any(axis=1).sum())
    return judge_new_rows(reference, sample_of(model, rows), model, NO_COLUMNS, n_outside, len(rows), FILES)


def reference_of(model: Model, rows: np.ndarray, n_rows: int = 0) -> Reference:
    """Return the reference of held-out rows. The run has `n_rows` rows, or those."""
    return Reference.of(sample_of(model, rows), model, FILES, n_rows or len(rows))


def small_case(n_rows: int = 400, n_columns: int = 6, n_features: int = 3) -> tuple[Model, np.ndarray, Reference]:
    """Return a model, rows of its distribution, and the reference of the first half of these rows."""
    rng = np.random.default_rng(3)
    rows = mixture(rng, 2 * n_rows, n_columns)
    model = components_model(rows, n_features)
    return model, rows, reference_of(model, rows[:n_rows], 2 * n_rows)


@each("n_reference, n_new, rank", [(2, 2, 3), (9, 3, 3), (400, 0, 3), (400, 4, 3), (33, 400, 3), (400, 400, 2)])
def test_few_rows_or_directions_cause_no_alarm(n_reference: int, n_new: int, rank: int) -> None:
    """Numbers are finite, although a feature may be a sum of others."""
    model, rows, _ = small_case()
    W = model.parameters["W"]
    W[:, rank:] = W[:, :1] - W[:, 1:2]
    reference = reference_of(model, rows[:n_reference], len(rows))
    assert reference.basis.shape[1] <= min(rank, n_reference // 10)
    verdict = judged(reference, model, rows[len(rows) - n_new :])
    assert verdict.level == "keep"
    json.dumps(plain(verdict), allow_nan=False)


@each("factor", [10, 1e30])
def test_one_damaged_row_in_a_thousand_changes_no_verdict(factor: float) -> None:
    """Neither among the new rows nor in the reference. A damaged new row is named."""
    model, rows, _ = small_case(n_rows=1000)
    others = 1e5 * factor * rows[1000:]
    rows[[77, 1400]] *= factor
    reference = reference_of(model, rows[:1000], 2000)
    verdict = judged(reference, model, rows[1000:])
    assert verdict.level == "keep"
    assert verdict.error_ratio == pytest.approx(1, abs=0.1)
    assert any("new.h5" in reason and "400" in reason for reason in verdict.reasons)
    changed = rows[1000:].copy()
    changed[:, 2] += 2 * rows[:77, 2].std()
    assert judged(reference, model, changed).level != "keep"
    assert judged(reference, model, others).level == "retrain"


@each("factor, offset", [(1.0, 2.0), (2.0, 0.5)])
def test_differences_agree_with_a_slow_implementation(factor: float, offset: float) -> None:
    model, rows, reference = small_case()
    old = rows[:400]
    new = rows[400:] * factor
    new[:, 1] += offset
    verdict = judged(reference, model, new)
    variances, axes = np.linalg.eigh(np.cov(model.encode(old).T, bias=True))
    coordinates = (model.encode(new) - model.encode(old).mean(axis=0)) @ (axes / np.sqrt(variances))
    coordinates = np.clip(coordinates, -4, 4)
    shift = np.linalg.norm(coordinates.mean(axis=0))
    change = np.linalg.norm(np.cov(coordinates.T, bias=True) - np.eye(3))
    before, after = (model.row_errors(some, model.encode(some)).mean() for some in (old, new))
    assert verdict.mean_shift == pytest.approx(shift, rel=0.05, abs=0.05)
    assert verdict.covariance_shift == pytest.approx(change, rel=0.05, abs=0.15)
    assert verdict.error_ratio == pytest.approx(after / before, rel=1e-2)


def test_columns_that_rarely_change_are_not_stuck() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(800, 4))
    rows[:, 1] = np.arange(800) // 80  # like a date
    rows[:, 2] = rng.random(800) < 0.01  # like a rare event
    rows[:, 3] = rng.random(800) < 0.5  # like a switch
    model = components_model(rows, 2)
    new = rows[400:].copy()
    new[:] = new[0]
    stuck = judged(reference_of(model, rows[:400]), model, new).stuck_columns
    assert [column.column for column in stuck] == [0, 3]


def test_constant_missing_indicators_are_not_stuck() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(800, 3))
    rows[rng.random((800, 3)) < 0.5] = np.nan
    scaler = Scaler(np.full(3, -5.0), np.full(3, 5.0), fill=np.zeros(3)).with_indicators(np.arange(3))
    network = Network((6, 2), code="linear")
    parameters = {name: np.full(shape, 0.1, dtype=np.float32) for name, shape in network.shapes.items()}
    model = Model(scaler, network, parameters)
    verdict = judged(reference_of(model, rows[:400], 800), model, np.nan_to_num(rows[400:]))
    assert verdict.stuck_columns == []
    assert any("is missing" in reason for reason in verdict.reasons)


@pytest.mark.slow
@each("n_files, file_rows", [(20, 500), (1, 10_000)])
def test_rows_that_resemble_their_neighbours_are_kept(n_files: int, file_rows: int) -> None:
    """Each row of a time series is close to the one before it, so a short file looks unlike the others."""
    n_alarms = 0
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        n_rows = n_files * file_rows
        causes = lfilter([0.2], [1, -0.98], rng.normal(size=(n_rows + 500, 6)), axis=0)
        rows = causes @ rng.normal(size=(6, 20)) + 0.3 * rng.normal(size=(len(causes), 20))
        model = components_model(rows[:n_rows], 8)
        held_out = np.flatnonzero(np.arange(n_rows) % 40 < 4)
        files = held_out // file_rows
        features = model.encode(rows[held_out]).astype(np.float32)
        scaled = model.scaler.scaled(rows[held_out])
        drawn = Sample(scaled, features, {}, files, held_out % file_rows, held_out // 40, held_out < 0, held_out < 0)
        reference = Reference.of(drawn, model, [f"{i}.h5" for i in range(n_files)], n_rows)
        n_alarms += judged(reference, model, rows[n_rows:]).level != "keep"
    assert n_alarms <= 0.05 * len(SEEDS)
