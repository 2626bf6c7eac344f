"""Compare the results of this tree with those of an earlier commit, bit for bit.

    make golden                               all scenarios
    python -m tests.golden nested wide        some of them
    python -m tests.golden --against main     another commit than HEAD
    python -m tests.golden --store            store values of this tree for `make test`, instead of a comparison

The exit code is 1 if an array differs. The commit says why. The files stay in .golden/.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from scripts.benchmarks.othertree import ROOT, THIS_TREE, Tree, environment, other_tree
from tests.golden.inputs import write_inputs
from tests.golden.scenarios import SCENARIOS, Scenario, run_scenario
from tests.golden.values import read_values, selection, write_values

FOLDER = ROOT / ".golden"
INPUTS = FOLDER / "inputs"
READER = Path(__file__).with_name("reader.py")
Arrays = Mapping[str, np.ndarray]
NAMES = [scenario.name for scenario in SCENARIOS]


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

    def run(self, scenario: Scenario) -> None:
        """Run a scenario in a directory of its own."""
        folder = self._folder / scenario.name

        def extract(arguments: list[str]) -> None:
            command = [*self.tree.extract, *arguments]
            subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=True)

        try:
            run_scenario(scenario, INPUTS, folder, extract)
        except subprocess.CalledProcessError as error:
            self.errors[scenario.name] = f"exit code {error.returncode}: {error.stderr.strip().splitlines()[-1:]}"

    def read(self, scenarios: Sequence[Scenario]) -> None:
        """Read the outputs of all scenarios that have succeeded."""
        jobs = [
            {
                "name": each.name,
                "output": str(self._folder / each.name / each.runs[-1].output),
                "reads": each.reads,
                "target": str(self._path(each)),
            }
            for each in scenarios
            if each.name not in self.errors
        ]
        # -P leaves the directory of the program out of the search path.
        command = [str(self.tree.python), "-P", str(READER)]
        run = partial(
            subprocess.run, cwd=self._folder, env=environment(), stdout=subprocess.PIPE, text=True, check=True
        )
        self.errors |= json.loads(run(command, input=json.dumps(jobs)).stdout)

    def arrays(self, scenario: Scenario) -> dict[str, np.ndarray]:
        """Return the arrays of a scenario by name."""
        with np.load(self._path(scenario)) as file:
            return dict(file)

    def _path(self, scenario: Scenario) -> Path:
        return self._folder / f"{scenario.name}.npz"


def run_scenarios(scenarios: Sequence[Scenario], trees: Sequence[Tree]) -> list[Results]:
    """Run all scenarios with each tree, and return the results of each."""
    results = [Results(tree, FOLDER / f"results-{i}") for i, tree in enumerate(trees)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = [pool.submit(each.run, scenario) for scenario in scenarios for each in results]
        for run in runs:
            run.result()
        list(pool.map(lambda each: each.read(scenarios), results))
    return results


def compare(scenarios: Sequence[Scenario], ours: Results, reference: Results) -> int:
    """Print the comparison of each scenario, and return the exit code."""
    n_equal = 0
    for scenario in scenarios:
        name = scenario.name
        problems = [f"{each.tree.name}: {each.errors[name]}" for each in (ours, reference) if name in each.errors]
        if not problems:
            problems = differences(ours.arrays(scenario), reference.arrays(scenario))
        n_equal += not problems
        print(f"{'DIFFERENT' if problems else 'equal':9}  {name} {'; '.join(problems)}".rstrip())
    print(f"{n_equal} of {len(scenarios)} scenarios are as in {reference.tree.name}")
    return int(n_equal < len(scenarios))


def differences(arrays: Arrays, reference: Arrays) -> list[str]:
    """Return a description of each array that is not bit for bit the same."""
    found = [f"{name} is in one tree only" for name in sorted(arrays.keys() ^ reference.keys())]
    for name in sorted(arrays.keys() & reference.keys()):
        values = arrays[name]
        expected = reference[name]
        if values.dtype.kind == expected.dtype.kind == "U":  # texts may be stored with other widths
            is_same = np.array_equal(values, expected)
        else:
            is_same = (values.dtype, values.tobytes()) == (expected.dtype, expected.tobytes())
        if values.shape != expected.shape or not is_same:
            found.append(f"{name}: {_size_of(values, expected)}")
    return found


def _size_of(values: np.ndarray, expected: np.ndarray) -> str:
    """Return how much an array differs from the expected one."""
    if values.shape != expected.shape or values.dtype.kind != "f":
        return f"is {values.dtype} {values.shape}, was {expected.dtype} {expected.shape}"
    gaps = np.abs(values.astype(np.float64) - expected)
    return f"{np.count_nonzero(gaps):,} of {values.size:,} values differ, by up to {np.nanmax(gaps, initial=0):.2g}"


def store(scenarios: Sequence[Scenario], ours: Results) -> int:
    """Store the values of scenarios, and return the exit code. Values of scenarios that no longer exist are removed."""
    if ours.errors:
        print(ours.errors)
        return 1
    stored = read_values()
    stored |= {scenario.name: selection(ours.arrays(scenario)["features"]) for scenario in scenarios}
    write_values({name: stored[name] for name in NAMES if name in stored})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the scenarios and return the exit code."""
    parser = argparse.ArgumentParser(
        "python -m tests.golden", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"some of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--against", default="HEAD", metavar="COMMIT", help="(default: %(default)s)")
    parser.add_argument("--store", action="store_true", help="store values for `make test`")
    options = parser.parse_args(argv)
    unknown = set(options.scenarios) - set(NAMES)
    if unknown:
        parser.error(f"found {', '.join(unknown)}, expected some of {', '.join(NAMES)}")
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in (options.scenarios or NAMES)]
    shutil.rmtree(FOLDER, ignore_errors=True)
    write_inputs(INPUTS)
    if options.store:
        return store(scenarios, *run_scenarios(scenarios, [THIS_TREE]))
    return compare(scenarios, *run_scenarios(scenarios, [THIS_TREE, other_tree(options.against)]))


if __name__ == "__main__":
    sys.exit(main())
