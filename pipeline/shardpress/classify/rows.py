"""Rows of finished runs, with their classes, features and scaled raw columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shardpress.columns import Columns
from shardpress.errors import DataError, printable, quantity
from shardpress.features import Features
from shardpress.model import Model
from shardpress.rowfacts import rows_with_value
from shardpress.scan.scaler import Cleaning
from shardpress.shards.columns import reordered
from shardpress.shards.rows import read
from shardpress.shards.shard import Block, Shard, with_offset, with_preparation
from shardpress.shards.vet import Selection, vet

__all__ = [
    "LEFT_OUT",
    "Map",
    "Piece",
    "Rows",
    "RowsRead",
    "classes_of",
    "cut_into_pieces",
    "has_label",
    "held_out",
    "labels_of",
]

LEFT_OUT = -1
"""Class of rows that are not used."""
Map = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Function that computes a representation from features and scaled raw rows."""

_HELD_OUT = 0.2
_MAX_ROWS = 65536  # maximum number of rows per piece
_TOLERANCE = 0.01  # differences between the rounding errors of devices are smaller


# -- labels --------------------------------------------------------------------------------------------------------


def labels_of(directory: str, run: Features, name: str) -> np.ndarray:
    """Return the labels in an extra dataset, which are one number or string per row.

    Raises
    ------
    DataError
        If the dataset does not exist, or if its values are not whole numbers or strings.
    """
    if name not in run.extras:
        raise _no_such_extra(directory, run, name)
    labels = run.extras[name].compute()
    if name in run.categories:
        labels = _decode(labels, run.categories[name])
    where = f"features={printable(directory)} dataset={name}"
    if labels.dtype.kind not in "biufOSU":
        raise DataError(f"{where}: dtype {labels.dtype}, expected numbers or text. Name other labels with --labels.")
    if labels.dtype.kind == "f":
        _check_whole_numbers(where, labels)
    return labels


def _no_such_extra(directory: str, run: Features, name: str) -> DataError:
    left_out = run.manifest.get("left_out", {})
    reason = f"not copied: {sorted(left_out)}"
    if name in left_out:
        reason = f"{name} was not copied ({printable(left_out[name])})"
    return DataError(
        f"features={printable(directory)}: has no extra dataset {name!r}, found {sorted(run.extras)}; "
        f"{printable(reason)}. Name the labels with --labels. To copy other datasets, use "
        "shardpress run --include GROUP/NAME."
    )


def _check_whole_numbers(where: str, labels: np.ndarray) -> None:
    """Raise `DataError` unless all numbers are whole or NaN."""
    has_fraction = np.isfinite(labels) & (labels != np.floor(labels))
    wrong = np.flatnonzero(has_fraction | np.isinf(labels))
    if len(wrong):
        raise DataError(
            f"{where}: {labels[wrong[0]]} in row {wrong[0]} is not a whole number "
            f"({quantity(len(wrong), 'such row')}), expected a whole number "
            "or a text for each class. Name other labels with --labels."
        )


def _decode(codes: np.ndarray, categories: np.ndarray) -> np.ndarray:
    """Return the category of each code, because codes differ between runs.

    The result is arbitrary for the code -1, which `has_label` excludes.
    """
    if not len(categories):
        return codes
    if categories.dtype.kind not in "biu":
        categories = categories.astype(object)  # so that each string is stored only once
    return categories[codes]


def has_label(run: Features, name: str) -> np.ndarray:
    """Return a mask of the rows with a label, bool (n_rows,).

    Rows with the code -1 have no label. Neither have rows of shards without the dataset, and rows whose label could not
    be read.
    """
    has_value = rows_with_value(run, name)
    if name in run.categories:
        has_value &= run.extras[name].compute() >= 0
    return has_value


def classes_of(labels: Sequence[np.ndarray]) -> tuple[list[object], np.ndarray]:
    """Return the sorted classes, and the class of each row.

    The class of a row is LEFT_OUT if its label is NaN or an empty string. Labels are compared by value, so neither the
    storage of strings nor the dtype of numbers matters.
    """
    numbers: dict[object, int] = {}  # numbers of distinct labels, in the order of their first occurrence
    rows = []
    for values in labels:
        distinct, inverse = _distinct(values)
        found = [numbers.setdefault(value, len(numbers)) for value in distinct]
        rows.append(np.array(found, dtype=np.int64)[inverse])
    classes = sorted(numbers.keys() - {None}, key=lambda value: (str(type(value)), value))
    ranks = {value: rank for rank, value in enumerate(classes)}
    rank_of_number = np.array([ranks.get(value, LEFT_OUT) for value in numbers], dtype=np.int64)
    return classes, rank_of_number[np.concatenate(rows)]


