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
from tests.support.logged import mentions
from tests.support.loops import train
from tests.support.networks import ONE_LAYER
from tests.support.settings import settings_of

pytestmark = pytest.mark.compiler

CONFIG = settings_of(
    **ONE_LAYER,
    n_features=2,
    batch_size=8,
    learning_rate=0.01,
    validation_fraction=0.2,
    epochs=2,
)
DEEP = CONFIG.changed(hidden=(7, 6), code_activation="linear", decoder_gain=True, corruption=0.25, start="components")
SIZES = Sizes(resident=True, window_rows=1000, max_validation_rows=1000, max_sample_rows=1000, n_threads=1)


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
@pytest.mark.parametrize("config", [CONFIG, DEEP], ids=["one layer", "deep"])
def test_streamed_and_resident_rows_train_equally(data, config) -> None:
    shards, rows = data
    scan = scan_of(rows, [4, 40])
    found = []
    for resident, n_threads in [(True, 1), (True, 3), (False, 1), (False, 3)]:
        training = training_of(shards, scan, config, replace(SIZES, resident=resident, n_threads=n_threads))
        assert (training.rows.resident is not None) == resident
        assert training.order.n_rows + len(training.validation) == 48
        train(training)
        found.append({name: array.tobytes() for name, array in training.best.items()})
    assert all(each == found[0] for each in found)


def test_validation_rows_are_limited_and_never_trained_on(data) -> None:
    shards, rows = data
    training = training_of(shards, scan_of(rows, []), sizes=replace(SIZES, max_validation_rows=3))
    assert training.order.n_rows == 47
    np.testing.assert_array_equal(training.validation, rows[training.order.left_out])


def test_unreadable_shards_are_left_out_of_training(data) -> None:
    shards, rows = data
    scan = replace(scan_of(rows, list(range(30))), unreadable={0: "damaged"})
    training = training_of(shards, scan, CONFIG.changed(validation_fraction=0.0))
    assert training.order.n_rows == 20
    np.testing.assert_array_equal(training.rows.take(np.arange(20)), rows[30:])
    with refused(65, "50 rows, 48 bad", "--validation-fraction"):
        training_of(shards, scan_of(rows, list(range(2, 50))), CONFIG.changed(validation_fraction=0.999))


def test_biases_start_at_the_scaled_mean_or_at_zero(data) -> None:
    shards, rows = data
    scan = scan_of(rows, [])
    scaled = Scaler(scan.minimum, scan.maximum).transform(rows)
    parameters = training_of(shards, scan).autoencoder.parameters()
    expected = scaled.mean(axis=0) - parameters["W"].sum(axis=1) / 2  # the mean row gives half of every feature
    np.testing.assert_allclose(parameters["b_output"], expected, rtol=1e-4, atol=1e-5)
    zero = training_of(shards, scan, CONFIG.changed(biases="zero")).autoencoder.parameters()
    assert not zero["b_output"].any()
    assert not zero["b_hidden"].any()


def test_training_starts_at_components_if_layers_are_wide_enough(data, caplog) -> None:
    shards, rows = data
    scan = scan_of(rows, [])
    scaled = Scaler(scan.minimum, scan.maximum).transform(rows)
    for config in (DEEP, DEEP.changed(hidden=())):
        training = training_of(shards, scan, config)
        x = np.delete(scaled, training.order.left_out, axis=0)  # validation rows are not used
        residuals = np.linalg.svd(x - x.mean(axis=0, dtype=np.float64), compute_uv=False)[2:]
        error = training.autoencoder.cost(np.delete(rows, training.order.left_out, axis=0))
        np.testing.assert_allclose(error, np.sum(residuals**2) / x.size, rtol=1e-4)
    assert "units" not in caplog.text
    caplog.set_level("INFO", logger="shardpress")
    found, expected = (
        training_of(shards, scan, DEEP.changed(hidden=(3,), start=start)) for start in ("components", "random")
    )
    assert mentions(caplog.text, "4 units", "components")
    np.testing.assert_array_equal(found.best["W_1"], expected.best["W_1"])
