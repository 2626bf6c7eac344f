"""Tests of requests: a change invalidates only the stages that depend on it, and messages name it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from msgspec.structs import replace as changed

from shardpress.columns import Columns
from shardpress.hdf5.files import Identity
from shardpress.hdf5.layout import Layout
from shardpress.hdf5.shard import Extra, Shard
from shardpress.model import Model
from shardpress.records import Request, ShardFacts, Stat, from_json, to_json
from shardpress.run import request as module
from shardpress.run.difference import Base, Matching, Wanted, difference
from shardpress.run.refusal import _differences
from shardpress.run.request import categories_of, facts_of, request_of, schema_of
from shardpress.scan.scaler import Scaler
from shardpress.settings import replicas
from shardpress.settings.config import SETTINGS, Affected, Config, Setting
from shardpress.settings.resolve import resolve
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


def words_about(now: Request, before: Request | None = None) -> str:
    """Return the differences between two requests in words."""
    base = Base(before or request(), model="", encoder="", features="")
    wanted = Wanted(now, None, lambda model: "", Matching())
    return _differences(base, wanted, difference(base, wanted))


# -- settings ----------------------------------------------------------------------------------------------------


AFFECTED_STAGES: list[tuple[dict[str, Any], set[str]]] = [
    ({"n_features": 3}, {"model"}),
    ({"hidden": (5,)}, {"model"}),
    ({"epochs": 21}, {"model"}),
    ({"replicas": 2}, set()),  # each of them would take too few steps
    ({"seed": 1}, {"model"}),
    ({"validation_fraction": 0.06}, {"model"}),
    ({"missing_value": -9999.0}, STAGES),
    ({"impute": "mean"}, STAGES),
    ({"clip_quantile": 0.001}, STAGES),
    ({"scale": "std"}, STAGES),
    ({"row_scale": "total"}, STAGES),
    ({"transform": "log1p"}, STAGES),
    ({"on_drift": "clip"}, {"features"}),
    ({"include": ("y",)}, set()),  # extras affect the features through their datasets
    ({"threads": 1}, set()),
    ({"memory_budget": 2**24}, set()),
    ({"device_memory_budget": 0}, set()),
    ({"output": "elsewhere"}, set()),
    ({"input": ("other",)}, set()),
    ({"verify": "sizes"}, set()),
    ({"overwrite": True}, set()),
    ({"require_device": True}, set()),
]


def test_a_setting_changes_the_stages_that_depend_on_it() -> None:
    for change, expected in AFFECTED_STAGES:
        assert affected_stages(request(CONFIG.changed(**change))) == expected, change


AFFECTED = {"scan": STAGES, "model": {"model"}, "features": {"features"}}


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
        if affects == "inputs" or setting.name == "include":  # these count by their effect, and have their own tests
            continue
        change = {setting.name: other_value(setting)}
        now = request(CONFIG.changed(**change))
        assert affected_stages(now) == AFFECTED.get(affects, set()), change
        if affects in AFFECTED:
            assert setting.name in words_about(now), change


@pytest.mark.parametrize(
    ("name", "expected"), [("_SCAN", STAGES), ("_TRAINING", {"model"}), ("_ENCODING", {"features"})]
)
def test_format_numbers_change_the_stages_that_depend_on_them(
    monkeypatch: pytest.MonkeyPatch, name: str, expected: set[str]
) -> None:
    before = request()
    monkeypatch.setattr(module, name, 2)
    assert affected_stages(request(), before) == expected


@pytest.mark.parametrize(("package", "affected"), [("numpy", set()), ("Theano", {"model"})])
def test_version_of_theano_changes_the_model(monkeypatch: pytest.MonkeyPatch, package: str, affected: set[str]) -> None:
    # Results do not depend on the version of NumPy.
    before = request()
    version = module.version_of
    monkeypatch.setattr(module, "version_of", lambda name: "9.9" if name == package else version(name))
    assert affected_stages(request(), before) == affected
    assert (package in words_about(request(), before)) is bool(affected)


def test_selected_rows_and_targets_change_the_stages_that_depend_on_them() -> None:
    """The settings name only extras, whose values can differ."""
    fitted = np.arange(3000) % 3 == 0
    before = request(fitted=fitted)
    assert affected_stages(request(fitted=fitted.copy()), before) == set()
    for other in (~fitted, np.append(fitted, False), None):
        assert affected_stages(request(fitted=other), before) == STAGES
    assert mentions(words_about(request(fitted=~fitted), before), "fit_on")

    kinds = np.arange(3000) % 2
    numbers = kinds + 0.25
    known = np.ones(3000, dtype=bool)

    def of(values: np.ndarray, mask: np.ndarray = known) -> Request:
        return request(targets=targets_of("y", [values[:5], values[5:]], [mask[:5], mask[5:]], 3000))

    for values in (kinds, numbers):
        assert affected_stages(of(values), of(values)) == set()
        for other in (values[::-1], 2 * values):
            assert affected_stages(of(other), of(values)) == {"model"}
        assert affected_stages(of(values, fitted), of(values)) == {"model"}
        hidden = np.where(fitted, values, values + 1)
        assert affected_stages(of(hidden, fitted), of(values, fitted)) == set()
    assert mentions(words_about(of(kinds), of(numbers)), "target")


# -- shards ------------------------------------------------------------------------------------------------------


def second(**fields: Any) -> list[ShardFacts]:
    """Return the shards with other facts about the second one."""
    return [SHARDS[0], changed(SHARDS[1], **fields), SHARDS[2]]


OTHER_ROWS: dict[str, tuple[Sequence[ShardFacts], tuple[object, ...]]] = {
    "contents": (second(rows="d" * 32), ("b.h5", "contents", "modification time")),
    "unknown contents": (second(rows=None), ("b.h5", "contents may have changed")),
    "time": (second(rows="d" * 32, stat=STAT._replace(changed=10**18 + 1)), ("b.h5", "modification time")),
    "size": (second(rows="d" * 32, stat=STAT._replace(n_bytes=16001)), ("b.h5", "size", 16000, 16001)),
    "shape": (second(rows="d" * 32, shape=[999, 4]), ("b.h5", "shape", "1000, 4", "999, 4")),
    "dtype": (second(dtype=">f4"), ("b.h5", "dtype", "f4", "f4")),
    "removed": (SHARDS[:2], ("missing", "c.h5")),
    "added": ((*SHARDS, changed(SHARDS[0], path="/data/d.h5")), ("new", "d.h5")),
    "forged name": ((*SHARDS, changed(SHARDS[0], path="/data/d\n\x1b.h5")), ("new", r"d\n\x1b.h5")),
}


@pytest.mark.parametrize("kind", OTHER_ROWS)
def test_other_rows_change_the_scan_and_the_model_and_are_named(kind: str) -> None:
    shards, facts = OTHER_ROWS[kind]
    stats = {"stat": STAT._replace(ctime_ns=5)}  # a file with the same times is the same
    now = request(shards=[changed(shard, **stats) if shard.stat == STAT else shard for shard in shards])
    assert affected_stages(now) == {"scan", "model"}
    words = words_about(now)
    assert mentions(words, *facts)
    assert words.isprintable()


def test_the_place_and_the_times_of_a_file_change_nothing() -> None:
    shards = [changed(each, path=f"/elsewhere/{each.name}", stat=Stat(1, 2, 3, 4), dataset="Y") for each in SHARDS]
    assert affected_stages(request(shards=shards)) == set()
    assert words_about(request(shards=shards)) == ""


def test_the_order_of_the_shards_changes_the_model() -> None:
    assert affected_stages(request(shards=SHARDS[::-1])) == {"scan", "model"}


def test_many_changed_inputs_and_differences_are_abridged() -> None:
    before = [changed(SHARDS[0], path=f"/data/{i}.h5", rows=f"{i:032x}") for i in range(300)]
    now = [changed(each, rows=f"{i:032x}", stat=Stat(1, 2, 3, 4)) for i, each in enumerate(before, 1000)]
    words = words_about(request(shards=now), request(shards=before))
    assert mentions(words, 300, "0.h5")
    assert len(words) < 300
    few = words_about(request(shards=now[:1]), request(shards=before))
    assert mentions(few, "299 missing files")
    assert len(few) < 300


FILE = Shard("/data/a.h5", "X", (1000, 4), "<f4", identity=Identity(0, 0, 16000, 10**18))


def test_the_order_of_the_columns_is_a_fact_and_their_names_are_not() -> None:
    named = replace(FILE, columns=Columns(tuple("abcd"), "var"))
    assert facts_of(named) == facts_of(FILE)
    orders = [np.array(order, np.int32) for order in ([0, 1, 2, 3], [1, 0, 2, 3])]
    assert len({facts_of(named, order).column_order for order in (None, *orders)}) == 3


def test_facts_about_extras_change_the_features_or_the_parts() -> None:
    """Their categories change only the parts, because the index contains them."""
    layout = Layout("y", (1000,), np.dtype("<i8"), "contiguous", 2048)
    extra = Extra("y", np.dtype("<i8"), layout)
    others = {
        "name": replace(extra, name="z"),
        "dtype": replace(extra, dtype=np.dtype("<i4")),
        "shape": replace(extra, dtype=np.dtype(("<i8", (2,)))),
        "mask": replace(extra, mask="y"),
    }
    for kind, other in others.items():
        assert schema_of([other]) != schema_of([extra]), kind
    assert schema_of([replace(extra, layout=None)]) == schema_of([extra])
    codes = [replace(extra, fill=-1, categories=names, codes=(0, 1)) for names in (("a", "b"), ("b", "a"))]
    assert schema_of(codes[:1]) == schema_of(codes[1:])
    assert categories_of(codes[:1]) != categories_of(codes[1:])


# -- a given model -----------------------------------------------------------------------------------------------


def test_training_settings_do_not_matter_with_a_given_model() -> None:
    before = request(model=MODEL)
    for change in ({"epochs": 3}, {"seed": 1}, {"learning_rate": 0.5}, {"memory_budget": 2**24}):
        assert affected_stages(request(CONFIG.changed(**change), model=MODEL), before) == set(), change
    assert affected_stages(before) == {"model"}


def test_imputation_by_a_given_model_changes_the_scan() -> None:
    clipping = replace(MODEL, scaler=replace(MODEL.scaler, clips=True))
    filling = replace(MODEL, scaler=replace(MODEL.scaler, fill=np.zeros(4)))
    assert "scan" not in affected_stages(request(model=clipping), request(model=MODEL))
    assert "scan" in affected_stages(request(model=filling), request(model=MODEL))


def test_another_model_makes_other_features() -> None:
    other = replace(MODEL, parameters={**MODEL.parameters, "b_hidden": np.ones(2, np.float32)})
    assert affected_stages(request(model=other), request(model=MODEL)) == {"model"}
    assert request().of_features(MODEL.fingerprint, []) != request().of_features(other.fingerprint, [])
    assert mentions(words_about(request(model=other), request(model=MODEL)), MODEL.fingerprint, other.fingerprint)


# -- messages ----------------------------------------------------------------------------------------------------


def test_differences_name_settings_with_both_values() -> None:
    assert words_about(request()) == ""
    now = request(CONFIG.changed(epochs=3, seed=7, missing_value=-1.0, on_drift="clip"))
    facts = ("missing_value", None, -1.0, "epochs", 20, 3, "seed", 0, 7, "on_drift", "pass", "clip")
    assert mentions(words_about(now), *facts)


def test_a_request_stays_the_same_in_json() -> None:
    stored = from_json(to_json(request()), Request)
    assert stored == request()
    assert affected_stages(stored) == set()
    assert words_about(stored) == ""
