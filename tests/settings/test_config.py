"""Tests of settings: all invalid settings are reported at once with the expected values, and defaults are filled in."""

import json
import re

import pytest

from shardpress.settings.config import SETTINGS, Config
from shardpress.settings.conflicts import conflicts
from shardpress.settings.resolve import network_of, resolve
from tests.support.cases import case

RANGES = {
    "n_features": ([None, 1, 9], [0, -1, 2.5, "2", True]),
    "hidden": ([None, [], [1], [512, 256]], [[0], [512, -1], 512]),
    "corruption": ([0.0, 0.004, 0.998], [-0.1, 0.999, 1.0, float("nan")]),
    "missing_value": ([None, 0, -9999, 10**300, 0.5], ["NA"]),
    "missing_label": ([None, "-1", "no label"], [-1, True]),
    "optimizer": (["adam", "momentum"], ["sgd", "adam\n", "xadam"]),
    "nested": ([False, True], [1, "yes"]),
    "include": ([[], ["a", "b/c"]], ["a", [1], None]),
}


def wheres(config):
    """Return the settings of each conflict."""
    return [problem.where for problem in conflicts(config)]


def test_each_setting_has_its_range():
    """Limits that depend on the data are not checked early."""
    assert wheres(Config()) == wheres(Config.of(n_features=10**6, batch_size=10**9)) == []
    for name, (good, bad) in RANGES.items():
        for value in good:
            config = Config.from_flat({name: value})
            assert wheres(config.changed(retrain=True)) == [], (name, value)
            assert config.flat()[name] == (tuple(value) if isinstance(value, list) else value)
        for value in bad:
            with case(name, value), pytest.raises(ValueError, match=f"^{name}: {re.escape(repr(value))}, expected "):
                Config.from_flat({name: value})


def test_stored_settings_are_read_back_exactly():
    values = {"hidden": (9, 5), "include": ("a", "b/c"), "missing_value": 2**63 - 1, "learning_rate": 0.1 + 0.2}
    for config in (Config(), Config.of(**values), Config.of(missing_value=-0.5, scheduler="~x", fit_on="a == 'b'")):
        for settings in (config, resolve(config, 5000, 300)):
            assert Config.from_flat(json.loads(json.dumps(settings.flat()))).flat() == settings.flat()
    with pytest.raises(ValueError, match=r"^rotation: "):
        Config.from_flat({"epochs": 3, "rotation": 7})


def test_all_problems_are_listed_at_once():
    flags = {"quiet": True, "verbose": True, "overwrite": True, "restart": True}
    places = [("corruption",), ("target_weight",), ("overwrite", "restart"), ("quiet", "verbose")]
    assert wheres(Config.of(corruption=0.001, target_weight=0.5).changed(**flags)) == places


@pytest.mark.parametrize(
    "settings",
    [
        {"code_activation": "sigmoid", "nested": True},
        {"output_layer": "hidden", "nested": True},
        {"output_layer": "hidden", "hidden": ()},
    ],
)
def test_features_that_the_network_does_not_have_are_refused(settings):
    assert wheres(Config.of(**settings)) == [tuple(settings)]
    for name in settings:
        assert wheres(Config.of(**{**settings, name: SETTINGS[name].default})) == []


def test_default_epochs_and_rates_follow_the_data_only():
    for n_rows, epochs in ((178, 182), (60_000, 20)):
        for config in (Config(), Config.of(batch_size=10_000)):
            assert resolve(config, n_rows, 4).training.epochs == epochs
    rates = [resolve(Config(), 100, n_inputs).training.learning_rate for n_inputs in (4, 784, 7840)]
    assert rates[2] == pytest.approx(rates[0] / 10)
    assert rates[1] == rates[0]


def test_the_default_network_follows_rows_and_columns():
    for n_rows, n_inputs, settings, hidden in (
        (60_000, 784, {}, (512,)),
        (60_000, 784, {"n_features": 300}, (600,)),  # a unit for each component, and one for its negative
        (60_000, 8, {}, (64,)),  # at most what narrow rows can use
        (1200, 784, {}, (300,)),  # at most what few rows can train
        (200, 784, {}, ()),  # no layer that could not start from components
        (10**6, 50_000, {}, (297,)),  # at most what fits into half of the default memory budget
        (10**6, 50_000, {"memory_budget": 2**24}, (297,)),  # a model does not depend on the memory budget
    ):
        assert resolve(Config.of(**settings), n_rows, n_inputs).network.hidden == hidden
    for n_rows, n_inputs, settings, expected in (
        (100, 255, {}, ("linear", False)),  # an outlier is a large part of a row
        (100, 256, {}, ("sigmoid", True)),
        (1000, 256, {}, ("linear", False)),
        (1000, 256, {"code_activation": "sigmoid"}, ("sigmoid", True)),
        (1000, 256, {"hidden": ()}, ("sigmoid", True)),
    ):
        network = network_of(resolve(Config.of(**settings), n_rows, n_inputs).network, n_inputs)
        assert (network.code, network.gain) == expected
