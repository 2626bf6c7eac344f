"""Run scenarios with the programs of several trees, and read their outputs with the code of each tree."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmarks.othertree import Tree, environment
from tests.golden.inputs import PROBES
from tests.golden.scenarios import Scenario, run_scenario

_READER = Path(__file__).with_name("reader.py")


class Results:
    """Arrays of the scenarios that one tree has run.

    Attributes
    ----------
    tree : Tree
    errors : dict of str to str
        The last message of each scenario that failed.
    """

    def __init__(self, tree: Tree, folder: Path) -> None:
        self.tree = tree
        self.errors: dict[str, str] = {}
        self._folder = folder

    def run(self, scenario: Scenario, inputs: Path) -> None:
        """Run a scenario in a directory of its own."""
        folder = self._folder / scenario.name
        try:
            run_scenario(scenario, inputs, folder, partial(self._extract, folder))
        except subprocess.CalledProcessError as error:
            words = _last_line(error.stderr)
            self.errors[scenario.name] = f"{self.tree.name} exited with {error.returncode}: {words}"

    def _extract(self, folder: Path, arguments: list[str]) -> None:
        command = [*self.tree.extract, *arguments]
        subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=True)

    def read(self, scenarios: Sequence[Scenario], inputs: Path) -> None:
        """Read the outputs of all scenarios that have succeeded."""
        jobs = [self._job(scenario, inputs) for scenario in scenarios if scenario.name not in self.errors]
        # -P leaves the directory of the program out of the search path.
        result = subprocess.run(
            [str(self.tree.python), "-P", str(_READER)],
            cwd=self._folder,
            env=environment(),
            input=json.dumps(jobs),
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise RuntimeError(f"{self.tree.name}: the reader failed: {_last_line(result.stderr)}")
        for name, words in json.loads(result.stdout).items():
            self.errors[name] = f"{self.tree.name}: the output cannot be read: {words}"

    def _job(self, scenario: Scenario, inputs: Path) -> dict[str, Any]:
        last = scenario.runs[-1]
        probes = inputs / PROBES / f"{last.inputs.split()[-1].split('/')[0]}.npy"
        return {
            "scenario": scenario.name,
            "output": str(self._folder / scenario.name / last.output),
            "reads": scenario.reads,
            "probes": str(probes) if scenario.has_estimator else None,
            "target": str(self._path(scenario)),
        }

    def arrays(self, scenario: Scenario) -> dict[str, np.ndarray]:
        """Return the arrays of a scenario by name."""
        with np.load(self._path(scenario)) as file:
            return dict(file)

    def _path(self, scenario: Scenario) -> Path:
        return self._folder / f"{scenario.name}.npz"


def run_scenarios(scenarios: Sequence[Scenario], trees: Sequence[Tree], folder: Path) -> list[Results]:
    """Run all scenarios with each tree, and return the results of each.

    `folder` is the directory of the results. Its subdirectory `inputs` contains the input files.
    """
    inputs = folder / "inputs"
    results = [Results(tree, folder / f"results-{i}") for i, tree in enumerate(trees)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = [pool.submit(each.run, scenario, inputs) for scenario in scenarios for each in results]
        for run in runs:
            run.result()
        for reading in [pool.submit(each.read, scenarios, inputs) for each in results]:
            reading.result()
    return results


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
