"""The rows of a finished run for an export, read in order and a few megabytes at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path

import h5py
import numpy as np

from shardpress.base import signals
from shardpress.base.errors import DataError, ReadFailed, printable
from shardpress.base.progress import Progress
from shardpress.result.alignment import LinearMap
from shardpress.result.asof import find_map
from shardpress.result.features import FAILURES, Shape, categories_in, check_part, common_dtypes, read_values, reading
from shardpress.result.finished import APPEND_ID, FEATURES, VALID, Result
from shardpress.result.records import Stretch, stretches_of

_BLOCK_BYTES = 2**22
_TEXT_ROWS = 2**12  # rows to read at once if there are strings, because these can be long
_NUMBER_BYTES = 8  # of the longest numbers in tables
_TEXT_BYTES = 8  # bytes of a string that are counted in advance

Block = dict[str, np.ndarray]
"""Values of consecutive rows, by the names of their datasets."""


@dataclass(frozen=True)
class Rows:
    """All rows of a finished run."""

    result: Result
    # Shape and dtype of the datasets that all parts have: features, valid, and extras. The extra `APPEND_ID` is always
    # among them, so that an append does not change the datasets. All strings have the dtype object.
    shapes: Mapping[str, Shape]
    categories: Mapping[str, np.ndarray]  # of the extras that are stored as codes
    to_other: LinearMap | None  # map to the features of another encoder, which is applied to all features

    @cached_property
    def stretches(self) -> list[Stretch]:
        """All rows, in their order."""
        return stretches_of(self.result.ranges)

    @property
    def n_rows(self) -> int:
        return self.shapes[FEATURES][0][0]

    @property
    def n_features(self) -> int:
        """Number of features, after the map."""
        return self.shapes[FEATURES][0][1]

    @property
    def extras(self) -> dict[str, Shape]:
        return {name: shape for name, shape in self.shapes.items() if name not in (FEATURES, VALID)}

    def without(self, extras: Collection[str]) -> Rows:
        return replace(self, shapes={name: shape for name, shape in self.shapes.items() if name not in extras})

    @property
    def encoder(self) -> str:
        """Fingerprint of the encoder of the features, after the map."""
        return self.result.encoder if self.to_other is None else self.to_other.encoder_to

    def blocks(self, stretches: Sequence[Stretch], progress: Progress) -> Iterator[Block]:
        """Yield some rows in order."""
        step = self._rows_at_once()
        for stretch in stretches:
            for block in self._blocks_of(stretch, step):
                signals.check()
                yield block
                progress.advance(len(block[VALID]))

    def _rows_at_once(self) -> int:
        row_bytes = 0
        has_text = False
        for dims, dtype in self.shapes.values():
            is_text = dtype.hasobject
            has_text = has_text or is_text
            row_bytes += prod(dims[1:]) * (_TEXT_BYTES if is_text else dtype.itemsize)
        n_rows = max(1, _BLOCK_BYTES // row_bytes)
        return min(n_rows, _TEXT_ROWS) if has_text else n_rows

    def _blocks_of(self, stretch: Stretch, step: int) -> Iterator[Block]:
        path = self.result.directory / stretch.part.file
        append_ids = np.repeat(
            np.array([self.result.by_id[row_range.shard].append_id for row_range in stretch.ranges], np.int32),
            [row_range.n_rows for row_range in stretch.ranges],
        )
        try:
            with reading(path) as file:
                for start in range(0, stretch.n_rows, step):
                    stop = min(start + step, stretch.n_rows)
                    block = self._read(file, stretch.first + start, stretch.first + stop)
                    yield {**block, APPEND_ID: append_ids[start:stop]}
        except FAILURES as error:
            raise ReadFailed(
                f"file={printable(path)}: cannot be read: {error}. Check the results with shardpress verify, and "
                "run the command that made them again to recompute damaged files."
            ) from error

    def _read(self, file: h5py.File, start: int, stop: int) -> Block:
        block = {name: read_values(file[name], start, stop) for name in self.shapes if name in file}
        if self.to_other is not None:
            block[FEATURES] = self.to_other.apply(block[FEATURES])
        return block


def has_plain_values(dtype: np.dtype) -> bool:
    """Return whether the values are strings, booleans or numbers of up to 64 bits, which tables can hold."""
    return dtype.kind in "biufO" and dtype.itemsize <= _NUMBER_BYTES


def open_rows(path: str | Path, as_of: int | str | Path | None) -> Rows:
    """Return the rows of an output directory, mapped to the features of another encoder if `as_of` is given."""
    result = Result.open(path)
    shapes = _shapes_of(result)
    to_other = None
    if as_of is not None:
        to_other = find_map(path, as_of, result.encoder, result)
    if to_other is not None:
        n_from, n_to = to_other.W.shape
        (n_rows, n_features), _ = shapes[FEATURES]
        if n_features != n_from:
            raise DataError(f"features={printable(path)}: has {n_features} features, but the map expects {n_from}")
        shapes[FEATURES] = ((n_rows, n_to), np.dtype(np.float32))
    return Rows(result, shapes, categories_in(result), to_other)


def _shapes_of(result: Result) -> dict[str, Shape]:
    shapes = [check_part(result.directory, part) for part in result.parts]
    n_rows = result.n_rows
    joined: dict[str, Shape] = {}
    for name, dtype in common_dtypes(shapes).items():
        dims, _ = shapes[0][name]
        joined[name] = ((n_rows, *dims[1:]), dtype)
    joined[APPEND_ID] = ((n_rows,), np.dtype(np.int32))
    return joined