def _distinct(values: np.ndarray) -> tuple[list[object], np.ndarray]:
    """Return the distinct values as Python objects, and the index of the value of each row. Missing values are None."""
    if values.dtype.kind in "biuf":
        found, inverse = np.unique(values, return_inverse=True)
        return [_whole_number(value) for value in found.tolist()], inverse
    # Use a dict, because every string in an array would take as much memory as the longest one.
    numbers: dict[object, int] = {}
    indices = (numbers.setdefault(value, len(numbers)) for value in values.tolist())
    inverse = np.fromiter(indices, np.int64, len(values))
    return [_text(value).strip() or None for value in numbers], inverse


def _whole_number(value: float) -> int | None:
    if math.isnan(value):
        return None
    return int(value)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value)


def held_out(codes: np.ndarray, seed: int) -> np.ndarray:
    """Return a mask of the test rows, bool (n_rows,).

    A fifth of the rows of each class is held out. This is at least one row, unless the class has only one row.
    """
    order = np.random.default_rng(seed).permutation(np.flatnonzero(codes != LEFT_OUT))
    order = order[np.argsort(codes[order], kind="stable")]
    sizes = np.bincount(codes[order])
    n_test = np.where(sizes > 1, np.maximum(1, np.round(_HELD_OUT * sizes)), 0)
    first_of_class = np.cumsum(sizes) - sizes
    rank_in_class = np.arange(len(order)) - np.repeat(first_of_class, sizes)
    is_test = np.zeros(len(codes), dtype=bool)
    is_test[order[rank_in_class < n_test[codes[order]]]] = True
    return is_test


