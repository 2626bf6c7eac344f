"""The use of each row: the training, its validation, or nothing, because it was left out or arrived later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from shardpress.hdf5.shard import first_rows
from shardpress.result.finished import Result, Use
from shardpress.result.records import ShardFacts
from shardpress.run.difference import Base
from shardpress.run.task import Fit, Task
from shardpress.scan.ranges import Scan, readable
from shardpress.training.fit import validation_rows


def use_of_rows(fit: Fit, shards: Sequence[ShardFacts]) -> np.ndarray:
    """Return the `Use` of each row, uint8 (n_rows,), in the order of the rows. The digests of the shards are known."""
    task = fit.task
    if task.kept is not None and task.base is not None:
        return _with_later_rows(task, task.base, shards, task.kept)
    use = np.full(task.inputs.n_rows, Use.TRAINING, np.uint8)
    if task.source == "trained" and fit.scan is not None:
        use[_validation_numbers(task, fit.scan)] = Use.VALIDATION
        use[task.not_fitted()] = Use.LEFT_OUT
    return use


def _validation_numbers(task: Task, scan: Scan) -> np.ndarray:
    """Return the sorted numbers of the validation rows, numbered over all shards."""
    config = task.settings
    usable, usable_scan = readable(task.inputs.shards, task.as_trained(scan))
    numbers = validation_rows(
        usable_scan,
        config.validation.validation_fraction,
        task.budget.max_validation_rows,
        config.training.seed,
    )
    starts = first_rows(usable)
    first_numbers = first_rows(task.inputs.shards)[:-1]
    shifts = np.array([first for i, first in enumerate(first_numbers) if i not in scan.unreadable])
    shard_of = np.searchsorted(starts, numbers, side="right") - 1
    return numbers - starts[shard_of] + shifts[shard_of]


def _with_later_rows(task: Task, base: Base, shards: Sequence[ShardFacts], result: Result) -> np.ndarray:
    """Return the use of rows of which some arrived after the training.

    If rows of the training are unknown, or are no longer in the files as they were, all rows that arrived later can be
    the same ones in other files.
    """
    before = result.use()
    earlier = base.request.shards
    starts = np.cumsum([0, *(shard.shape[0] for shard in earlier)])
    trained = Counter(result.facts.model.trained)
    pieces = []
    for place, shard in zip(task.change.places, shards, strict=True):
        # The rows of a changed file can be the same, with other extras.
        if place.base is not None and (place.is_same or shard.has_rows_of(earlier[place.base])):
            pieces.append(before[starts[place.base] : starts[place.base + 1]])
        else:
            pieces.append(np.full(shard.shape[0], Use.TRAINING if shard.rows in trained else Use.LATER, np.uint8))
    use = np.concatenate(pieces)
    if not trained or trained - Counter(shard.rows for shard in shards if shard.rows is not None):
        use[use == Use.LATER] = Use.TRAINING
    return use
