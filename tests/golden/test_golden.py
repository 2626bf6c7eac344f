"""Test of the golden set: features of each scenario are as stored.

Sample: without scenarios whose files and dtypes have other tests, because each of them takes seconds to compile.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shardpress import cli
from tests.golden.inputs import write_inputs
from tests.golden.reader import arrays_of
from tests.golden.scenarios import SCENARIOS, Scenario, run_scenario
from tests.golden.values import TOLERANCE, read_values, selection
from tests.support.cases import ALL_CASES

LEFT_OUT = {"float64-gzip", "uint8-binary", "int16-max", "matlab", "pytables", "pandas", "netcdf"}
TESTED = [scenario for scenario in SCENARIOS if ALL_CASES or scenario.name not in LEFT_OUT]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "inputs"
    write_inputs(folder)
    return folder


@pytest.mark.process
@pytest.mark.compiler
@pytest.mark.slow
@pytest.mark.parametrize("scenario", TESTED, ids=[scenario.name for scenario in TESTED])
def test_features_are_as_stored(
    scenario: Scenario, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(arguments: list[str]) -> None:
        monkeypatch.chdir(tmp_path)
        # Worker processes take seconds to start, and results do not depend on them.
        assert cli.main("", [*arguments, "--workers", "0"]) == 0

    run_scenario(scenario, inputs, tmp_path, run)
    arrays = arrays_of(tmp_path / scenario.runs[-1].output, scenario.reads)
    np.testing.assert_allclose(selection(arrays["features"]), read_values()[scenario.name], rtol=0, atol=TOLERANCE)
