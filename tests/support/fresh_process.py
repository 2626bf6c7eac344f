"""Run tasks in a fresh process, which receives only pickled data."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tests.support.interpreters import REPOSITORY, environment

PROGRAM = """
import pickle, sys
out = sys.stdout.buffer
sys.stdout = sys.stderr  # tasks may print
for data in pickle.load(sys.stdin.buffer):
    function, argument = pickle.loads(data)
    pickle.dump(function(argument), out)
"""


def run_in_fresh_process(tasks: Sequence[tuple[Callable[[Any], Any], Any]]) -> list[Any]:
    """Return the results of tasks in a fresh process. Each task and each result is pickled separately."""
    request = pickle.dumps([pickle.dumps(task) for task in tasks])
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    result = subprocess.run(
        command, input=request, capture_output=True, check=False, timeout=300, cwd=REPOSITORY, env=environment()
    )
    assert result.returncode == 0, result.stderr.decode()
    results = io.BytesIO(result.stdout)
    return [pickle.load(results) for _ in tasks]
