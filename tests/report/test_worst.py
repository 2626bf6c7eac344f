"""Tests of the worst rows: a row that has a feature of its own is one of them, even if its error is small."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from sklearn.decomposition import PCA

from shardpress.model.encoder import Model
from shardpress.model.labels import LabelChoice
from shardpress.report import worst
from shardpress.report.overview import sample_facts
from shardpress.report.sampling import PartSource, SampleSpec
from tests.support.cases import case
from tests.support.logged import mentions
from tests.support.pages import make_parts, model_of

N = 3000
PLANTED = [100, 777, 1500, 2222, 2999]
N_FEATURES = 16


def spectra() -> np.ndarray:
    """Return noisy spectra with 8 common bands, and five clean ones, each with a strong peak of its own."""
    rng = np.random.default_rng(0)
    channels = np.linspace(0, 1, 200)
    bands = np.exp(-np.square((channels - rng.random((8, 1))) / 0.1))
    rows = rng.gamma(2, 0.2, (N, 8)) @ bands + 0.02 * rng.normal(size=(N, 200))
    for i, row in enumerate(PLANTED):
        rows[row] = rows.mean(axis=0)
        rows[row, 20 + 40 * i : 25 + 40 * i] += 12
    return rows.astype(np.float32)


def components_model(rows: np.ndarray) -> Model:
    """Return a model whose features are principal components."""
    pca = PCA(N_FEATURES).fit(rows)
    model = model_of(rows.shape[1], N_FEATURES)
    W = pca.components_.T.astype(np.float32)
    biases = {"b_hidden": -pca.mean_ @ W, "b_output": pca.mean_}
    float32 = {name: bias.astype(np.float32) for name, bias in biases.items()}
    return replace(model, parameters={**model.parameters, "W": W, **float32})


def parts_with_errors(folder: Path, model: Model, rows: np.ndarray, errors: np.ndarray) -> list[PartSource]:
    parts = make_parts(folder, model, rows, 700)
    for part in parts:
        with h5py.File(part.file, "r+") as file:
            file["error"] = errors[part.block.start : part.block.stop]
    return parts


def test_outliers_that_own_a_feature_are_the_worst_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = spectra()
    model = components_model(rows)
    errors = np.square(rows - model.decode(model.encode(rows).astype(np.float32))).mean(axis=1).astype(np.float32)
    assert sorted(np.argsort(errors)[:5].tolist()) == PLANTED, "their errors are the smallest"
    errors[[5, 6]] = np.nan  # bad rows
    parts = parts_with_errors(tmp_path, model, rows, errors)
    for n_values in (worst._VALUES_AT_ONCE, 37 * N_FEATURES):
        monkeypatch.setattr(worst, "_VALUES_AT_ONCE", n_values)
        caplog.clear()
        with case(n_values), caplog.at_level(logging.WARNING):
            facts = sample_facts(parts, SampleSpec(model), LabelChoice(), has_errors=True)
            assert facts is not None
            assert sorted(row.row for row in facts.worst[:5]) == PLANTED
            assert all(row.leverage > 0.1 for row in facts.worst[:5])
            assert [row.row for row in facts.owners] == PLANTED
            assert len({row.feature for row in facts.owners}) == 5
            (message,) = caplog.messages
            path = parts[0].block.shard.path
            assert all(mentions(message, f"file={path} dataset=X row={row}") for row in PLANTED)
            assert facts.n_of_worst == N - 2


def test_features_without_outliers_change_no_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = np.delete(spectra(), PLANTED, axis=0)
    model = components_model(rows)
    errors = np.random.default_rng(1).gamma(0.1, size=len(rows)).astype(np.float32)
    parts = parts_with_errors(tmp_path, model, rows, errors)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        facts = sample_facts(parts, SampleSpec(model), LabelChoice(), has_errors=True)
    assert facts is not None
    assert facts.owners == []
    assert not caplog.messages
    assert [row.row for row in facts.worst] == np.argsort(-errors)[:10].tolist()
