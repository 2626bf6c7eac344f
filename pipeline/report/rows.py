"""Whether features that stand in files are those of their rows: some are read back, and their rows encoded again.

Features are looked up by HDF5, as downstream does; rows are encoded by NumPy in float64, which shares no code
with what has made the features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import DataError, NoInput, NotPermitted
from pipeline.report.encoded import Encoded
from pipeline.report.parts import Part, drawn, features_at
from pipeline.report.rounding import rounding
from pipeline.scan.scaler import bad_entries
from pipeline.shards.rows import read
from pipeline.shards.shard import Block, Shard

__all__ = ["Fault", "RowsChecked", "check_rows"]

_ROWS = 256  # that are looked at, unless somebody asks for more; and at once, if so
_BYTES = 2**27  # of input that is read for them, since whole chunks are: so that it takes a fraction of a second
_LEAST_ROWS = 8  # however large the chunks are
_HUGE = 1e15  # of a scaled value: sums of such may overflow float32, and such rows count as bad ones


@dataclass(frozen=True)
class Fault:
    """What is wrong with a file of the output; or why an input cannot be looked at."""

    file: str
    fault: str


@dataclass(frozen=True)
class RowsChecked:
    """What came of it.

    Attributes
    ----------
    n_rows, n_bad : int
        Rows that were encoded again; bad ones beside them, whose features are NaN as they should.
    largest_difference : float
        Of a feature in a file from the one in float64.
    of_tolerance : float
        The largest difference as a share of what is allowed at its place: above 1 where there are faults.
    faults : tuple of Fault
        Parts that hold something else than the features of their rows.
    unchecked : tuple of Fault
        Inputs that could not be read again.
    """

    n_rows: int = 0
    n_bad: int = 0
    largest_difference: float = 0.0
    of_tolerance: float = 0.0
    faults: tuple[Fault, ...] = ()
    unchecked: tuple[Fault, ...] = ()

    def __str__(self) -> str:
        if not self.n_rows:
            return "no row could be encoded again"
        return (
            f"{self.n_rows} rows encoded again in float64: features differ by {self.largest_difference:.2g} at most, "
            f"{100 * self.of_tolerance:.2g} % of what is allowed"
        )


def check_rows(
    directory: Path,
    parts: Sequence[Part],
    shard_of: Callable[[Part], Shard],
    how: Encoded,
    n_rows: int | None = None,
) -> RowsChecked:
    """Encode some rows of all parts again.

    Parameters
    ----------
    directory : Path
        The output directory.
    shard_of : callable
        What a part was made from; it raises `DataError`, `NoInput` or `NotPermitted` where that cannot be looked at.
    n_rows : int, optional
        How many, drawn by a fixed seed, one from each of as many stretches of all rows; 256 without it, or fewer where
        they lie in large chunks.

    Raises
    ------
    ReadFailed, SystemLimit
        When the storage or the system fails.
    """
    sources, found = _Sources(shard_of), list[RowsChecked]()
    rows = drawn([part["n_rows"] for part in parts], n_rows or _affordable(parts, sources))
    for part, every in zip(parts, rows, strict=True):
        found += [_checked(directory, part, few, sources, how) for few in _in_pieces(every)]
    return RowsChecked(
        n_rows=sum(each.n_rows for each in found),
        n_bad=sum(each.n_bad for each in found),
        largest_difference=max((each.largest_difference for each in found), default=0.0),
        of_tolerance=max((each.of_tolerance for each in found), default=0.0),
        faults=tuple(fault for each in found for fault in each.faults),
        unchecked=tuple(Fault(*each) for each in sources.unread.items()),
    )


# -- the rows of a part --------------------------------------------------------------------------------------------


def _affordable(parts: Sequence[Part], sources: _Sources) -> int:
    """Rows that can be read soon, if all shards are like the first one, and each row lies in a chunk of its own."""
    shard = next((shard for part in parts if (shard := sources.shard(part))), None)
    if shard is None or sum(part["n_rows"] for part in parts) * shard.row_bytes <= _BYTES:
        return _ROWS
    return min(_ROWS, max(_LEAST_ROWS, _BYTES // (shard.chunk_rows * shard.row_bytes)))


def _in_pieces(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS)]


class _Sources:
    """The shards that parts were made from, each looked for once; ``unread``: why files cannot be read, by path."""

    def __init__(self, shard_of: Callable[[Part], Shard]) -> None:
        self._shard_of, self._shards, self.unread = shard_of, dict[int, Shard | None](), dict[str, str]()

    def shard(self, part: Part) -> Shard | None:
        """None where it cannot be looked at any more."""
        if part["shard"] not in self._shards:
            self._shards[part["shard"]] = None
            try:
                self._shards[part["shard"]] = self._shard_of(part)
            except (DataError, NoInput, NotPermitted) as error:
                self.unread[part["path"]] = str(error)
        return self._shards[part["shard"]]


def _read(part: Part, shard: Shard, numbers: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """Rows of a part (n, n_inputs), and of those that cannot be read, by their positions, why."""
    rows, failed = np.zeros((len(numbers), shard.n_inputs), shard.dtype), dict[int, str]()
    places = numbers + part["start"]
    for chunk in np.unique(places // shard.chunk_rows):  # each is undone once
        few = np.flatnonzero(places // shard.chunk_rows == chunk)
        first, last = int(places[few[0]]), int(places[few[-1]])
        try:
            rows[few] = read(Block(shard, first, last + 1))[places[few] - first]
        except DataError as error:
            failed |= dict.fromkeys(few.tolist(), str(error))
    return rows, failed


# -- what they should be -------------------------------------------------------------------------------------------


def _checked(directory: Path, part: Part, numbers: np.ndarray, sources: _Sources, how: Encoded) -> RowsChecked:
    try:
        stored, valid = features_at(directory / part["file"], numbers)
    except DataError as error:
        return RowsChecked(faults=(Fault(part["file"], str(error)),))
    shard = sources.shard(part)
    if shard is None:
        return RowsChecked()
    rows, failed = _read(part, shard, numbers)
    # A row that could not be read when it was encoded either counts as a bad one.
    if lost := [why for i, why in failed.items() if valid[i]]:
        sources.unread[part["path"]] = lost[0]
    is_read = np.delete(np.arange(len(rows)), list(failed))
    wanted = _wanted(shard, rows[is_read], how)
    # Of a shard that cannot be read to its end no row counts, though some of them, and these, can be read.
    wanted.may_be_bad[...] |= part["n_bad"] == part["n_rows"]
    wanted.allowed[...] += part.get("max_error", 0.0)  # what storing them has cost, as the run has measured it
    found = stored[is_read].astype(np.float64), valid[is_read]
    return _compared(part["file"], numbers[is_read], found, wanted)


@dataclass(frozen=True)
class _Wanted:
    """Features (n_rows, n_features) in float64, by how much others may differ, and which rows (n_rows,) have none.

    A row that is so far outside that it may overflow float32 may be a bad one or not.
    """

    features: np.ndarray
    allowed: np.ndarray
    is_bad: np.ndarray
    may_be_bad: np.ndarray


def _wanted(shard: Shard, rows: np.ndarray, how: Encoded) -> _Wanted:
    scaler = how.model.scaler
    is_bad = bad_entries(rows, how.missing, shard.stored_dtype, scaler.fill is not None).any(axis=1)
    cleaned = how.cleaned(Block(shard, 0, 0), rows)
    with np.errstate(over="ignore", invalid="ignore"):  # of bad rows, and of those that are far outside
        allowed, is_near = rounding(how.model, cleaned), np.abs(scaler.transform(cleaned)).max(axis=1) < _HUGE
        may_be_bad = ~(is_near & np.isfinite(allowed).all(axis=1))
        return _Wanted(how.model.encode(cleaned), allowed, is_bad, may_be_bad)


def _compared(file: str, numbers: np.ndarray, found: tuple[np.ndarray, np.ndarray], wanted: _Wanted) -> RowsChecked:
    """Some rows of a part, their features and which of them count, held against what they should be."""
    stored, valid = found
    counts = valid & ~wanted.is_bad & ~wanted.may_be_bad
    differences = np.where(counts[:, None], np.abs(stored - wanted.features), 0)
    shares = np.where(counts[:, None], differences / wanted.allowed, 0)
    is_left_out = ~valid & np.isnan(stored).all(axis=1) & (wanted.is_bad | wanted.may_be_bad)
    is_right = is_left_out | (counts & (shares <= 1).all(axis=1)) | (valid & wanted.may_be_bad & ~wanted.is_bad)
    faults = [
        Fault(file, f"row {numbers[i]}: {_fault(i, stored, valid, wanted, shares)}")
        for i in np.flatnonzero(~is_right)[:1].tolist()
    ]
    return RowsChecked(
        int(counts.sum()),
        int(is_left_out.sum()),
        float(differences.max(initial=0)),
        float(shares.max(initial=0)),
        tuple(faults),
    )


def _fault(i: int, stored: np.ndarray, valid: np.ndarray, wanted: _Wanted, shares: np.ndarray) -> str:
    if wanted.is_bad[i]:
        return "has features, though its input row is a bad one, expected NaN and valid False"
    if not valid[i]:
        return "counts as a bad row, though its input row is a good one"
    j = int(np.argmax(np.where(np.isnan(shares[i]), np.inf, shares[i])))
    expected = f"{wanted.features[i, j]:.7g} within {wanted.allowed[i, j]:.2g}"
    return f"feature {j} is {stored[i, j]:.7g}, expected {expected}, as its input row encodes in float64"
