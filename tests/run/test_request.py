"""Tests of requests: a change invalidates only the stages that depend on it."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from shardpress.result.records import Request, ShardFacts, Stat
from shardpress.run.request import request_of
from shardpress.settings import replicas
from shardpress.settings.config import SETTINGS, Affected, Config, Setting
from shardpress.settings.resolve import resolve
from shardpress.training.targets import targets_of
from tests.support.networks import ONE_LAYER

CONFIG = Config.of(
    n_features=2,
    **ONE_LAYER,
    **{"epochs": 20, "batch_size": 16, "learning_rate": 0.1, "threads": 2},
    **{"storage_dtype": "float32", "compression": "none"},
)
STAT = Stat(16000, 10**18, 10**18, 7)
SHARDS = tuple(
    ShardFacts(name * 16, f"/data/{name}.h5", "X", [1000, 4], "<f4", STAT, rows=name * 32, extras="0" * 32)
    for name in "abc"
)
STAGES = {"scan", "model", "features"}


def request(config: Config = CONFIG, **values: Any) -> Request:
    """Return a request; `values` are the selected rows and the targets."""
    return request_of(resolve(config, 3000, 4), SHARDS, None, **values)


def affected_stages(now: Request, before: Request | None = None) -> set[str]:
    """Return the stages whose results two requests do not share. The fingerprint of the model is constant."""
    fingerprints = {
        "scan": Request.of_scan,
        "model": Request.of_model,
        "features": lambda each: each.of_features("m", []),
    }
    before = before or request()
    return {stage for stage, fingerprint in fingerprints.items() if fingerprint(before) != fingerprint(now)}


AFFECTED = {"scan": STAGES, "model": {"model"}, "features": {"features"}}
OTHER_VALUES = {"output_layer": "hidden", "hidden": (7,), "fit_on": "other == 7"}


def other_value(setting: Setting) -> Any:
    """Return a value that differs from the setting's value in CONFIG."""
    now = CONFIG.flat()[setting.name]
    if setting.name in OTHER_VALUES:
        return OTHER_VALUES[setting.name]
    if isinstance(now, bool):
        return not now
    if setting.kind.metavar.startswith("{"):
        return next(each for each in setting.kind.metavar.strip("{}").split(",") if each != now)
    if isinstance(now, int):
        return 2 * now + 1
    if isinstance(now, float):
        return now / 2 or 0.5
    if isinstance(now, tuple):
        return ("other",)
    return "7" if setting.kind.is_text else 7


def test_every_setting_changes_the_stages_that_it_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that is missing from a fingerprint would cause reuse of a result that it changes."""
    monkeypatch.setattr(replicas, "_MIN_STEPS", 100)  # otherwise these few rows would always have one replica
    for setting in SETTINGS.values():
        affects = setting.affects
        assert affects in get_args(Affected), setting.name
        if affects == "inputs" or setting.name == "include":  # these count by their effect, and have their own tests
            continue
        change = {setting.name: other_value(setting)}
        now = request(CONFIG.changed(**change))
        assert affected_stages(now) == AFFECTED.get(affects, set()), change
    affected = {"missing_value": "scan", "seed": "model", "on_drift": "features", "threads": "nothing"}
    assert {name: SETTINGS[name].affects for name in affected} == affected


def test_selected_rows_and_targets_change_the_stages_that_depend_on_them() -> None:
    """The settings name only extras, whose values can differ."""
    fitted = np.arange(3000) % 3 == 0
    before = request(fitted=fitted)
    assert affected_stages(request(fitted=fitted.copy()), before) == set()
    for other in (~fitted, None):
        assert affected_stages(request(fitted=other), before) == STAGES

    def of(values: np.ndarray) -> Request:
        return request(targets=targets_of("y", [values[:5], values[5:]], [fitted[:5], fitted[5:]], 3000))

    values = np.arange(3000) % 2
    assert affected_stages(of(values + fitted), of(values)) == {"model"}
    assert affected_stages(of(values + ~fitted), of(values)) == set(), "targets of other rows"
