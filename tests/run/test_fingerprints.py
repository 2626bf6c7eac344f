"""Tests of fingerprints: a changed setting invalidates only the stages that depend on it, and is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from shardpress.columns import Columns
from shardpress.hdf5.files import Identity
from shardpress.hdf5.layout import Layout
from shardpress.model import Model
from shardpress.records import Request, from_json, to_json
from shardpress.run import fingerprints as module
from shardpress.run.fingerprints import differences, request_of
from shardpress.scan.scaler import Scaler
from shardpress.settings import replicas
from shardpress.settings.config import SETTINGS, Affected, Config, Setting
from shardpress.settings.resolve import resolve
from shardpress.shards.shard import Extra, Shard
from shardpress.training.targets import targets_of
from shardpress_kernels.network import Network
from tests.support.logged import mentions
from tests.support.networks import ONE_LAYER

CONFIG = Config.of(
    n_features=2,
    **ONE_LAYER,
    **{"epochs": 20, "batch_size": 16, "learning_rate": 0.1, "threads": 2},
    **{"storage_dtype": "float32", "compression": "none"},
)
FILE = Identity(0, 0, 16000, 10**18)
Y = Extra("y", np.dtype("<i8"), Layout("y", (1000,), np.dtype("<i8"), "contiguous", 2048))
SHARDS = tuple(
    Shard(f"/data/{name}.h5", "X", (1000, 4), "<f4", "float32", extras=(Y,), identity=FILE) for name in "abc"
)
MODEL = Model(
    Scaler(np.zeros(4), np.ones(4)),
    Network((4, 2)),
    {name: np.zeros(shape, np.float32) for name, shape in (("W", (4, 2)), ("b_hidden", 2), ("b_output", 4))},
)
STAGES = ("scan", "model", "features", "all")


def request(
    config: Config = CONFIG, shards: tuple[Shard, ...] = SHARDS, model: Model | None = None, **values: Any
) -> Request:
    """Return a request; `values` are the selected rows and the targets."""
    settings = resolve(config, 3000, 4)
    return request_of(settings, shards, model, **values)


def fingerprints(found: Request) -> dict[str, str]:
    return dict(zip(STAGES, (found.of_scan(), found.of_model(), found.of_features("m"), found.of_all()), strict=True))


def affected_stages(now: Request, before: Request | None = None) -> set[str]:
    """Return the stages whose results two requests do not share."""
    old = fingerprints(before or request())
    new = fingerprints(now)
    return {stage for stage in STAGES if old[stage] != new[stage]}


# -- dependences -------------------------------------------------------------------------------------------------


def test_equal_requests_have_equal_fingerprints() -> None:
    assert affected_stages(request()) == set()
    assert len(set(fingerprints(request()).values())) == len(STAGES)


AFFECTED_STAGES: list[tuple[dict[str, Any], set[str]]] = [
    ({"n_features": 3}, {"model", "all"}),
    ({"hidden": (5,)}, {"model", "all"}),
    ({"activation": "leaky-relu", "hidden": ()}, {"model", "all"}),
    ({"code_activation": "linear"}, {"model", "all"}),
    ({"decoder_gain": True}, {"model", "all"}),
    ({"start": "components"}, {"model", "all"}),
    ({"corruption": 0.25}, {"model", "all"}),
    ({"weight_decay": 0.01}, {"model", "all"}),
    ({"epochs": 21}, {"model", "all"}),
    ({"replicas": 2}, set()),  # each of them would take too few steps
    ({"batch_size": 17}, {"model", "all"}),
    ({"optimizer": "momentum"}, {"model", "all"}),
    ({"learning_rate": 0.2}, {"model", "all"}),
    ({"schedule": "constant"}, {"model", "all"}),
    ({"biases": "zero"}, {"model", "all"}),
    ({"momentum": 0.8}, {"model", "all"}),
    ({"seed": 1}, {"model", "all"}),
    ({"validation_fraction": 0.06}, {"model", "all"}),
    ({"patience": 6}, {"model", "all"}),
    ({"missing_value": -9999.0}, set(STAGES)),
    ({"impute": "mean"}, set(STAGES)),
    ({"missing_indicator": True}, set(STAGES)),
    ({"clip_quantile": 0.001}, set(STAGES)),
    ({"scale": "std"}, set(STAGES)),
    ({"row_scale": "total"}, set(STAGES)),
    ({"transform": "log1p"}, set(STAGES)),
    ({"on_drift": "clip"}, {"features", "all"}),
    ({"threads": 1}, set()),
    ({"memory_budget": 2**24}, set()),
    ({"memory_budget": 2**34}, set()),
    ({"device_memory_budget": 0}, set()),
    ({"output": "elsewhere"}, set()),
    ({"input": ("other",)}, set()),
    ({"verify": "sizes"}, set()),
    ({"overwrite": True}, set()),
    ({"restart": True}, set()),
    ({"quiet": True}, set()),
    ({"verbose": True}, set()),
    ({"require_device": True}, set()),
]


def test_a_setting_changes_the_stages_that_depend_on_it() -> None:
    """The features depend on the training through the model, whose fingerprint is constant here."""
    for change, expected in AFFECTED_STAGES:
        assert affected_stages(request(CONFIG.changed(**change))) == expected, change


def test_selected_rows_and_targets_change_the_stages_that_depend_on_them() -> None:
    """The settings name only extras, whose values can differ."""
    fitted = np.arange(3000) % 3 == 0
    before = request(fitted=fitted)
    assert affected_stages(request(fitted=fitted.copy()), before) == set()
    for other in (~fitted, np.append(fitted, False), None):
        assert affected_stages(request(fitted=other), before) == set(STAGES)
    assert mentions(differences(before, request(fitted=~fitted)), "fit_on")

    kinds = np.arange(3000) % 2
    numbers = kinds + 0.25
    known = np.ones(3000, dtype=bool)

    def of(values: np.ndarray, mask: np.ndarray = known) -> Request:
        return request(targets=targets_of("y", [values[:5], values[5:]], [mask[:5], mask[5:]], 3000))

    for values in (kinds, numbers):
        assert affected_stages(of(values), of(values)) == set()
        for other in (values[::-1], 2 * values):
            assert affected_stages(of(other), of(values)) == {"model", "all"}
        assert affected_stages(of(values, fitted), of(values)) == {"model", "all"}
        hidden = np.where(fitted, values, values + 1)
        assert affected_stages(of(hidden, fitted), of(values, fitted)) == set()
    assert mentions(differences(of(kinds), of(numbers)), "target")


AFFECTED = {"scan": set(STAGES), "model": {"model", "all"}, "features": {"features", "all"}}


def other_value(setting: Setting) -> Any:
    """Return a value that differs from the setting's value in CONFIG."""
    now = CONFIG.flat()[setting.name]
    kind = setting.kind
    if setting.name == "output_layer":
        return "hidden"  # the other value is the default
    if kind.metavar.startswith("{") and not isinstance(now, bool):
        return next(each for each in kind.metavar.strip("{}").split(",") if each != now)
    if isinstance(now, (bool, int, float)):
        return not now if isinstance(now, bool) else now * 2 + 1 if isinstance(now, int) else now / 2 or 0.5
    if setting.name == "hidden":
        return (7,)
    if setting.name == "fit_on":
        return "other == 7"
    return ("other",) if isinstance(now, tuple) else "7" if setting.kind.is_text else 7


