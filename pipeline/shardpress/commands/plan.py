"""`shardpress plan`: what a run would change, how long it takes, what it needs, and what would stop it."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from shardpress.base.commandline import Parser
from shardpress.base.text import duration, size
from shardpress.commands.parsing import add_json_flag, print_json

if TYPE_CHECKING:
    from shardpress.run.plan import Plan

DESCRIPTION = """\
Show what a run would change, estimate its time, memory and disk space, and list every problem that would stop it.

    shardpress plan --input shards/ --output features
    shardpress plan --json | jq .seconds
    shardpress run --dry-run ...                           print the same plan

The command reads and encodes some of the rows, and trains on them, to estimate the time. Nothing is written. It accepts
everything that `shardpress run` accepts. With --json, standard output contains only the plan as JSON. The exit code is
0, or the exit code of the first problem.
"""
_WIDTH = 100
_DECIMALS_BELOW = 10.0  # seconds


def run(options: argparse.Namespace) -> int:
    """Print the plan. Return 0, or the exit code of the first problem."""
    from shardpress.settings.flags import parse_with_settings

    parser = Parser("shardpress plan", DESCRIPTION)
    add_json_flag(parser)
    parser.add_argument("--dry-run", action="store_true", help=argparse.SUPPRESS)  # `run --dry-run` calls this command
    config, own = parse_with_settings(parser, options.arguments, os.environ)
    # Before the imports, which take a second or two.
    print("plan: trying each stage on some rows ...", file=sys.stderr, flush=True)
    import shardpress.setup.installed  # noqa: F401  it exits with a message if no run is possible here

    # isort: split
    from shardpress.run.plan import make_plan

    plan = make_plan(config)
    if own.json:
        print_json({**asdict(plan), "seconds": plan.seconds})
    else:
        print("\n".join(_plan_lines(plan)))
    if plan.problems:
        return plan.problems[0].exit_code
    return 0


def _plan_lines(plan: Plan) -> Iterator[str]:
    """Yield the lines of a plan."""
    for label, words in plan.facts.items():
        yield from _filled(label, words)
    if plan.components:
        errors = [f"{error:.3g} with {n or 'none (the mean)'}" for n, error in plan.components]
        yield from _filled("components", f"mean squared error of a sample, in scaled units: {', '.join(errors)}")
    for stage in plan.stages:
        yield f"{stage.name:12} {duration(stage.seconds, _DECIMALS_BELOW):>12}   {stage.what}"
    if plan.stages:
        end = time.strftime("%a %H:%M", time.localtime(time.time() + plan.seconds))
        yield f"{'total':12} {duration(plan.seconds, _DECIMALS_BELOW):>12}   a run that starts now ends on {end}"
    for name, space in (("memory", plan.memory), ("disk", plan.disk)):
        if space:
            available = size(space["available"]) if space.get("available") else "an unknown amount"
            yield f"{name:12} {size(space['n_bytes'])} at the peak; {available} available"
    for problem in plan.problems:
        yield from _filled("PROBLEM", f"{problem.kind} ({problem.exit_code}): {problem.words}")
    for words in plan.warnings:
        yield from _filled("warning", words)
    if not plan.problems:
        yield "no problems found"


def _filled(label: str, words: str) -> list[str]:
    indent = f"{label:13}"
    return textwrap.wrap(words, _WIDTH, initial_indent=indent, subsequent_indent=" " * 13, break_on_hyphens=False)
