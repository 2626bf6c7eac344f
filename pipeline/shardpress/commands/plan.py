"""`shardpress plan`: estimate the time, memory and disk space of a run, and list problems."""

from __future__ import annotations

import argparse
import os
import sys

from shardpress.commands.parsing import add_json_flag, print_json

__all__ = ["DESCRIPTION", "configure", "run"]

DESCRIPTION = """\
Estimate time, memory and disk space of a run, list the earlier results that it reuses, and every problem
that would stop it.

    shardpress plan --input shards/ --output features
    shardpress plan --json | jq .seconds
    shardpress run --dry-run ...                           print the same plan

The command reads and encodes some of the rows, and trains on them, to estimate the time. Nothing is written. All
settings of `shardpress run` are accepted. With --json, standard output contains only the plan as JSON. The exit code is
0, or the exit code of the first problem.
"""
_OWN_FLAGS = ("--json", "--dry-run")  # `run --dry-run` calls this command, too


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the settings and ``--json``."""
    from shardpress.settings.flags import add_settings

    add_settings(parser)
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    """Print the plan. Return 0, or the exit code of the first problem."""
    _report_step("loading")  # before the imports, which take a second or two
    import shardpress.installed  # noqa: F401  it exits with a message if no run is possible here

    # isort: split
    from shardpress.run.plan.plan import make_plan
    from shardpress.run.plan.text import plan_text
    from shardpress.settings.flags import parse

    settings = [argument for argument in options.arguments if argument not in _OWN_FLAGS]
    config = parse(settings, os.environ, DESCRIPTION)
    plan = make_plan(config, _report_step)
    if "--json" in options.arguments:
        print_json(plan.summary())
    else:
        print(plan_text(plan, config.results.output))
    if plan.problems:
        return plan.problems[0]["exit_code"]
    return 0


def _report_step(words: str) -> None:
    print(f"plan: {words} ...", file=sys.stderr, flush=True)
