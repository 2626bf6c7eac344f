"""`shardpress plan`: what a run would do, take and stumble over."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pipeline.commands.parsing import printed_json

__all__ = ["main"]

_EXAMPLES = """What a run with these settings would do: the time of each stage, memory, disk, what of an earlier run is
taken over, and everything that would stop it. Some rows are read, trained on and encoded for that; nothing is written.

    shardpress plan --input shards/ --output features
    shardpress plan --json | jq .seconds
    shardpress run --dry-run ...                           the same

The exit code is 0, or that of the first problem. All settings of `shardpress run` may stand here, and --json: the
answer as JSON, alone on standard output.
"""


def main(arguments: Sequence[str]) -> int:
    """Print the plan; 0, or the exit code of the first problem."""
    _tell("loading")  # at once, which what follows is not
    import pipeline.installed  # noqa: F401  which ends with a sentence what cannot go on

    # isort: split
    from pipeline.run.plan.plan import make_plan
    from pipeline.run.plan.words import in_words
    from pipeline.settings.flags import parse

    as_json = "--json" in arguments
    config = parse([each for each in arguments if each not in ("--json", "--dry-run")], os.environ, _EXAMPLES)
    plan = make_plan(config, _tell)
    if as_json:
        printed_json(plan.summary())
    else:
        print(in_words(plan, config.results.output))
    return plan.problems[0]["exit_code"] if plan.problems else 0


def _tell(words: str) -> None:
    print(f"plan: {words} ...", file=sys.stderr, flush=True)
