"""`shardpress doctor`: check everything that a run needs on this machine."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from pipeline.commands.parsing import add_json_flag, print_json

__all__ = ["DESCRIPTION", "configure", "run"]

DESCRIPTION = """Look at everything that a run needs, and say what to mend: that comes first.

    shardpress doctor
    THEANO_FLAGS=device=cuda shardpress doctor       for a run that asks for this device
    shardpress doctor --output /scratch/features --json

The page begins with what to do, in the order in which it helps, and goes on with everything that was looked at, from
Python up to each device. A device is really tried: something is compiled, and a small model is held against NumPy, in
a process with a time limit. Exit code 0 when a run will do, 78 when settings or packages have to be mended, 1 when
something else has to be.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--output", metavar="DIR", default="features", help="where features shall go (default: features)"
    )
    parser.add_argument("--seconds", metavar="N", type=float, default=300.0, help="for each device (default: 300)")
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    """Print all checks; the exit code is that of `pipeline.doctor.check.exit_code`."""
    from pipeline.doctor.check import exit_code, page, verdict
    from pipeline.doctor.devices import device_checks
    from pipeline.doctor.machine import machine_checks, python_checks

    print("shardpress doctor: looking; each device takes some seconds, the first time half a minute.", file=sys.stderr)
    checks = list(python_checks())
    libraries: dict[str, list[str]] = {}
    for check, loaded in device_checks(options.seconds):
        checks.append(check)
        libraries |= loaded
    checks += machine_checks(options.output)
    if options.json:
        print_json({"verdict": verdict(checks), "checks": [asdict(each) for each in checks], "libraries": libraries})
    else:
        print(page(checks, libraries))
    return exit_code(checks)
