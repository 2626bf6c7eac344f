"""`shardpress doctor`: check everything that a run needs on this machine."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from shardpress.commands.parsing import add_json_flag, print_json

DESCRIPTION = """Check everything that a run needs on this machine, and say how to fix what is missing.

    shardpress doctor
    THEANO_FLAGS=device=cuda shardpress doctor       check for a run on this device
    shardpress doctor --output /scratch/features --json

The output lists the steps to take in order, followed by all checks, from Python to the devices. The CPU and the chosen
device are each tested in a child process, which compares features of a small model with those that NumPy computes. The
exit code is 0 if a run will work, 78 if settings or packages must be fixed, and 1 if another fault must be fixed.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", metavar="DIR", default="features", help="Output directory to check. Default: features."
    )
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    """Print all checks. Return the result of `shardpress.setup.diagnosis.exit_code`."""
    from shardpress.setup.device_checks import device_checks
    from shardpress.setup.diagnosis import exit_code, page, verdict
    from shardpress.setup.machine import machine_checks, python_checks

    print("shardpress doctor: checking; this takes a few seconds, half a minute the first time.", file=sys.stderr)
    checks = [*python_checks(), *device_checks(), *machine_checks(options.output)]
    if options.json:
        print_json({"verdict": verdict(checks), "checks": [asdict(check) for check in checks]})
    else:
        print(page(checks))
    return exit_code(checks)
