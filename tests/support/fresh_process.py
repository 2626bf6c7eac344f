"""Run tasks in a fresh process, which receives only pickled data."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def run_in_fresh_process(tasks: Sequence[tuple[Callable[[Any], Any], Any]]) -> list[Any]:
    """Return the results of tasks in a fresh process. Each task and each result is pickled separately."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(function, argument) for function, argument in tasks]
        return [future.result() for future in futures]
