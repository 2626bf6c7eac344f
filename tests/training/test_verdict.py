"""Tests of the quality measures of a trained model: the rows that they are computed from, and the warnings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from shardpress.settings.config import Config
from shardpress.settings.resolve import network_of, resolve
from shardpress.training.components import Baseline
from shardpress.training.epochs import Training
from shardpress.training.order import Order
from shardpress.training.verdict import complaints, count_units, measured
from shardpress_kernels.network import Network
from tests.support.cases import case
from tests.support.logged import mentions

CONFIG = resolve(Config.of(n_features=2), 1000, 4)


def random_features(n_rows: int, n_features: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.2, 0.8, (n_rows, n_features)).astype(np.float32)


UNITS = count_units(random_features(100, 20), "sigmoid")
BASELINE = {"n_components": 20, "components": 0.01, "mean": 0.1, "is_worse": False}
WORSE: dict[str, Any] = {"baseline": {**BASELINE, "is_worse": True}, "units": asdict(UNITS)}


# -- units -------------------------------------------------------------------------------------------------------


def test_varying_features_are_not_counted() -> None:
    expected = {"n_rows": 100, "n_features": 20, "dead": 0, "saturated": 0, "duplicate": 0, "saturated_share": 0.0}
    assert asdict(UNITS) == expected


def test_a_dead_feature_hardly_varies_compared_with_the_others() -> None:
    features = random_features(200, 5)
    features[:, 1] = 0.7
    features[:, 3] = 0.5 + 1e-4 * (features[:, 3] - 0.5)
    assert count_units(features, "sigmoid").dead == 2
    assert count_units(1000 * features, "linear").dead == 2, "the scale of a linear code does not matter"
    assert count_units(np.full((50, 3), 0.5, dtype=np.float32), "sigmoid").dead == 3


def test_a_saturated_feature_is_extreme_for_most_rows() -> None:
    features = random_features(200, 4)
    features[:99, 0] = 0.001  # almost half
    features[:101, 1] = 0.995
    features[:60, 2] = 0.001
    features[60:120, 2] = 0.999
    found = count_units(features, "sigmoid")
    assert (found.saturated, found.saturated_share) == (2, pytest.approx((99 + 101 + 120) / 800))
    assert count_units(features, "linear").saturated == 0


def test_a_duplicate_repeats_an_earlier_feature() -> None:
    features = random_features(200, 800)  # several blocks are compared
    features[:, 2] = 0.3 + features[:, 0] / 2
    features[:, 3] = 1 - features[:, 0]  # equal to the previous one up to the sign
    features[:, 700] = features[:, 1]
    features[:, 799] = features[:, 798]
    features[:, 5:7] = 0.5  # dead features are all equal, but count only as dead
    found = count_units(features, "sigmoid")
    assert (found.duplicate, found.dead) == (4, 2)


# -- rows --------------------------------------------------------------------------------------------------------


class Rows:
    resident = None

    def take(self, numbers: np.ndarray) -> np.ndarray:
        return numbers[:, None] + np.arange(4, dtype=np.float32)


class Passing:
    """Stand-in for an autoencoder whose features are two of the columns."""

    network = Network((4, 2))

    def __init__(self) -> None:
        self.encoded: list[np.ndarray] = []

    def parameters(self) -> dict[str, np.ndarray]:
        return {}

    def cost(self, rows: np.ndarray) -> float:
        return 1.0

    def errors(self, rows: np.ndarray) -> np.ndarray:
        return np.full(len(rows), 3.0, dtype=np.float32)

    def encode_checked(self, rows: np.ndarray, out: np.ndarray) -> None:
        self.encoded.append(rows)
        out[:] = rows[:, :2]


def training(n_validation: int, baseline: Baseline | None = None) -> Training:
    left_out = np.arange(n_validation)
    device = Passing()
    order = Order(np.array([0, 10_000]), left_out, 10_000, seed=0)
    fakes: dict[str, Any] = {"autoencoder": device, "step": device, "rows": Rows()}
    validation = Rows().take(left_out)
    return Training(**fakes, order=order, validation=validation, settings=CONFIG.training, baseline=baseline)


@pytest.mark.parametrize(
    ("n_validation", "n_measured"), [(0, 4096), (10, 4096), (300, 300), (5000, 2500)], ids=["0", "10", "300", "5000"]
)
def test_units_are_measured_on_validation_rows_if_there_are_many(n_validation: int, n_measured: int) -> None:
    measured_training = training(n_validation)
    found = measured(measured_training)
    (rows,) = measured_training.autoencoder.encoded
    assert set(rows[:, 0] < n_validation) == {n_validation >= 100}
    assert found["units"]["n_rows"] == len(rows) == n_measured
    assert found["units"]["duplicate"] == 1, "columns of numbered rows are correlated"


def test_errors_are_compared_with_the_baseline_on_the_same_rows() -> None:
    assert measured(training(300))["baseline"] is None
    found = measured(training(300, Baseline(2, np.full(300, 2.0), np.full(300, 5.0))))
    assert found["baseline"] == {"n_components": 2, "components": 2.0, "mean": 5.0, "is_worse": True}


# -- warnings ----------------------------------------------------------------------------------------------------


def warnings_about(about: Mapping[str, Any], **settings: Any) -> list[str]:
    config = CONFIG.changed(**settings)
    return list(complaints(about, config.training, network_of(config.network, 4)))


def test_features_worse_than_components_cause_a_warning() -> None:
    (warning,) = warnings_about(WORSE)
    assert mentions(warning, "20 principal components", "0.01")
    assert warnings_about({**WORSE, "baseline": BASELINE}) == []
    assert warnings_about({**WORSE, "baseline": None}) == []
    assert warnings_about(WORSE, corruption=0.25) == [], "corruption is expected to increase the error"
    assert warnings_about(WORSE, target="y") == [], "targets are expected to increase the error"


def test_the_row_with_most_of_the_error_is_named_and_left_out() -> None:
    outlier = {"file": "a.h5", "row": 7, "share": 0.97, "cost": 0.006, "components": 0.005, "mean": 0.05}
    about = {**WORSE, "baseline": {**WORSE["baseline"], "outlier": outlier}}
    named, worse = warnings_about(about)
    assert mentions(named, "file=a.h5", "row=7", "97.0%")
    assert mentions(worse, "20 principal components", "0.005")
    del outlier["file"]  # rows of an estimator have no file
    assert mentions(warnings_about(about)[0], "row=7")
    outlier["share"] = 0.3
    (worse,) = warnings_about(about)
    assert mentions(worse, "0.005")


def test_advice_omits_settings_that_are_already_used() -> None:
    (warning,) = warnings_about(WORSE, preset="reference", hidden=())
    assert re.findall("--[a-z-]+", warning) == ["--preset", "--hidden", "--epochs"]
    (warning,) = warnings_about(WORSE, preset=None, hidden=(9,))
    assert re.findall("--[a-z-]+", warning) == ["--epochs"]


def history(costs: Sequence[float], validation: Sequence[float] | None = None) -> dict[str, Any]:
    pairs = zip(costs, validation or [None] * len(costs), strict=True)
    return {"history": [{"cost": cost, "validation_cost": each} for cost, each in pairs]}


FALLING = np.linspace(1, 0.5, 20).tolist()
FLAT = [*np.linspace(1, 0.5, 10), *[0.48] * 10]


@pytest.mark.parametrize(
    ("about", "settings", "is_warned"),
    [
        (history(FALLING), {"epochs": 20}, True),
        (history(FLAT), {"epochs": 20}, False),
        (history(FALLING), {"epochs": 21}, False),  # validation stopped the training
        (history(FALLING[:9]), {"epochs": 9}, False),  # too few epochs to decide
        (history([0.0] * 20), {"epochs": 20}, False),
        (history(FALLING, FLAT), {"epochs": 20}, False),  # the training overfits
        (history(FALLING, FLAT), {"epochs": 20, "corruption": 0.25}, True),
        # The error is negligible compared with the error of the mean.
        ({"baseline": BASELINE, **history([1e-4 * cost for cost in FALLING])}, {"epochs": 20}, False),
    ],
)
def test_a_training_run_that_still_improves_causes_a_warning(
    about: dict[str, Any], settings: dict[str, Any], is_warned: bool
) -> None:
    assert ["--epochs" in warning for warning in warnings_about(about, **settings)] == [True] * is_warned


def test_each_kind_of_bad_units_causes_its_own_warning() -> None:
    for kind in ("dead", "saturated", "duplicate"):
        with case(kind):
            assert warnings_about({"units": asdict(replace(UNITS, **{kind: 2}))}) == []
            (warning,) = warnings_about({"units": asdict(replace(UNITS, **{kind: 3}))})
            assert mentions(warning, "3 of 20")
            assert "--" in warning
