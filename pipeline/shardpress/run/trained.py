"""The rows of encoded parts that trained the model, for the report of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from shardpress.records import Part
from shardpress.rowfacts import has_lost_trained_rows, n_trained_shards
from shardpress.run.prepare import Prepared
from shardpress.shards.shard import first_rows


def trained_in(parts: Sequence[Part], all_parts: Sequence[Part], prepared: Prepared) -> Iterator[np.ndarray | None]:
    """Yield a mask of the rows of each encoded part that trained the model, or None if they are unknown.

    `all_parts` includes those of a run that is extended. Of an append, only new files have not trained the model.
    """
    starts = first_rows(prepared.shards)
    request = prepared.whole_request
    is_unknown = prepared.given_model is not None
    if prepared.finished is not None:
        is_given = prepared.finished.result.facts.config.get("model") is not None
        is_unknown = is_given or has_lost_trained_rows(request, all_parts)
    for part in parts:
        # The extra of --fit-on may have changed in the files of the training.
        if is_unknown or (prepared.finished is not None and part.shard < n_trained_shards(request)):
            yield None
        elif prepared.finished is not None:
            yield np.zeros(part.n_rows, dtype=bool)
        elif prepared.fitted is None:
            yield np.ones(part.n_rows, dtype=bool)
        else:
            first = int(starts[part.shard]) + part.start
            yield prepared.fitted[first : first + part.n_rows]
