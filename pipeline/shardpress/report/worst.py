"""The rows that are unlike the others, found among all rows by their stored errors and features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import numpy as np

from shardpress.base.outliers import MOST_OWNERS, Spread, owners, worst_first
from shardpress.model.labels import LabelChoice
from shardpress.report.measures import N_WORST, Reconstruction, owner_at
from shardpress.report.sampling import PartSource, SampleSpec, draw_sample, max_stretches
from shardpress.result.facts import Location, Owner, WorstRow
from shardpress.result.features import reading
from shardpress.result.finished import ERROR, FEATURES

_VALUES_AT_ONCE = 2**21  # features; a few arrays of this size are in float64
_SMALL = 0.01  # shares of the variance of a feature that matter little for its owners


class _WorstRows(NamedTuple):
    rows: list[WorstRow]
    owners: list[Owner]
    n_rows: int  # good rows among which they were found


def find_worst(
    parts: Sequence[PartSource], spec: SampleSpec, choice: LabelChoice, name: str | None
) -> _WorstRows | None:
    """Return the worst of all rows, or None if too few of them can be read. `name` is the extra with the labels.

    The features are read twice: first for their variances, then for the share of each row.
    """
    n = max(2, min(N_WORST, max_stretches(parts)))  # a sample needs two rows
    spread = Spread.of(features for _, _, features in _good_rows(parts))
    worst = np.empty((0, 3))  # number of the row, error and leverage
    owning = np.empty(0, np.int64)
    shares = np.empty((0, spec.model.n_features))
    for numbers, errors, features in _good_rows(parts):
        some_shares = spread.shares(features)
        leverage = some_shares.max(axis=1)
        worst = np.concatenate([worst, np.column_stack([numbers, errors, leverage])])
        worst = worst[worst_first(worst[:, 1], worst[:, 2], spread.n_rows)[:n]]
        is_large = leverage > _SMALL
        owning = np.concatenate([owning, numbers[is_large]])
        shares = np.concatenate([shares, some_shares[is_large]])
        largest = np.unique(np.argsort(-shares, axis=0, kind="stable")[:MOST_OWNERS])
        owning = owning[largest]
        shares = shares[largest]
    numbers = worst[:, 0].astype(np.int64)
    stretches = list(np.sort(numbers)[:, None])
    sample = draw_sample(parts, replace(spec, is_clipped=False), stretches)
    if sample is None:
        return None
    labels = choice.as_labels(name, sample.extras, sample.lost) if name in sample.extras else None
    decoded = Reconstruction.of(sample, parts, spec.model, labels)
    order = np.argsort(np.argsort(numbers)).tolist()  # positions in the sample
    rows = [decoded.worst_row(i, *row[1:]) for i, row in zip(order, worst.tolist(), strict=True)]
    positions = owners(shares, spread.n_rows).tolist()
    owner_rows = [owner_at(_location(parts, int(owning[i])), shares[i]) for i in positions]
    return _WorstRows(rows, owner_rows, spread.n_rows)


def _location(parts: Sequence[PartSource], number: int) -> Location:
    """Return the location of a row, given its number in all parts."""
    for part in parts:
        if number < len(part.block):
            break
        number -= len(part.block)
    shard = part.block.shard
    row = shard.first_row + part.block.start + number
    return Location(shard.path, shard.dataset, row, None)


def _good_rows(parts: Sequence[PartSource]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the numbers of some rows, their errors (n,), float32, and their features (n, n_features)."""
    end = 0
    for path, group in groupby(parts, key=lambda part: part.file):
        with reading(path) as file:
            n_at_once = max(1, _VALUES_AT_ONCE // file[FEATURES].shape[1])
            for part in group:
                first_row = end
                end += len(part.block)
                shift = part.first - first_row
                for start in range(first_row, end, n_at_once):
                    stop = min(start + n_at_once, end)
                    errors = file[ERROR][start + shift : stop + shift]
                    good = np.flatnonzero(~np.isnan(errors))
                    features = file[FEATURES][start + shift : stop + shift][good]
                    yield start + good, errors[good], features
