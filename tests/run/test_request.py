"""Tests of requests: a change invalidates only the stages that depend on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from msgspec.structs import replace as changed

from shardpress.model import Model
from shardpress.records import Request, ShardFacts, Stat
from shardpress.run.request import request_of
from shardpress.scan.scaler import Scaler
from shardpress.settings import replicas
from shardpress.settings.config import SETTINGS, Affected, Config, Setting
from shardpress.settings.resolve import resolve
from shardpress.training.targets import targets_of
from shardpress_kernels.network import Network
from tests.support.networks import ONE_LAYER

CONFIG = Config.of(
    n_features=2,
    **ONE_LAYER,
    **{"epochs": 20, "batch_size": 16, "learning_rate": 0.1, "threads": 2},
    **{"storage_dtype": "float32", "compression": "none"},
)
STAT = Stat(16000, 10**18, 10**18, 7)
SHARDS = tuple(
    ShardFacts(f"/data/{name}.h5", "X", [1000, 4], "<f4", STAT, rows=name * 32, extras="0" * 32) for name in "abc"
)
MODEL = Model(
    Scaler(np.zeros(4), np.ones(4)),
    Network((4, 2)),
    {name: np.zeros(shape, np.float32) for name, shape in (("W", (4, 2)), ("b_hidden", 2), ("b_output", 4))},
)
STAGES = {"scan", "model", "features"}


def request(
    config: Config = CONFIG, shards: Sequence[ShardFacts] = SHARDS, model: Model | None = None, **values: Any
) -> Request:
    """Return a request; `values` are the selected rows and the targets."""
    return request_of(resolve(config, 3000, 4), shards, model, **values)


def affected_stages(now: Request, before: Request | None = None) -> set[str]:
    """Return the stages whose results two requests do not share. The fingerprint of the model is constant."""
    found = set()
    for stage, fingerprint in (
        ("scan", Request.of_scan),
        ("model", Request.of_model),
        ("features", lambda each: each.of_features("m", [])),
    ):
        if fingerprint(before or request()) != fingerprint(now):
            found.add(stage)
    return found


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


def test_settings_declare_what_they_affect() -> None:
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


def test_a_given_model_replaces_the_settings_of_the_training() -> None:
    before = request(model=MODEL)
    assert affected_stages(before) == {"model"}
    assert affected_stages(request(CONFIG.changed(epochs=3, seed=1), model=MODEL), before) == set()
    other = replace(MODEL, parameters={**MODEL.parameters, "b_hidden": np.ones(2, np.float32)})
    assert affected_stages(request(model=other), before) == {"model"}
    filling = replace(MODEL, scaler=replace(MODEL.scaler, fill=np.zeros(4)))  # rows with missing values are not bad
    assert "scan" in affected_stages(request(model=filling), before)


def test_rows_and_their_order_count_but_not_places_and_times() -> None:
    for shards in (SHARDS[::-1], (SHARDS[0], changed(SHARDS[1], rows="d" * 32), SHARDS[2])):
        assert affected_stages(request(shards=shards)) == {"scan", "model"}
    moved = [changed(each, path=f"/elsewhere/{each.name}", stat=Stat(1, 2, 3, 4), dataset="Y") for each in SHARDS]
    assert affected_stages(request(shards=moved)) == set()
