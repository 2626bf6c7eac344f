"""Tests of the quality measures of a trained model, and of the rows that they are computed from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from shardpress.settings.config import Config
from shardpress.settings.resolve import Settings, network_of, resolve
from shardpress.training import verdict
from shardpress.training.components import Baseline
from shardpress.training.epochs import Training
from shardpress.training.order import Order
from shardpress.training.verdict import _Units, complaints, measured
from shardpress_kernels.network import Network
from tests.support.helpers import numbered
from tests.support.logged import mentions

CONFIG = resolve(Config.of(n_features=2), 1000, 4)
UNITS = _Units(100, 20, 0, 0, 0, 0.0)
BASELINE = {"n_components": 20, "components": 0.01, "mean": 0.1, "is_worse": False}
WORSE: dict[str, Any] = {"baseline": {**BASELINE, "is_worse": True}, "units": asdict(UNITS)}


class Rows:
    resident = None

    def take(self, numbers: np.ndarray) -> np.ndarray:
        return numbered(1000, 4, dtype=np.float32)[numbers]


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
        out[:] = rows[:, :2] / 1e5


def training(n_validation: int, baseline: Baseline | None = None, config: Settings = CONFIG) -> Training:
    left_out = np.arange(n_validation)
    device = Passing()
    order = Order(np.array([0, 1000]), left_out, 1000, seed=0)
    fakes: dict[str, Any] = {"autoencoder": device, "step": device, "rows": Rows()}
    return Training(
        **fakes,
        order=order,
        validation=Rows().take(left_out),
        settings=config.training,
        baseline=baseline,
    )


def warnings_about(about: Mapping[str, Any], **settings: Any) -> list[str]:
    config = CONFIG.changed(**settings)
    return list(complaints(about, config.training, network_of(config.network, 4)))


def test_units_are_measured_on_validation_rows_if_there_are_many() -> None:
    for n_validation in (0, 10, 300):
        measured_training = training(n_validation)
        found = measured(measured_training)
        (rows,) = measured_training.autoencoder.encoded
        numbers = set((rows[:, 0] // 10).astype(int))
        is_left_out = {number < n_validation for number in numbers}
        assert is_left_out == {n_validation == 300}
        assert found["units"]["n_rows"] == len(rows) == (300 if n_validation == 300 else 1000 - n_validation)
        assert found["units"]["duplicate"] == 1, "columns of numbered rows are correlated"
        assert found["baseline"] is None


def test_units_are_measured_on_a_sample_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "_MOST_ROWS", 90)
    assert measured(training(300))["units"]["n_rows"] == 75, "every fourth"
    assert measured(training(0))["units"]["n_rows"] == 90


def test_errors_are_compared_with_the_baseline_on_the_same_rows() -> None:
    found = measured(training(300, Baseline(2, np.full(300, 2.0), np.full(300, 5.0))))
    assert found["baseline"] == {"n_components": 2, "components": 2.0, "mean": 5.0, "is_worse": True}


def test_good_or_unmeasured_features_cause_no_warning() -> None:
    assert warnings_about({"baseline": BASELINE, "units": asdict(UNITS)}) == []
    assert warnings_about({"baseline": None, "units": asdict(UNITS)}) == []
    assert warnings_about({"history": []}) == []


def test_features_worse_than_components_cause_a_warning() -> None:
    (warning,) = warnings_about(WORSE)
    assert mentions(warning, "20 principal components", "0.01")
    assert warnings_about(WORSE, corruption=0.25) == [], "corruption is expected to increase the error"
    assert warnings_about(WORSE, target="y") == [], "targets are expected to increase the error"


def test_the_row_with_most_of_the_error_is_named_and_left_out() -> None:
    outlier = {"file": "a.h5", "row": 7, "share": 0.97, "cost": 0.006, "components": 0.005, "mean": 0.05}
    about = {**WORSE, "baseline": {**WORSE["baseline"], "outlier": outlier}}
    named, worse = warnings_about(about)
    assert mentions(named, "file=a.h5", "row=7", "97.0%")
    assert mentions(worse, "20 principal components", "0.005")
    (worse,) = warnings_about({**about, "baseline": {**about["baseline"], "outlier": {**outlier, "share": 0.3}}})
    assert mentions(worse, "0.005")
    del outlier["file"]  # rows of an estimator have no file
    assert mentions(warnings_about(about)[0], "row=7")


def test_advice_omits_settings_that_are_already_used() -> None:
    (warning,) = warnings_about(WORSE, preset="reference", hidden=())
    assert re.findall("--[a-z-]+", warning) == ["--preset", "--hidden", "--epochs"]
    (warning,) = warnings_about(WORSE, preset=None, hidden=(9,))
    assert re.findall("--[a-z-]+", warning) == ["--epochs"]


def history(costs: Sequence[float], validation: Sequence[float | None] | None = None) -> dict[str, Any]:
    pairs = zip(costs, validation or [None] * len(costs), strict=True)
    return {"history": [{"cost": cost, "validation_cost": each} for cost, each in pairs]}


def test_a_training_run_that_still_improves_causes_a_warning() -> None:
    falling = np.linspace(1, 0.5, 20)
    flat = np.concatenate([np.linspace(1, 0.5, 10), np.full(10, 0.48)])
    (warning,) = warnings_about(history(falling), epochs=20)
    assert mentions(warning, 20, "34%")
    assert "--epochs" in warning
    assert warnings_about(history(flat), epochs=20) == []
    assert warnings_about(history(falling), epochs=21) == [], "validation stopped the training"
    assert warnings_about(history(falling[:9]), epochs=9) == [], "too few epochs to decide"
    assert warnings_about({"baseline": BASELINE, **history(1e-4 * falling)}, epochs=20) == [], (
        "negligible compared with the error of the mean"
    )
    assert warnings_about(history([0.0] * 20), epochs=20) == []
    assert warnings_about(history(falling, list(flat)), epochs=20) == [], "the training overfits"
    assert len(warnings_about(history(falling, list(flat)), epochs=20, corruption=0.25)) == 1


def test_each_kind_of_bad_units_causes_its_own_warning() -> None:
    few, many = (replace(UNITS, dead=n, saturated=n, duplicate=n) for n in (2, 3))
    assert warnings_about({"units": asdict(few)}) == []
    found = warnings_about({"units": asdict(many)})
    kinds = ("vary", "saturated", "duplicate")
    assert all(mentions(warning, "3 of 20", kind) for warning, kind in zip(found, kinds, strict=True))
    assert all("--" in warning for warning in found)
