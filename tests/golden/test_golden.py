"""Tests of the golden set: stored values of each scenario, and the comparison of two trees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shardpress import cli
from tests.golden import comparison
from tests.golden.explained import EXPLAINED, Explained
from tests.golden.inputs import write_inputs
from tests.golden.reader import arrays_of
from tests.golden.scenarios import SCENARIOS, Scenario, run_scenario
from tests.golden.values import TOLERANCE, read_values, selection

NAMES = [scenario.name for scenario in SCENARIOS]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "inputs"
    write_inputs(folder)
    return folder


@pytest.mark.process
@pytest.mark.compiler
@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=NAMES)
def test_features_are_as_stored(
    scenario: Scenario, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(arguments: list[str]) -> None:
        monkeypatch.chdir(tmp_path)
        assert cli.main("", arguments) == 0

    run_scenario(scenario, inputs, tmp_path, run)
    arrays = arrays_of(tmp_path / scenario.runs[-1].output, scenario.reads, None)
    np.testing.assert_allclose(selection(arrays["features"]), read_values()[scenario.name], rtol=0, atol=TOLERANCE)


def test_each_scenario_has_a_name_and_stored_values() -> None:
    assert list(read_values()) == NAMES
    assert len(set(NAMES)) == len(NAMES)
    assert {line.scenario for line in EXPLAINED} <= set(NAMES)


BEFORE = {
    "features": np.array([1.0, np.nan, 0.0], np.float32),
    "extras/y": np.array([1, 2, 3]),
    "extras/name": np.array(["a", "b", "c"]),
}


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("features", np.array([1.5, np.nan, 0.0], np.float32), "1 of 3 values differ, by up to 0.5"),
        ("features", np.array([1.0, np.nan, -0.0], np.float32), "bits of NaN or of zeros"),
        ("features", np.array([1.0, 2.0, 0.0], np.float32), "1 of 3 values differ, 1 of them NaN"),
        ("features", np.array([1.0, np.nan, 0.0], np.float64), "is float64 (3,), was float32 (3,)"),
        ("extras/y", np.array([1, 2]), "is int64 (2,), was int64 (3,)"),
        ("extras/y", np.array([1, 2, 4]), "1 of 3 values differ"),
        ("extras/name", np.array(["a", "b", "longer"]), "1 of 3 values differ"),
        ("extras/new", np.array([1]), "is new"),
    ],
)
def test_each_kind_of_difference_is_described(name: str, values: np.ndarray, words: str) -> None:
    found = comparison.differences({**BEFORE, name: values}, BEFORE)
    assert list(found) == [name]
    assert words in found[name]


def test_equal_arrays_have_no_difference() -> None:
    copies = {name: values.copy() for name, values in BEFORE.items()}
    copies["extras/name"] = copies["extras/name"].astype("U9")
    assert comparison.differences(copies, BEFORE) == {}
    assert comparison.differences({}, {"features": np.zeros(1)}) == {"features": "is missing"}


FOUND = {"features": "1 of 3 values differ", "model/transform": "2 of 3 values differ"}
OTHER = Explained("other", "features", "another scenario")


@pytest.mark.parametrize(
    ("found", "explained", "is_right"),
    [
        ({}, [], True),
        ({}, [OTHER], True),
        (FOUND, [], False),
        (FOUND, [OTHER], False),
        (FOUND, [Explained("this", "features", "a reason")], False),
        (FOUND, [Explained("this", "features model/*", "a reason")], True),
        (FOUND, [Explained("this", "features", "a reason"), Explained("this", "model/*", "another")], True),
        (FOUND, [Explained("this", "features model/* extras/*", "a reason")], False),
        ({}, [Explained("this", "features", "a reason")], False),
    ],
)
def test_differences_and_explanations_must_match(
    found: dict[str, str], explained: list[Explained], is_right: bool
) -> None:
    judged, line = comparison.judge("this", found, explained)
    assert judged == is_right
    assert "this" in line
