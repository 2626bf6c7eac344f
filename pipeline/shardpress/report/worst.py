"""The rows with the largest reconstruction errors, found among all rows by their stored errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import h5py
import numpy as np

from shardpress.features import reading
from shardpress.labels import Labels, as_labels, rows_with_value
from shardpress.report.measures import N_WORST, Reconstruction
from shardpress.report.sample import PartSource, Sample, SampleSpec, draw_sample, max_stretches
from shardpress.result import ERROR

_ROWS_AT_ONCE = 2**20


class _Largest:
    """The largest of many errors, and the numbers of their rows."""

    def __init__(self, n: int) -> None:
        self._n = n
        self.errors = np.empty(0, np.float32)
        self.rows = np.empty(0, np.int64)
        self.n_rows = 0  # good rows so far

    def add(self, errors: np.ndarray, first_row: int) -> None:
        """Add the errors of consecutive rows. The error of a bad row is NaN."""
        good = np.flatnonzero(~np.isnan(errors))
        self.n_rows += len(good)
        errors = np.concatenate([self.errors, errors[good]])
        rows = np.concatenate([self.rows, first_row + good])
        largest = np.argsort(-errors, kind="stable")[: self._n]
        self.errors = errors[largest]
        self.rows = rows[largest]


def worst_facts(
    parts: Sequence[PartSource],
    spec: SampleSpec,
    categories: Mapping[str, np.ndarray],
    masks: Mapping[str, str],
    labels: str | None,
) -> dict[str, Any]:
    """Return the rows with the largest stored errors, as `shardpress.report.measures.measure` lists those of a sample.

    Parameters
    ----------
    parts : sequence of PartSource
        All parts, in the order of their rows.
    spec : SampleSpec
    categories : mapping of str to ndarray
        Categories of the extras that are stored as codes.
    masks : mapping of str to str
        Names of the extras that mark the rows with a value of another extra, by the name of that extra.
    labels : str, optional
        Extra with the labels.

    Returns
    -------
    dict
        The rows (``worst``), and the number of good rows (``n_of_worst``).
    """
    n = max(2, min(N_WORST, max_stretches(parts)))  # a sample needs two rows
    largest = _largest_errors(parts, n)
    numbers = np.sort(largest.rows).tolist()
    sample = draw_sample(parts, replace(spec, is_clipped=False), [(row, row + 1) for row in numbers])
    if sample is None:
        return {}
    decoded = Reconstruction.of(sample, parts, spec.model, _labels_of(sample, categories, masks, labels))
    order = np.argsort(np.argsort(largest.rows)).tolist()  # positions in the sample
    rows = [decoded.described(i, error) for i, error in zip(order, largest.errors.tolist(), strict=True)]
    return {"worst": rows, "n_of_worst": largest.n_rows}


def _largest_errors(parts: Sequence[PartSource], n: int) -> _Largest:
    largest = _Largest(n)
    first_row = 0
    for path, group in groupby(parts, key=lambda part: part.file):
        with reading(path) as file:
            for part in group:
                _add_errors(largest, file, part, first_row)
                first_row += len(part.block)
    return largest


def _add_errors(largest: _Largest, file: h5py.File, part: PartSource, first_row: int) -> None:
    for start in range(0, len(part.block), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(part.block))
        largest.add(file[ERROR][part.first + start : part.first + stop], first_row + start)


def _labels_of(
    sample: Sample, categories: Mapping[str, np.ndarray], masks: Mapping[str, str], name: str | None
) -> Labels | None:
    if name is None or name not in sample.extras:
        return None
    has_value = rows_with_value(name, sample.extras, masks, sample.lost)
    return as_labels(name, sample.extras[name], categories.get(name), has_value)
