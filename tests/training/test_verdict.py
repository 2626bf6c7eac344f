"""What is said of a training's result, and of which rows."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from kernels.network import Network
from pipeline.settings.config import Config, Settings, resolve
from pipeline.training.baseline import Baseline
from pipeline.training.epochs import Training
from pipeline.training.order import Order
from pipeline.training.units import Units
from pipeline.training.verdict import complaints, measured
from tests.support.helpers import numbered

CONFIG = resolve(Config(n_features=2), 1000, 4)
UNITS = Units(100, 20, 0, 0, 0, 0.0)
BESIDE = {"n_components": 20, "components": 0.01, "mean": 0.1, "is_worse": False}


class Rows:
    resident = None

    def take(self, numbers: np.ndarray) -> np.ndarray:
        return numbered(1000, 4, dtype=np.float32)[numbers]


class Passing:
    """Stands for an autoencoder whose features are two of the columns."""

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
    left_out, device = np.arange(n_validation), Passing()
    order = Order(np.array([0, 1000]), left_out, 1000, seed=0)
    device_and_step: Any = device, device
    return Training(*device_and_step, Rows(), order, Rows().take(left_out), config, baseline)


def test_units_are_looked_at_in_the_validations_rows_or_else_in_some_of_the_others() -> None:
    for n_validation in (0, 10, 300):
        looked_at = training(n_validation)
        found = measured(looked_at)
        (rows,) = looked_at.autoencoder.encoded
        numbers = set((rows[:, 0] // 10).astype(int))
        is_left_out = {number < n_validation for number in numbers}
        assert is_left_out == {n_validation == 300}
        assert found["units"]["n_rows"] == len(rows) == (300 if n_validation == 300 else 1000 - n_validation)
        assert found["units"]["duplicate"] == 1, "columns of numbered rows go along with each other"
        assert found["baseline"] is None


def test_few_rows_stand_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.verdict._MOST_ROWS", 90)
    assert measured(training(300))["units"]["n_rows"] == 75, "every fourth"
    assert measured(training(0))["units"]["n_rows"] == 90


def test_the_errors_are_held_against_those_of_the_same_rows() -> None:
    found = measured(training(300, Baseline(2, np.full(300, 2.0), np.full(300, 5.0))))
    assert found["baseline"] == {"n_components": 2, "components": 2.0, "mean": 5.0, "is_worse": True}


def test_nothing_is_said_of_good_features_nor_of_what_an_earlier_version_has_not_measured() -> None:
    assert list(complaints({"baseline": BESIDE, "units": asdict(UNITS)})) == []
    assert list(complaints({"baseline": None, "units": asdict(UNITS)})) == []
    assert list(complaints({"history": []})) == []


def test_features_that_say_less_than_components_are_complained_of() -> None:
    (complaint,) = complaints({"baseline": {**BESIDE, "is_worse": True}, "units": asdict(UNITS)})
    assert "less than 20 principal components would" in complaint
    assert "0.01." in complaint
    assert "--epochs" in complaint


def test_many_bad_units_are_complained_of_each_kind_by_itself() -> None:
    few, many = (replace(UNITS, dead=n, saturated=n, duplicate=n) for n in (2, 3))
    assert list(complaints({"units": asdict(few)})) == []
    found = list(complaints({"units": asdict(many)}))
    assert [complaint.split(".")[0] for complaint in found] == [
        "3 of 20 features hardly vary",
        "3 of 20 features are saturated",
        "3 of 20 features repeat another one",
    ]
    assert all("--" in complaint for complaint in found)
