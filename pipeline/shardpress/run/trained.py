"""The rows of encoded parts that trained the model, for the report of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from shardpress.encoding.parts import PartFacts
from shardpress.rowfacts import has_lost_trained_rows, n_trained_shards
from shardpress.run.prepare import Prepared
from shardpress.shards.shard import first_rows


def trained_in(
    parts: Sequence[PartFacts], all_parts: Sequence[PartFacts], prepared: Prepared
) -> Iterator[np.ndarray | None]:
    """Yield a mask of the rows of each part that trained the model, or None if they are unknown.

    Parameters
    ----------
    parts : sequence of PartFacts
        Parts that the run has encoded.
    all_parts : sequence of PartFacts
        Parts of the results, including those of a run that is extended.
    prepared : Prepared
        The run.
    """
    if prepared.finished is not None:
        yield from _trained_in_append(parts, all_parts, prepared)
        return
    starts = first_rows(prepared.shards)
    for part in parts:
        if prepared.given_model is not None:
            yield None
        elif prepared.fitted is None:
            yield np.ones(part.n_rows, dtype=bool)
        else:
            first = int(starts[part.shard]) + part.start
            yield prepared.fitted[first : first + part.n_rows]


def _trained_in_append(
    parts: Sequence[PartFacts], all_parts: Sequence[PartFacts], prepared: Prepared
) -> Iterator[np.ndarray | None]:
    """Yield the masks of parts that an append has encoded or copied. Only new files have not trained the model."""
    assert prepared.finished is not None
    inputs = prepared.whole_request.inputs
    is_given = prepared.finished.manifest["config"].get("model") is not None
    is_unknown = is_given or has_lost_trained_rows(inputs, [part.line() for part in all_parts])
    n_trained = n_trained_shards(inputs)
    for part in parts:
        # The extra of --fit-on may have changed in the files of the training.
        if is_unknown or part.shard < n_trained:
            yield None
        else:
            yield np.zeros(part.n_rows, dtype=bool)
