"""Compare the results of this tree with those of an earlier commit, bit for bit.

    make golden                               all scenarios
    python -m tests.golden nested wide        some of them
    python -m tests.golden --against main     another commit
    python -m tests.golden --store            store values of this tree for `make test`, instead of a comparison

A difference needs a line in tests/golden/explained.py. The exit code is 1 if a difference is not explained, or if an
explained difference does not exist. The files stay in .golden/.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence

from scripts.benchmarks.othertree import ROOT, THIS_TREE, other_tree
from tests.golden.comparison import differences, judge
from tests.golden.explained import EXPLAINED, REFERENCE
from tests.golden.inputs import write_inputs
from tests.golden.running import Results, run_scenarios
from tests.golden.scenarios import SCENARIOS, Scenario
from tests.golden.values import read_values, selection, write_values

FOLDER = ROOT / ".golden"
NAMES = [scenario.name for scenario in SCENARIOS]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the scenarios and return the exit code."""
    parser = argparse.ArgumentParser(
        "python -m tests.golden", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"some of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--against", default=REFERENCE, metavar="COMMIT", help="(default: %(default)s)")
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
    n_wrong = 0
    for scenario in scenarios:
        name = scenario.name
        errors = [results.errors[name] for results in (ours, reference) if name in results.errors]
        if errors:
            is_right = False
            line = f"FAILED     {name}: {'; '.join(errors)}"
        else:
            found = differences(ours.arrays(scenario), reference.arrays(scenario))
            is_right, line = judge(name, found, EXPLAINED)
        n_wrong += not is_right
        print(line)
    n_right = len(scenarios) - n_wrong
    print(f"{n_right} of {len(scenarios)} scenarios are as in {reference.tree.name}, or explained")
    return int(n_wrong > 0)


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
