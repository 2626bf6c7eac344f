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


def arrays_of(tree: Tree, scenario: Scenario) -> Arrays:
    """Run a scenario and read its last output, both with the code of a tree. Return the arrays by name."""
    folder = FOLDER / tree.name.replace(" ", "-") / scenario.name

    def call(command: Sequence[str]) -> None:
        done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{scenario.name} failed in {tree.name}: {done.stderr}")

    run_scenario(scenario, INPUTS, folder, lambda arguments: call([*tree.extract, *arguments]))
    target = folder / "arrays.npz"
    # -P leaves the directory of the program out of the search path.
    reader = [str(tree.python), "-P", str(READER)]
    call([*reader, scenario.runs[-1].output, json.dumps(scenario.reads), str(target)])
    with np.load(target) as file:
        return dict(file)


def run_scenarios(scenarios: Sequence[Scenario], tree: Tree) -> list[Arrays]:
    """Return the arrays of each scenario. The runs of several scenarios overlap."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda scenario: arrays_of(tree, scenario), scenarios))


def compare(scenarios: Sequence[Scenario], tree: Tree) -> int:
    """Print the comparison of each scenario with another tree, and return the exit code."""
    ours = run_scenarios(scenarios, THIS_TREE)
    theirs = run_scenarios(scenarios, tree)
    n_equal = 0
    for scenario, arrays, expected in zip(scenarios, ours, theirs, strict=True):
        found = differences(arrays, expected)
        n_equal += not found
        print(f"{'DIFFERENT' if found else 'equal':9}  {scenario.name} {', '.join(found)}".rstrip())
    print(f"{n_equal} of {len(scenarios)} scenarios are as in {tree.name}")
    return int(n_equal < len(scenarios))


def differences(arrays: Arrays, reference: Arrays) -> list[str]:
    """Return the names of arrays that are in one tree only, or are not bit for bit the same."""
    common = arrays.keys() & reference.keys()
    return sorted(
        name
        for name in arrays.keys() | reference.keys()
        if name not in common or not _is_same(arrays[name], reference[name])
    )


def _is_same(values: np.ndarray, expected: np.ndarray) -> bool:
    if values.dtype.kind == expected.dtype.kind == "U":  # texts may be stored with other widths
        return np.array_equal(values, expected)
    facts = [(array.dtype, array.shape, array.tobytes()) for array in (values, expected)]
    return facts[0] == facts[1]


def store(scenarios: Sequence[Scenario]) -> None:
    """Store the values of scenarios. Values of scenarios that no longer exist are removed."""
    stored = read_values()
    for scenario, arrays in zip(scenarios, run_scenarios(scenarios, THIS_TREE), strict=True):
        stored[scenario.name] = selection(arrays["features"])
    write_values({name: stored[name] for name in NAMES if name in stored})


def main() -> int:
    """Run the scenarios and return the exit code."""
    parser = argparse.ArgumentParser(
        "python -m tests.golden", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"some of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--against", default="HEAD", metavar="COMMIT", help="(default: %(default)s)")
    parser.add_argument("--store", action="store_true", help="store values for `make test`")
    options = parser.parse_args()
    unknown = set(options.scenarios) - set(NAMES)
    if unknown:
        parser.error(f"found {', '.join(unknown)}, expected some of {', '.join(NAMES)}")
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in (options.scenarios or NAMES)]
    shutil.rmtree(FOLDER, ignore_errors=True)
    write_inputs(INPUTS)
    if options.store:
        store(scenarios)
        return 0
    return compare(scenarios, other_tree(options.against))


if __name__ == "__main__":
    sys.exit(main())
