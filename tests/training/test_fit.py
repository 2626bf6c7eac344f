"""Tests of preparing a training run of any size: the rows that it uses, and the initial parameters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shardpress.hdf5.shard import Shard
from shardpress.scan.ranges import Scan
from shardpress.scan.scaler import Scaler
from shardpress.settings.resolve import Settings
from shardpress.shards.conversion import AS_STORED
from shardpress.shards.open import open_shards
from shardpress.training.epochs import Training
from shardpress.training.fit import Sizes, prepare_training
from tests.support.helpers import refused, write_shard
from tests.support.loops import train
from tests.support.settings import settings_of

pytestmark = pytest.mark.compiler

CONFIG = settings_of(
    **{"n_features": 2, "hidden": (7,), "code_activation": "linear", "decoder_gain": True, "corruption": 0.25},
    **{"start": "components", "replicas": 1, "scale": "range", "validation_fraction": 0.2},
    **{"batch_size": 8, "learning_rate": 0.01, "epochs": 2},
)
SIZES = Sizes(resident=True, window_rows=1000, max_validation_rows=3, max_sample_rows=1000, n_threads=1)


@pytest.fixture
def data(tmp_path: Path) -> tuple[tuple[Shard, ...], np.ndarray]:
    """Return two shards of 30 and 20 rows in five columns, and the rows."""
    rows = np.random.default_rng(2).random((50, 5), dtype=np.float32)
    paths = [write_shard(tmp_path / f"{i}.h5", each) for i, each in enumerate((rows[:30], rows[30:]))]
    return open_shards(list(map(str, paths))), rows


def scan_of(rows: np.ndarray, bad: list[int]) -> Scan:
    good = np.delete(rows.astype(np.float64), bad, axis=0)
    scaler = Scaler(good.min(axis=0), good.max(axis=0))
    return Scan(len(rows), scaler, np.array(bad, dtype=np.int64))


def training_of(shards: tuple[Shard, ...], scan: Scan, config: Settings = CONFIG, sizes: Sizes = SIZES) -> Training:
    return prepare_training(shards, AS_STORED, scan, config, sizes)


@pytest.mark.process
def test_streamed_and_resident_rows_train_equally(data) -> None:
    shards, rows = data
    found = []
    for resident, n_threads in [(True, 1), (False, 3)]:
        sizes = replace(SIZES, resident=resident, n_threads=n_threads)
        training = training_of(shards, scan_of(rows, [4, 40]), CONFIG, sizes)
        assert (training.rows.resident is not None) == resident
        assert training.order.n_rows == 45
        np.testing.assert_array_equal(training.validation, rows[np.setdiff1d(training.order.left_out, [4, 40])])
        train(training)
        found.append({name: array.tobytes() for name, array in training.best.items()})
    assert found[1] == found[0]


def test_training_starts_at_components_of_training_rows(data) -> None:
    shards, rows = data
    scan = scan_of(rows, [])
    training = training_of(shards, scan)
    used = np.delete(rows, training.order.left_out, axis=0)
    x = Scaler(scan.minimum, scan.maximum).transform(used)
    residuals = np.linalg.svd(x - x.mean(axis=0, dtype=np.float64), compute_uv=False)[2:]
    np.testing.assert_allclose(training.autoencoder.cost(used), np.sum(residuals**2) / x.size, rtol=1e-4)


def test_a_random_start_reconstructs_the_mean_row(data) -> None:
    shards, rows = data
    mean = rows.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)
    for setting in ("mean", "zero"):
        config = CONFIG.changed(start="random", biases=setting)
        autoencoder = training_of(shards, scan_of(rows, []), config).autoencoder
        biases = [array for name, array in autoencoder.parameters().items() if name.startswith("b_")]
        assert (autoencoder.cost(mean) < 1e-9) == (setting == "mean")
        assert any(bias.any() for bias in biases) == (setting == "mean")


def test_unreadable_shards_are_left_out_of_training(data) -> None:
    shards, rows = data
    scan = replace(scan_of(rows, list(range(30))), unreadable={0: "damaged"})
    training = training_of(shards, scan, CONFIG.changed(validation_fraction=0.0))
    assert training.order.n_rows == 20
    np.testing.assert_array_equal(training.rows.take(np.arange(20)), rows[30:])
    with refused(65, "50 rows, 48 bad", "--validation-fraction"):
        every = replace(SIZES, max_validation_rows=100)
        training_of(shards, scan_of(rows, list(range(2, 50))), CONFIG.changed(validation_fraction=0.999), every)