def test_every_setting_changes_the_stages_that_it_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that is missing from a fingerprint would cause reuse of a result that it changes."""
    monkeypatch.setattr(replicas, "_MIN_STEPS", 100)  # otherwise these few rows would always have one replica
    for setting in SETTINGS.values():
        affects = setting.affects
        assert affects in get_args(Affected), setting.name
        if affects == "inputs":  # these count by their effect, and have tests of their own
            continue
        change = {setting.name: other_value(setting)}
        assert affected_stages(request(CONFIG.changed(**change))) == AFFECTED.get(affects, set()), change


@pytest.mark.parametrize("name", ["_SCAN", "_TRAINING", "_ENCODING"])
def test_format_numbers_change_the_stages_that_depend_on_them(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = request()
    monkeypatch.setattr(module, name, 2)
    expected = {"_SCAN": set(STAGES), "_TRAINING": {"model", "all"}, "_ENCODING": {"features", "all"}}
    assert affected_stages(request(), before) == expected[name]


@pytest.mark.parametrize(("package", "affected"), [("numpy", set()), ("Theano", {"model", "all"})])
def test_version_of_theano_changes_the_model(monkeypatch: pytest.MonkeyPatch, package: str, affected: set[str]) -> None:
    # Results do not depend on the version of NumPy.
    before = request()
    version = module.version
    monkeypatch.setattr(module, "version", lambda name: "9.9" if name == package else version(name))
    assert affected_stages(request(), before) == affected
    assert (package in differences(before, request())) is bool(affected)


# -- inputs ------------------------------------------------------------------------------------------------------


def changed(**options: Any) -> Callable[[tuple[Shard, ...]], tuple[Shard, ...]]:
    """Return a function that changes the second shard."""
    return lambda shards: (shards[0], replace(shards[1], **options), shards[2])


INPUTS: dict[str, tuple[Callable[[tuple[Shard, ...]], tuple[Shard, ...]], str]] = {
    "mtime": (changed(identity=replace(FILE, mtime_ns=10**18 + 1)), ":40.000000001)"),
    "size": (changed(identity=replace(FILE, size=16001)), "b.h5 (size 16000 -> 16001)"),
    "rows": (changed(shape=(999, 4)), "b.h5 (shape [1000, 4] -> [999, 4]"),
    "dtype": (changed(stored_dtype=">f4"), "b.h5 (dtype <f4 -> >f4)"),
    "dataset": (changed(dataset="Y"), "b.h5 (dataset X -> Y)"),
    "extras": (changed(extras=()), "b.h5 (extras ['y'] -> [])"),
    "removed": (lambda shards: shards[:2], "c.h5 "),
    "added": (lambda shards: (*shards, replace(shards[0], path="/data/d.h5")), "d.h5 "),
    "renamed": (changed(path="/data/new.h5"), "new.h5 "),
    "another order": (lambda shards: shards[::-1], "order"),
    "forged name": (changed(path="/data/b\n\x1b.h5"), "b\\n\\x1b.h5 "),
}


def test_a_changed_input_changes_every_stage_and_is_named() -> None:
    for kind, (change, words) in INPUTS.items():
        now = request(shards=change(SHARDS))
        assert affected_stages(now) == set(STAGES), kind
        found = differences(request(), now)
        assert words in found, kind
        assert found.isprintable(), kind


def test_many_changed_inputs_are_summarized() -> None:
    shards = tuple(replace(SHARDS[0], path=f"/data/{i}.h5") for i in range(300))
    added = Extra("z", np.dtype("i8"))
    now = tuple(
        replace(
            shard,
            extras=(*shard.extras, added),
            identity=replace(shard.identity, size=10**5 + i, mtime_ns=2 * 10**18 + i),
        )
        for i, shard in enumerate(shards)
    )
    found = differences(request(shards=shards), request(shards=now))
    for words in ("300 of 300 inputs", "size of 300 files", "time of 300 files", "extras ['y'] -> ['y', 'z']"):
        assert words in found
    assert len(found) < 150
    one = (*now[:298], replace(shards[298], stored_dtype="<f8"), shards[299])
    found = differences(request(shards=shards), request(shards=one))
    assert "299 of 300 inputs" in found
    assert "dtype of 1 file" in found
    assert "b.h5" in differences(request(), request(shards=changed(shape=(9, 4))(SHARDS)))


def test_moving_the_input_changes_nothing() -> None:
    moved_identity = replace(FILE, inode=5, device=6)
    moved = tuple(
        replace(shard, path=shard.path.replace("/data", "/elsewhere"), identity=moved_identity) for shard in SHARDS
    )
    assert affected_stages(request(shards=moved)) == set()
    assert differences(request(), request(shards=moved)) == ""


def test_names_of_columns_change_nothing_but_their_order_does() -> None:
    """Results of versions that did not know the names are reused."""
    named = tuple(replace(shard, columns=Columns(tuple("abcd"), "var")) for shard in SHARDS)
    assert affected_stages(request(shards=named)) == set()
    order = np.array([1, 0, 2, 3], np.int32)
    reordered = (*named[:2], replace(named[2], order=order))
    assert affected_stages(request(shards=reordered)) == set(STAGES)
    assert "column_order" in differences(request(), request(shards=reordered))
    for match in ("name", "ignore"):
        assert affected_stages(request(CONFIG.changed(match_columns=match), named)) == set()


def test_the_order_of_shards_matters() -> None:
    shards = (SHARDS[0], replace(SHARDS[0], path="/other/a.h5", identity=replace(FILE, mtime_ns=3)))
    assert affected_stages(request(shards=shards), request(shards=shards[::-1])) == set(STAGES)


# -- a given model -----------------------------------------------------------------------------------------------


def test_training_settings_do_not_matter_with_a_given_model() -> None:
    before = request(model=MODEL)
    for change in ({"epochs": 3}, {"seed": 1}, {"learning_rate": 0.5}, {"memory_budget": 2**24}):
        assert affected_stages(request(CONFIG.changed(**change), model=MODEL), before) == set(), change
    assert affected_stages(before) == {"model", "all"}


def test_imputation_by_a_given_model_changes_the_scan() -> None:
    clipping = replace(MODEL, scaler=replace(MODEL.scaler, clips=True))
    filling = replace(MODEL, scaler=replace(MODEL.scaler, fill=np.zeros(4)))
    assert "scan" not in affected_stages(request(model=clipping), request(model=MODEL))
    assert "scan" in affected_stages(request(model=filling), request(model=MODEL))


def test_another_model_makes_other_features() -> None:
    other = replace(MODEL, parameters={**MODEL.parameters, "b_hidden": np.ones(2, np.float32)})
    assert "all" in affected_stages(request(model=other), request(model=MODEL))
    assert request().of_features(MODEL.fingerprint) != request().of_features(other.fingerprint)
    words = differences(request(model=MODEL), request(model=other))
    assert words == f"model {MODEL.fingerprint} -> {other.fingerprint}"


# -- messages ----------------------------------------------------------------------------------------------------


def test_equal_requests_have_no_differences() -> None:
    assert differences(request(), request()) == ""


def test_differences_name_settings_with_both_values() -> None:
    now = request(CONFIG.changed(epochs=3, seed=7, missing_value=-1.0, on_drift="clip"))
    words = differences(request(), now)
    assert words == "missing_value None -> -1.0; epochs 20 -> 3; seed 0 -> 7; on_drift pass -> clip"


def test_names_of_rows_make_other_parts_of_the_same_run() -> None:
    names = replace(Y, name="_index", layout=replace(Y.layout, name="obs/_index"), is_named=True)
    shards = tuple(replace(shard, extras=(Y, names)) for shard in SHARDS)
    now = request(shards=shards)
    assert affected_stages(now) == {"features"}
    assert differences(request(), now) == ""
    requested = CONFIG.changed(include=("obs/_index",))
    assert affected_stages(request(requested, shards), request(requested)) == set()


def test_many_differences_are_abridged() -> None:
    many = tuple(replace(SHARDS[0], path=f"/data/{i}.h5") for i in range(500))
    words = differences(request(), request(shards=many))
    assert words.endswith(" and 493 more")
    assert len(words) < 500


def test_a_request_stays_the_same_in_json() -> None:
    stored = from_json(to_json(request()), Request)
    assert stored == request()
    assert fingerprints(stored) == fingerprints(request())
