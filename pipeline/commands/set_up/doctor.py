"""`shardpress doctor`: whether a run will do here, and what to mend if not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

from pipeline.commands.parsing import Parser, printed_json

__all__ = ["main"]

_EXAMPLES = """Look at everything that a run needs, and say what to mend: that comes first.

    shardpress doctor
    THEANO_FLAGS=device=cuda shardpress doctor       for a run that asks for this device
    shardpress doctor --output /scratch/features --json

The page begins with what to do, in the order in which it helps, and goes on with everything that was looked at, from
Python up to each device. A device is really tried: something is compiled, and a small model is held against NumPy, in
a process with a time limit. Exit code 0 when a run will do, 78 when settings or packages have to be mended, 1 when
something else has to be.
"""


def main(arguments: Sequence[str]) -> int:
    """Look, print, and return whether something has to be mended: see `pipeline.doctor.check.exit_code`."""
    parser = Parser("doctor", _EXAMPLES)
    parser.add_argument(
        "--output", metavar="DIR", default="features", help="where features shall go (default: features)"
    )
    parser.add_argument("--seconds", metavar="N", type=float, default=300.0, help="for each device (default: 300)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(arguments)
    from pipeline.doctor.check import exit_code, page, verdict
    from pipeline.doctor.devices import tried
    from pipeline.doctor.machine import the_machine, the_python

    print("shardpress doctor: looking; each device takes some seconds, the first time half a minute.", file=sys.stderr)
    checks, libraries = list(the_python()), dict[str, list[str]]()
    for check, loaded in tried(options.seconds):
        checks.append(check)
        libraries |= loaded
    checks += the_machine(options.output)
    if options.json:
        printed_json({"verdict": verdict(checks), "checks": [asdict(each) for each in checks], "libraries": libraries})
    else:
        print(page(checks, libraries))
    return exit_code(checks)
