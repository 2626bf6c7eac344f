"""`shardpress plan`: estimate the time, memory and disk space of a run, and list problems."""

from __future__ import annotations

import argparse
import os
import sys

from shardpress.commandline import Parser
from shardpress.commands.parsing import add_json_flag, print_json

DESCRIPTION = """\
Estimate time, memory and disk space of a run, list the earlier results that it reuses, and every problem
that would stop it.

    shardpress plan --input shards/ --output features
    shardpress plan --json | jq .seconds
    shardpress run --dry-run ...                           print the same plan

The command reads and encodes some of the rows, and trains on them, to estimate the time. Nothing is written. It accepts
everything that `shardpress run` accepts. With --json, standard output contains only the plan as JSON. The exit code is
0, or the exit code of the first problem.
"""


def run(options: argparse.Namespace) -> int:
    """Print the plan. Return 0, or the exit code of the first problem."""
    from shardpress.settings.flags import parse_with_settings

    parser = Parser("shardpress plan", DESCRIPTION)
    add_json_flag(parser)
    parser.add_argument("--dry-run", action="store_true", help=argparse.SUPPRESS)  # `run --dry-run` calls this command
    config, own = parse_with_settings(parser, options.arguments, os.environ)
    _report_step("loading")  # before the imports, which take a second or two
    import shardpress.installed  # noqa: F401  it exits with a message if no run is possible here

    # isort: split
    from shardpress.run.plan.plan import make_plan
    from shardpress.run.plan.text import plan_text

    plan = make_plan(config, _report_step)
    if own.json:
        print_json(plan.summary())
    else:
        print(plan_text(plan, config.results.output))
    if plan.problems:
        return plan.problems[0]["exit_code"]
    return 0


def _report_step(words: str) -> None:
    print(f"plan: {words} ...", file=sys.stderr, flush=True)