# -- features and raw columns --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """Rows before and after encoding.

    Attributes
    ----------
    raw : Block
        Input rows.
    encoded : Block
        Features of the rows.
    first : int
        Number of the first row.
    missing : float or None
        Value that marks missing entries, in addition to NaN.
    """

    raw: Block
    encoded: Block
    first: int
    missing: float | None = None

    def cut(self, n_rows: int) -> Iterator[Piece]:
        """Divide the rows into pieces of at most `n_rows` rows."""
        for start in range(0, len(self.raw), n_rows):
            stop = min(start + n_rows, len(self.raw))
            yield Piece(
                raw=_part_of_block(self.raw, start, stop),
                encoded=_part_of_block(self.encoded, start, stop),
                first=self.first + start,
                missing=self.missing,
            )


def _part_of_block(block: Block, start: int, stop: int) -> Block:
    return Block(block.shard, block.start + start, block.start + stop)


class RowsRead(NamedTuple):
    """Rows in memory.

    Attributes
    ----------
    numbers : ndarray of shape (n_rows,), int64
        Numbers of the rows.
    features : ndarray of shape (n_rows, n_features), float32
        Features of the rows.
    raw : ndarray of shape (n_rows, n_inputs), float32
        Scaled input rows.
    """

    numbers: np.ndarray
    features: np.ndarray
    raw: np.ndarray

    def select(self, rows: np.ndarray) -> RowsRead:
        """Return the rows at the given positions, or the rows that a mask selects."""
        return RowsRead(self.numbers[rows], self.features[rows], self.raw[rows])

    def table(self, function: Map) -> np.ndarray:
        """Return a representation of the rows."""
        return function(self.features, self.raw)

    @classmethod
    def concatenate(cls, pieces: Sequence[RowsRead]) -> RowsRead:
        """Return the rows of several pieces."""
        return cls(
            numbers=np.concatenate([piece.numbers for piece in pieces]),
            features=np.concatenate([piece.features for piece in pieces]),
            raw=np.concatenate([piece.raw for piece in pieces]),
        )


@dataclass(frozen=True)
class Rows:
    """Rows of one or two runs, with consecutive numbers.

    Attributes
    ----------
    pieces : tuple of Piece
        All rows, in the order of their numbers.
    model : Model
        Model that has encoded the rows.
    codes : ndarray of shape (n_rows,), int64
        Class of each row, or LEFT_OUT for a row that is not used.
    is_test : ndarray of shape (n_rows,), bool
        Mask of the test rows.
    """

    pieces: tuple[Piece, ...]
    model: Model
    codes: np.ndarray
    is_test: np.ndarray

    @property
    def train(self) -> np.ndarray:
        """Numbers of the training rows."""
        return np.flatnonzero((self.codes != LEFT_OUT) & ~self.is_test)

    @property
    def test(self) -> np.ndarray:
        """Numbers of the test rows."""
        return np.flatnonzero((self.codes != LEFT_OUT) & self.is_test)

    def read(
        self, wanted: np.ndarray, order: Sequence[int] | None = None, advance: Callable[[int], object] = lambda n: None
    ) -> Iterator[RowsRead]:
        """Yield the selected rows of one piece at a time.

        Parameters
        ----------
        wanted : ndarray of shape (n_rows,), bool
            Mask of the rows to read. Pieces without such rows are skipped.
        order : sequence of int, optional
            Indices of the pieces in reading order.
        advance : callable
            Function that is called with the number of rows in a piece, after the caller has processed the piece.

        Raises
        ------
        DataError
            If the features were not made from the raw rows.
        """
        if order is None:
            order = range(len(self.pieces))
        for i in order:
            piece = self.pieces[i]
            chosen = np.flatnonzero(wanted[piece.first : piece.first + len(piece.raw)])
            if len(chosen):
                yield self._read_piece(piece, chosen)
            advance(len(chosen))

    def _read_piece(self, piece: Piece, chosen: np.ndarray) -> RowsRead:
        scaler = self.model.scaler
        shard = with_offset(piece.raw.shard, self.model.offset)
        block = replace(piece.raw, shard=with_preparation(shard, self.model.preparation))
        raw = Cleaning(scaler, piece.missing).cleaned(block, read(block))[chosen]
        features = read(piece.encoded)[chosen]
        _check(self.model, piece, raw[:1], features[:1])
        return RowsRead(piece.first + chosen, features, scaler.scaled(raw))


def cut_into_pieces(
    run: Features, directory: str, columns: Columns, max_bytes: int, first: int = 0
) -> tuple[Piece, ...]:
    """Divide the rows of a run into pieces.

    Parameters
    ----------
    run : Features
        Opened run.
    directory : str
        Output directory of the run.
    columns : Columns
        Columns of the model. If the run has matched columns by name, rows are read in the order of these columns.
    max_bytes : int
        Maximum size of the scaled raw rows of a piece, in bytes.
    first : int
        Number of the first row.
    """
    pieces: list[Piece] = []
    for part in run.manifest["parts"]:
        whole = _piece_of_part(part, run.manifest["config"], Path(directory), columns, first)
        pieces += whole.cut(max(1, min(_MAX_ROWS, max_bytes // (4 * whole.raw.shard.n_inputs))))
        first += part["n_rows"]
    return tuple(pieces)


def _piece_of_part(
    part: Mapping[str, Any], config: Mapping[str, Any], directory: Path, columns: Columns, first: int
) -> Piece:
    expected = columns if config.get("match_columns") == "name" else None
    raw = _shard(part["path"], part["dataset"], config.get("orientation"), expected)
    encoded = _shard(str(directory / part["file"]), "features", None)
    return Piece(
        raw=Block(raw, part["start"], part["start"] + part["n_rows"]),
        encoded=Block(encoded, 0, part["n_rows"]),
        first=first,
        missing=config.get("missing_value"),
    )


@cache
def _shard(path: str, dataset: str, orientation: str | None, columns: Columns | None = None) -> Shard:
    shard = vet(Path(path), Selection(dataset, orientation))
    if columns is None:
        return shard
    return reordered(shard, columns)


def _check(model: Model, piece: Piece, raw: np.ndarray, features: np.ndarray) -> None:
    """Raise `DataError` unless the features were made from these cleaned rows, or from rows clipped to the range."""
    low = model.scaler.minimum.astype(np.float64)
    high = model.scaler.maximum.astype(np.float64)
    clipped = np.clip(raw.astype(np.float64), low, high)
    if not any(np.allclose(model.encode_cleaned(rows), features, atol=_TOLERANCE) for rows in (raw, clipped)):
        raise DataError(
            f"{piece.raw}: the rows differ from the rows that file={printable(piece.encoded.shard.path)} was made "
            "from. Run shardpress run again."
        )
