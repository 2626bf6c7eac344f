"""An epoch by replicas, round after round: they train apart, and go on from what all of them together have come to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline import signals
from pipeline.training.replicas.averaging import State, averaged, outer_step
from pipeline.training.replicas.replica import Done, Replicas, Run

if TYPE_CHECKING:
    from pipeline.training.epochs import Training

__all__ = ["Taken", "rounds_taken"]

Taken = tuple[int, int, float | None]
"""How many steps or shares are done, their rows, and the cost where it was asked for."""


def rounds_taken(training: Training, replicas: Replicas, run: Run | None) -> Iterator[Taken]:
    """Have replicas train on their shares of the epoch that is under way, round by round."""
    now, steps_per_epoch = training.standing, training.steps_per_epoch
    for shares in replicas.rounds.rounds(now.epoch, now.n_done):
        signals.check()
        start = training.state()
        tasks = replicas.tasks(training.config, start, (now.epoch, now.n_done, steps_per_epoch), shares)
        try:
            done = (run or replicas.run_here)(tasks)
        except BaseException:  # in the middle of a round, which is taken anew
            training.set_state(start)
            raise
        _meet(training, start, done)
        costs = [each.cost for each in done if each.cost is not None]
        yield len(shares), sum(each.n_rows for each in done), float(np.mean(costs)) if costs else None


def _meet(training: Training, start: State, done: Sequence[Done]) -> None:
    """Go on from what replicas have made of their common start; one that was alone is not averaged."""
    n_rows, following = [each.n_rows for each in done], done[0].state
    if len(done) > 1 and any(n_rows):
        mean = averaged([each.state for each in done], n_rows)
        following, training.outer = outer_step(start, mean, training.outer)
    training.set_state(following)
