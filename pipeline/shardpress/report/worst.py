"""The rows with the largest reconstruction errors, found among all rows by their stored errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np

from shardpress.features import reading
from shardpress.labels import LabelChoice
from shardpress.report.measures import N_WORST, Reconstruction
from shardpress.report.sample import PartSource, SampleSpec, draw_sample, max_stretches
from shardpress.result import ERROR

_ROWS_AT_ONCE = 2**20


def worst_facts(parts: Sequence[PartSource], spec: SampleSpec, choice: LabelChoice, name: str | None) -> dict[str, Any]:
    """Return the rows with the largest stored errors, as `shardpress.report.measures.measure` lists those of a sample.

    The rows are in ``worst``, and the number of good rows in ``n_of_worst``. `name` is the extra with the labels.
    """
    n = max(2, min(N_WORST, max_stretches(parts)))  # a sample needs two rows
    errors = np.empty(0, np.float32)
    numbers = np.empty(0, np.int64)
    n_good = 0
    for first_row, stored in _stored_errors(parts):
        good = np.flatnonzero(~np.isnan(stored))
        n_good += len(good)
        errors = np.concatenate([errors, stored[good]])
        numbers = np.concatenate([numbers, first_row + good])
        largest = np.argsort(-errors, kind="stable")[:n]
        errors = errors[largest]
        numbers = numbers[largest]
    stretches = list(np.sort(numbers)[:, None])
    sample = draw_sample(parts, replace(spec, is_clipped=False), stretches)
    if sample is None:
        return {}
    labels = choice.as_labels(name, sample.extras, sample.lost) if name in sample.extras else None
    decoded = Reconstruction.of(sample, parts, spec.model, labels)
    order = np.argsort(np.argsort(numbers)).tolist()  # positions in the sample
    rows = [decoded.described(i, error) for i, error in zip(order, errors.tolist(), strict=True)]
    return {"worst": rows, "n_of_worst": n_good}


def _stored_errors(parts: Sequence[PartSource]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of the first of some rows, and the errors of these rows, which are NaN for bad rows."""
    end = 0
    for path, group in groupby(parts, key=lambda part: part.file):
        with reading(path) as file:
            for part in group:
                first_row = end
                end += len(part.block)
                for start in range(first_row, end, _ROWS_AT_ONCE):
                    shift = part.first - first_row
                    yield start, file[ERROR][start + shift : min(start + _ROWS_AT_ONCE, end) + shift]
