"""Tests of presets: they set all settings of a model, and other settings override them."""

from __future__ import annotations

from collections.abc import Callable

from shardpress.settings.config import SETTINGS, Config
from shardpress.settings.conflicts import conflicts
from shardpress.settings.flags import parse
from shardpress.settings.presets import PRESETS, values_of_preset


def test_each_preset_sets_every_setting_of_the_model() -> None:
    # Defaults can change, but presets must not.
    deciding = {setting.name for setting in SETTINGS.values() if setting.affects in ("scan", "model")}
    about_data = {"fit_on", "missing_value", "impute", "missing_indicator", "target", "target_weight"}
    of_steps = {"epochs", "batch_size", "seed", "patience"}  # patience has no effect without validation rows
    for name, values in PRESETS.items():
        assert deciding - set(values) == about_data | of_steps, name
        assert list(conflicts(Config.of(**values))) == [], name


def test_other_settings_override_a_preset(file: Callable[[str], list[str]]) -> None:
    expected = Config.of(**{**values_of_preset("reference"), "preset": "reference", "n_features": 3, "scale": "auto"})
    assert parse(["--preset", "reference", "--n-features", "3", "--scale", "auto"], {}, "") == expected
    variables = {"SHARDPRESS_N_FEATURES": "3", "SHARDPRESS_PRESET": "reference"}
    assert parse(["--scale", "auto"], variables, "") == expected
    assert parse([*file("preset: reference"), "--preset", "none"], {}, "") == Config()
