"""Test of preparing a training run: the rows that it uses, and the initial parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shardpress.scan.ranges import Scan
from shardpress.scan.scaler import Scaler
from shardpress.shards.conversion import AS_STORED
from shardpress.shards.open import open_shards
from shardpress.training.fit import Sizes, prepare_training
from tests.support.helpers import write_shard
from tests.support.settings import settings_of

pytestmark = pytest.mark.compiler

CONFIG = settings_of(
    **{"n_features": 2, "hidden": (7,), "code_activation": "linear", "decoder_gain": True, "corruption": 0.25},
    **{"start": "components", "replicas": 1, "scale": "range", "validation_fraction": 0.2},
    **{"batch_size": 8, "learning_rate": 0.01, "epochs": 2},
)
SIZES = Sizes(resident=True, window_rows=1000, max_validation_rows=3, max_sample_rows=1000, n_threads=1)


def test_training_uses_good_rows_of_readable_shards_and_their_components(tmp_path: Path) -> None:
    rows = np.random.default_rng(2).random((50, 5), dtype=np.float32)
    readable = rows[30:]
    write_shard(tmp_path / "0.h5", rows[:30])
    write_shard(tmp_path / "1.h5", readable)
    shards = open_shards([str(tmp_path)])
    bad = np.array([*range(30), 37, 41])
    good = np.delete(rows.astype(np.float64), bad, axis=0)
    scan = Scan(50, Scaler(good.min(axis=0), good.max(axis=0)), bad, unreadable={0: "damaged"})
    training = prepare_training(shards, AS_STORED, scan, CONFIG, SIZES)
    np.testing.assert_array_equal(training.rows.take(np.arange(20)), readable)
    validation = np.setdiff1d(training.order.left_out, [7, 11])
    assert 1 <= len(validation) <= SIZES.max_validation_rows
    np.testing.assert_array_equal(training.validation, readable[validation])
    used = np.delete(readable, training.order.left_out, axis=0)
    assert training.order.n_rows == len(used) == 18 - len(validation)
    x = Scaler(scan.minimum, scan.maximum).transform(used)
    residuals = np.linalg.svd(x - x.mean(axis=0, dtype=np.float64), compute_uv=False)[2:]
    np.testing.assert_allclose(training.autoencoder.cost(used), np.sum(residuals**2) / x.size, rtol=1e-4)
