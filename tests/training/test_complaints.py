"""Tests of the quality measures of a trained model: the rows that they are computed from, and the warnings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from shardpress.model.about import About, BaselineErrors, Epoch, TrainingFacts
from shardpress.settings.config import Config
from shardpress.settings.resolve import network_of, resolve
from shardpress.training.complaints import complaints, count_units, kept_start
from shardpress_kernels.network import Network
from tests.support.cases import each
from tests.support.logged import mentions

CONFIG = resolve(Config.of(n_features=2), 1000, 4)


def random_features(n_rows: int, n_features: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.2, 0.8, (n_rows, n_features)).astype(np.float32)


UNITS = count_units(random_features(100, 20), "sigmoid")
BASELINE = BaselineErrors(20, 1000, components=0.01, mean=0.1, is_worse=False)
GOOD = TrainingFacts(0, [], 0.1, UNITS, BASELINE)
WORSE = replace(GOOD, baseline=replace(BASELINE, is_worse=True))


# -- units -------------------------------------------------------------------------------------------------------


def test_a_dead_feature_hardly_varies_compared_with_the_others() -> None:
    """A damaged row, in which a feature is huge, does not make the others dead."""
    features = random_features(200, 5)
    features[:, 1] = 0.7
    features[:, 3] = 0.5 + 1e-4 * (features[:, 3] - 0.5)
    assert count_units(features, "sigmoid").dead == 2
    assert count_units(1000 * features, "linear").dead == 2, "the scale of a linear code does not matter"
    damaged = 1000 * features
    damaged[5, 0] = 1e6
    assert count_units(damaged, "linear").dead == 2
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


# -- warnings ----------------------------------------------------------------------------------------------------


def warnings_about(training: TrainingFacts, **settings: Any) -> list[str]:
    config = CONFIG.changed(**settings)
    return list(complaints(About(training=training), config.training, network_of(config.network, 4)))


def test_bad_features_and_bad_units_cause_warnings() -> None:
    (warning,) = warnings_about(WORSE)
    assert mentions(warning, "20 principal components", "0.01")
    assert warnings_about(GOOD) == []
    assert warnings_about(WORSE, corruption=0.25) == [], "corruption is expected to increase the error"
    for kind in ("dead", "saturated", "duplicate"):
        assert warnings_about(replace(GOOD, units=replace(UNITS, **{kind: 2}))) == []
        (warning,) = warnings_about(replace(GOOD, units=replace(UNITS, **{kind: 3})))
        assert mentions(warning, "3 of 20")
        assert "--" in warning


def history(costs: Sequence[float], validation: Sequence[float] | None = None) -> TrainingFacts:
    pairs = zip(costs, validation or [None] * len(costs), strict=True)
    epochs = [Epoch(i, cost, of_validation, 1.0) for i, (cost, of_validation) in enumerate(pairs)]
    return replace(GOOD, history=epochs)


FALLING = np.linspace(1, 0.5, 20).tolist()
FLAT = [*np.linspace(1, 0.5, 10), *[0.48] * 10]


def test_only_a_training_run_that_still_improves_causes_a_warning() -> None:
    for about, settings, is_warned in (
        (history(FALLING), {"epochs": 20}, True),
        (history(FLAT), {"epochs": 20}, False),
        (history(FALLING), {"epochs": 21}, False),  # validation stopped the training
        (history(FALLING, FLAT), {"epochs": 20}, False),  # the training overfits
        (history(FALLING, FLAT), {"epochs": 20, "corruption": 0.25}, True),
    ):
        assert ["--epochs" in warning for warning in warnings_about(about, **settings)] == [True] * is_warned


@each(
    "best_epoch, start, widths, is_said",
    [
        (-1, "components", (6, 2), True),
        (0, "components", (6, 2), False),
        (-1, "random", (6, 2), False),
        (-1, "components", (6, 3, 2), False),  # the hidden layer has no room for the components
    ],
)
def test_a_kept_start_from_components_is_said(
    best_epoch: int, start: str, widths: tuple[int, ...], is_said: bool
) -> None:
    network = Network(widths, code="linear")
    training = replace(history([0.5, 0.4], [0.5, 0.4]), best_epoch=best_epoch, start_cost=0.375)
    sentence = kept_start(About({"start": start}, training), network)
    assert (sentence != "") == is_said
    assert not is_said or mentions(sentence, "principal components", "0.375", "0.4")
    untrained = About({"start": start}, replace(training, history=[]))
    assert (kept_start(untrained, network) != "") == is_said
