"""An epoch by replicas, round after round: they train apart, and go on from what all of them together have come to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np

from pipeline import signals
from pipeline.training.replicas.averaging import Average, outer_step
from pipeline.training.replicas.replica import Replicas, Run
from pipeline.training.replicas.rounds import Share

if TYPE_CHECKING:
    from pipeline.training.epochs import Training

__all__ = ["Taken", "rounds_taken"]

Taken = tuple[int, int, float | None]
"""How many steps or shares are done, their rows, and the cost where it was asked for."""


def rounds_taken(training: Training, replicas: Replicas, run: Run | None) -> Iterator[Taken]:
    """Have replicas train on their shares of the epoch that is under way, round by round."""
    now = training.standing
    with replicas.run_here(now.epoch, now.n_done) if run is None else nullcontext(run) as run_tasks:
        for shares in replicas.rounds.rounds(now.epoch, now.n_done):
            signals.check()
            yield _round(training, replicas, run_tasks, shares)


def _round(training: Training, replicas: Replicas, run: Run, shares: Sequence[Share]) -> Taken:
    start, average, costs = training.state(), Average(), list[float]()
    last = start
    try:
        for done in run([replicas.task(each, start, training.settings, training.steps_per_epoch) for each in shares]):
            average.add(done.state, done.n_rows)
            last, costs = done.state, [*costs, *done.costs]
    except BaseException:  # in the middle of a round, which is taken anew
        training.set_state(start)
        raise
    if len(shares) > 1 and average.n_rows:  # one that was alone is not averaged
        last, training.outer = outer_step(start, average.mean(), training.outer, len(shares))
    training.set_state(last)
    return len(shares), average.n_rows, float(np.mean(costs)) if costs else None
