"""Compare the results of this tree with those of an earlier commit, bit for bit.

    make golden                               all scenarios
    python -m tests.golden nested wide        some of them
    python -m tests.golden --against main     another commit than HEAD
    python -m tests.golden --store            store values of this tree for `make test`, instead of a comparison

The exit code is 1 if an array differs. The commit says why. The files stay in .golden/.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from scripts.benchmarks.othertree import ROOT, THIS_TREE, other_tree
from tests.golden.inputs import write_inputs
from tests.golden.running import Results, run_scenarios
from tests.golden.scenarios import SCENARIOS, Scenario
from tests.golden.values import read_values, selection, write_values

FOLDER = ROOT / ".golden"
Arrays = Mapping[str, np.ndarray]
NAMES = [scenario.name for scenario in SCENARIOS]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the scenarios and return the exit code."""
    parser = argparse.ArgumentParser(
        "python -m tests.golden", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"some of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--against", default="HEAD", metavar="COMMIT", help="(default: %(default)s)")
    parser.add_argument("--store", action="store_true", help="store values for `make test`")
    options = parser.parse_args(argv)
    unknown = [name for name in options.scenarios if name not in NAMES]
    if unknown:
        parser.error(f"found {', '.join(unknown)}, expected some of {', '.join(NAMES)}")
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in (options.scenarios or NAMES)]
    shutil.rmtree(FOLDER, ignore_errors=True)
    write_inputs(FOLDER / "inputs")
    if options.store:
        (ours,) = run_scenarios(scenarios, [THIS_TREE], FOLDER)
        return _store(scenarios, ours)
    try:
        other = other_tree(options.against)
    except ValueError as error:
        parser.error(str(error))
    ours, reference = run_scenarios(scenarios, [THIS_TREE, other], FOLDER)
    return _compare(scenarios, ours, reference)


def _compare(scenarios: Sequence[Scenario], ours: Results, reference: Results) -> int:
    """Print the comparison of each scenario, and return the exit code."""
    n_equal = 0
    for scenario in scenarios:
        name = scenario.name
        problems = [results.errors[name] for results in (ours, reference) if name in results.errors]
        if not problems:
            problems = _differences(ours.arrays(scenario), reference.arrays(scenario))
        n_equal += not problems
        print(f"{'DIFFERENT' if problems else 'equal':9}  {name} {'; '.join(problems)}".rstrip())
    print(f"{n_equal} of {len(scenarios)} scenarios are as in {reference.tree.name}")
    return int(n_equal < len(scenarios))


def _differences(arrays: Arrays, reference: Arrays) -> list[str]:
    """Return a description of each array that is not bit for bit the same."""
    found = []
    for name in sorted({*arrays, *reference}):
        if name not in arrays or name not in reference:
            found.append(f"{name} is in one tree only")
        elif words := _difference(arrays[name], reference[name]):
            found.append(f"{name}: {words}")
    return found


def _difference(values: np.ndarray, reference: np.ndarray) -> str:
    """Return how an array differs from the reference; empty if all bits are equal."""
    if values.dtype.kind == reference.dtype.kind == "U":  # texts may be stored with other widths
        return "" if np.array_equal(values, reference) else "other texts"
    if (values.dtype, values.shape) != (reference.dtype, reference.shape):
        return f"is {values.dtype} {values.shape}, was {reference.dtype} {reference.shape}"
    if values.tobytes() == reference.tobytes():
        return ""
    if values.dtype.kind != "f":
        return f"{np.count_nonzero(values != reference):,} of {values.size:,} values differ"
    is_same = np.isclose(values, reference, rtol=0, atol=0, equal_nan=True)
    gaps = np.nan_to_num(np.abs(values.astype(np.float64) - reference), nan=np.inf)  # inf: NaN in one tree
    return (
        f"{np.count_nonzero(~is_same):,} of {values.size:,} values differ, by up to {gaps[~is_same].max(initial=0):.2g}"
    )


def _store(scenarios: Sequence[Scenario], ours: Results) -> int:
    """Store the values of scenarios, and return the exit code. Values of scenarios that no longer exist are removed."""
    for words in ours.errors.values():
        print(words)
    if ours.errors:
        return 1
    stored = read_values()
    stored |= {scenario.name: selection(ours.arrays(scenario)["features"]) for scenario in scenarios}
    write_values({name: stored[name] for name in NAMES if name in stored})
    return 0


if __name__ == "__main__":
    sys.exit(main())
