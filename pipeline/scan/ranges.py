"""One Dask pass over every block: the range of each column, and the rows that hold NaN or Inf."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from pipeline.cluster.executor import reduce
from pipeline.columns import Columns
from pipeline.errors import DataError, counted, shown, some
from pipeline.formats import pack, unpack
from pipeline.scan.blocks import Found, Piece, Pieces, ScanSettings, look_at, merged, unread
from pipeline.scan.sample import FEW, INNER, MANY, between, means, spread, stride_of
from pipeline.scan.scaler import Scaler, bad_entries
from pipeline.shards.rows import read
from pipeline.shards.shard import Block, Shard, block_of, blocks, first_rows, row_dtype

__all__ = [
    "Scan",
    "check_usable",
    "describe_bad_rows",
    "looking",
    "misses_values",
    "offset_for",
    "readable",
    "scan",
    "scan_bytes",
    "scan_of",
]

log = logging.getLogger(__name__)

_NARROW = 0.01  # a spread below which a column counts for next to nothing beside others
_MAX_TASKS = 4096  # a graph's cost grows with its tasks, so a task takes as many blocks as keeps it below this
_BLOCKS = 8  # of a task, since a scheduler takes as long for whatever it passes on as a block takes to be looked at
_FEW = 16  # tasks, than which no more blocks go together
_USUAL = 128  # blocks, a gigabyte, which take as long as other tasks do as a rule: half a second
_COLUMNS = 10  # that a sentence names
_EXACT = 2.0**53  # float64 holds all whole numbers up to this one
_WIDEST = 2.0**62  # differences below it fit into 64 bits, wherever they begin
_ARRAYS = ("minimum", "maximum", "bad_rows", "spread", "inner", "fill", "n_missing", "offset")


@dataclass(frozen=True)
class Scan:
    """What one pass over the rows tells.

    Attributes
    ----------
    n_rows : int
        All rows, bad ones included.
    minimum, maximum : ndarray of shape (n_inputs,), float64
        Over the good rows; where a quantile clips them, the range between the quantiles.
    bad_rows : ndarray of int64
        Numbers, counted over all shards, of the rows that hold NaN, Inf or the missing value, or where that is filled
        in Inf or no value at all; sorted. All rows of a shard that cannot be read are among them.
    spread : ndarray of shape (n_inputs,), float64
        Standard deviation of each scaled column, but for outliers; NaN in earlier versions' files.
    inner : ndarray of shape (2, n_inputs), float64
        Between which values the inner 80 % of each column lie; NaN in earlier versions' files.
    unreadable : dict of int to str
        Why, for each shard that cannot be read, by its place in the input.
    fill, n_missing : ndarray of shape (n_inputs,), float64 and int64, or None
        What stands for the missing values of each column, and how many the good rows miss; None where that makes a
        row a bad one.
    clips : bool
        Whether values outside the range are moved to its edge.
    offset : ndarray of shape (n_inputs,), float64, or None
        Whole numbers that were subtracted from the rows: all other arrays are about the differences.
    """

    n_rows: int
    minimum: np.ndarray
    maximum: np.ndarray
    bad_rows: np.ndarray
    spread: np.ndarray
    inner: np.ndarray
    unreadable: Mapping[int, str] = field(default_factory=dict)
    fill: np.ndarray | None = None
    n_missing: np.ndarray | None = None
    clips: bool = False
    offset: np.ndarray | None = None

    @property
    def n_good(self) -> int:
        """Rows that can be used."""
        return self.n_rows - len(self.bad_rows)

    @property
    def constant(self) -> np.ndarray:
        """Which columns hold one value only: bool, shape (n_inputs,)."""
        return self.minimum == self.maximum

    @property
    def scaler(self) -> Scaler:
        """What scales the rows."""
        return Scaler(self.minimum, self.maximum, self.fill, self.clips)

    @property
    def narrow(self) -> np.ndarray:
        """Columns whose range is so wide beside what they vary by that they count for little: the worst first."""
        # One that is nearly always the same, such as a count that is rarely above 0, has no outliers.
        is_narrow = (self.inner[0] < self.inner[1]) & (self.spread < _NARROW)
        return np.argsort(np.where(is_narrow, self.spread, np.inf), kind="stable")[: int(is_narrow.sum())]

    def summary(self) -> dict[str, Any]:
        """Plain values for reports."""
        told: dict[str, Any] = {"narrow_columns": {int(column): float(self.spread[column]) for column in self.narrow}}
        if self.n_missing is not None:
            told["filled"] = {int(column): int(self.n_missing[column]) for column in np.flatnonzero(self.n_missing)}
        return told

    def to_npz(self) -> bytes:
        """The bytes of its file."""
        arrays = {name: getattr(self, name) for name in _ARRAYS if getattr(self, name) is not None}
        return pack(arrays, {"n_rows": self.n_rows, "unreadable": [*self.unreadable.items()], "clips": self.clips})

    @classmethod
    def from_npz(cls, data: bytes) -> Scan:
        """What `to_npz` wrote.

        Raises
        ------
        ValueError
            When it is anything else.
        """
        arrays, about = unpack(data)
        try:
            unknown = np.full((2, len(arrays["minimum"])), np.nan)
            arrays = {"spread": unknown[0], "inner": unknown, **arrays}
            unreadable = dict(about["unreadable"])
            found = cls(about["n_rows"], **arrays, unreadable=unreadable, clips=bool(about.get("clips", False)))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"is no scan: {error!r}") from error
        wrong = [name for name, is_possible in _possible(found).items() if not is_possible]
        if wrong:
            raise ValueError(f"is no scan: {', '.join(wrong)} cannot be what rows tell")
        return found

    def check_fits(self, shards: Sequence[Shard]) -> Scan:
        """Return itself, or raise `ValueError` if it cannot be the scan of these shards."""
        n_rows = sum(shard.n_rows for shard in shards)
        n_inputs = shards[0].n_inputs
        if (self.n_rows, len(self.minimum)) != (n_rows, n_inputs):
            found = f"{self.n_rows} rows of {len(self.minimum)} columns"
            raise ValueError(f"is a scan of {found}, expected {n_rows} rows of {n_inputs} columns")
        if any(number >= len(shards) for number in self.unreadable):
            raise ValueError(f"names a shard that is not among the {len(shards)} of the input")
        return self


def scan_bytes(shards: Sequence[Shard]) -> int:
    """Return the number of bytes that the arrays of a scan take at most."""
    numbers = (len(_ARRAYS) + 1) * shards[0].n_inputs + sum(shard.n_rows for shard in shards)
    return numbers * np.dtype(np.float64).itemsize


def _possible(found: Scan) -> dict[str, bool]:
    """Return for each field whether its value is possible, whatever the rows are."""
    shape = found.minimum.shape
    has_rows = type(found.n_rows) is int and found.n_rows >= 0
    has_bad_rows = has_rows and _are_numbers(found.bad_rows, found.n_rows)
    arrays = (found.minimum, found.maximum, found.spread)
    have_one_shape = len(shape) == 1 and all(_is_array(array, np.float64, shape) for array in arrays)
    # Without good rows there is no range.
    has_no_range = has_bad_rows and found.n_good == 0
    return {
        "n_rows": has_rows,
        "minimum, maximum or spread": have_one_shape,
        "range": has_no_range or (have_one_shape and _is_range(found.minimum, found.maximum)),
        "bad_rows": has_bad_rows,
        "inner": _is_array(found.inner, np.float64, (2, *shape)),
        "fill": found.fill is None or _is_fill(found.fill, shape),
        "n_missing": found.n_missing is None or _are_counts(found.n_missing, shape),
        "unreadable": all(type(i) is int and i >= 0 and isinstance(why, str) for i, why in found.unreadable.items()),
    }


def _are_numbers(rows: np.ndarray, n_rows: int) -> bool:
    """Return whether these are sorted numbers of some of `n_rows` rows."""
    if rows.dtype != np.int64 or rows.ndim != 1:
        return False
    return bool((np.diff(rows, prepend=-1, append=n_rows) > 0).all())


def _is_fill(fill: np.ndarray, shape: tuple[int, ...]) -> bool:
    return _is_array(fill, np.float64, shape) and bool(np.isfinite(fill).all())


def _are_counts(counts: np.ndarray, shape: tuple[int, ...]) -> bool:
    return _is_array(counts, np.int64, shape) and bool((counts >= 0).all())


def _is_range(minimum: np.ndarray, maximum: np.ndarray) -> bool:
    return bool(np.isfinite(minimum).all() and np.isfinite(maximum).all() and (minimum <= maximum).all())


def _is_array(array: np.ndarray, dtype: type, shape: tuple[int, ...]) -> bool:
    return array.dtype == dtype and array.shape == shape


def scan(
    shards: Sequence[Shard],
    settings: ScanSettings,
    executor: Executor,
    n_at_once: int,
    advance: Callable[[int], object] = lambda n_rows: None,
) -> Scan:
    """Read every row once; where shards turn out to be unreadable, all others again.

    What can be read of a bad shard depends on the size of the blocks, and the result must not.

    Parameters
    ----------
    n_at_once : int
        Tasks under way at a time.
    advance : callable
        Told the number of rows of each task that is done, and a negative one before rows are read again.

    Raises
    ------
    DataError
        When more shards than the settings allow cannot be read.
    """
    look = looking(shards, settings)
    known = unread(shards, {})
    while True:  # twice at most, but for files that go bad meanwhile
        found = known
        tasks = [(look, pieces) for pieces in _shared_out(shards, settings.block_rows, known.unreadable)]
        if tasks:  # there are none where no shard can be read
            n_small = _USUAL // len(tasks[0][1])
            found = reduce(tasks, merged, executor, n_at_once, lambda done: advance(done.n_rows), n_small)
            found = merged([known, found])
        if len(found.unreadable) == len(known.unreadable):
            return scan_of(found, settings, row_dtype(shards))
        # Checked before rows are read again, which may take hours.
        _check_unreadable(found, known, len(shards), settings.max_unreadable or 0)
        known = unread(shards, found.unreadable)
        advance(known.n_rows - found.n_rows)  # rows that are read again count once


def _check_unreadable(found: Found, known: Found, n_shards: int, limit: int) -> None:
    if len(found.unreadable) > limit:
        first = next(why for i, why in found.unreadable.items() if i not in known.unreadable)
        raise DataError(
            f"{len(found.unreadable)} of {n_shards} shards cannot be read, expected {limit} at most: {first} Mend the "
            "files, or raise --max-bad-shards."
        )


def offset_for(shards: Sequence[Shard], found: Scan) -> np.ndarray | None:
    """Return what to subtract from each column of large integers, or None where float64 holds all of them exactly.

    Differences of integers above 2**53 get lost in float64. The offset is the minimum as a scan has found it, rounded
    to float64: it is a whole number near the true minimum, so the differences are small and exact.

    Returns
    -------
    ndarray of shape (n_inputs,), float64, or None
        0 for columns that need no offset.
    """
    if not found.n_good or row_dtype(shards).name not in ("int64", "uint64"):
        return None
    largest = np.maximum(np.abs(found.minimum), np.abs(found.maximum))
    needs_offset = (largest > _EXACT) & (found.maximum - found.minimum < _WIDEST)
    if not needs_offset.any():
        return None
    offset = np.where(needs_offset, found.minimum, 0.0)
    largest_integer = np.iinfo(row_dtype(shards)).max
    rounded_up = np.array([int(each) > largest_integer for each in offset])
    return np.where(rounded_up, np.nextafter(offset, 0), offset)


def looking(shards: Sequence[Shard], settings: ScanSettings) -> Callable[[Sequence[Piece]], Found]:
    """What a task of their scan does with its pieces."""
    n_values = MANY if settings.clip_quantile or settings.fills else FEW
    return partial(look_at, settings, stride_of(sum(shard.n_rows for shard in shards), shards[0].n_inputs, n_values))


def check_usable(shards: Sequence[Shard], found: Scan, missing: float | None = None) -> None:
    """Check that rows can be scaled by the result of a scan, and log columns without values or with one value.

    Raises
    ------
    DataError
        If no two good rows differ, or the range of a column overflows.
    """
    first = shards[0]
    if not found.n_good:
        how = ""
        if misses_values(shards, found, missing):
            how = " Fill in what is missing with --impute median."
        raise DataError(
            f"no usable rows: all {found.n_rows} rows hold {_words(found, missing)}, or cannot be read, from "
            f"file={shown(first.path)} on.{how}"
        )
    if found.n_good == 1:
        raise DataError(
            f"{first}: 1 usable row of {found.n_rows}, expected two or more: nothing can be learnt from one. Give more "
            "rows, or encode with a fitted model (--model)."
        )
    if found.constant.all():
        raise DataError(
            f"{first}: all {found.n_good} usable rows are the same, expected columns that vary: there is nothing to "
            "learn. Name another dataset with --dataset, or give other rows."
        )
    with np.errstate(over="ignore"):  # the result is Inf
        endless = np.flatnonzero(np.isinf(found.maximum - found.minimum))
    if len(endless):
        raise DataError(
            f"file={shown(first.path)} and what follows it: the range of columns "
            f"{some(first.columns.listed(endless), _COLUMNS)} is beyond float64, expected numbers that can be scaled. "
            "Scale them down."
        )
    _log_useless_columns(first.columns, found)


def _log_useless_columns(columns: Columns, found: Scan) -> None:
    constant = np.flatnonzero(found.constant)
    if len(constant):
        listed = some(columns.listed(constant), _COLUMNS)
        log.info("scan: %s set to 0: %s", counted(len(constant), "constant column"), listed)
    if found.n_missing is None:
        return
    empty = np.flatnonzero(found.n_missing == found.n_good)
    if len(empty):
        listed = some(columns.listed(empty), _COLUMNS)
        log.warning("%s without any value, set to 0: %s", counted(len(empty), "column"), listed)


def readable(shards: Sequence[Shard], found: Scan) -> tuple[tuple[Shard, ...], Scan]:
    """The shards that can be read, and what a scan of them alone would have told."""
    if not found.unreadable:
        return tuple(shards), found
    firsts = first_rows(shards)
    is_bad = np.isin(np.arange(len(shards)), list(found.unreadable))
    shard_of = np.searchsorted(firsts, found.bad_rows, side="right") - 1
    shift = np.cumsum(np.where(is_bad, np.diff(firsts), 0))[shard_of]  # rows of bad shards before each
    kept = ~is_bad[shard_of]
    left = tuple(shard for shard, bad in zip(shards, is_bad, strict=True) if not bad)
    n_rows = sum(shard.n_rows for shard in left)
    return left, replace(found, n_rows=n_rows, bad_rows=(found.bad_rows - shift)[kept], unreadable={})


def describe_bad_rows(shards: Sequence[Shard], found: Scan, missing: float | None = None) -> str:
    """Where the first bad row lies, its first bad column, and how many bad rows there are."""
    counts = f"{len(found.bad_rows)} of {found.n_rows} rows in all hold {_words(found, missing)}"
    if found.unreadable:
        return f"{next(iter(found.unreadable.values()))} {counts}, or lie in one of {len(found.unreadable)} such shards"
    block, row = _first_bad_row(shards, found)
    entries = bad_entries(row, missing, block.shard.stored_dtype, found.fill is not None)
    column = int(np.flatnonzero(entries[0])[0])
    where = f"row {block.start}, column {block.shard.columns.numbered(column)}"
    return f"{block.shard}: {row[0, column]} in {where}; {counts}"


def misses_values(shards: Sequence[Shard], found: Scan, missing: float | None = None) -> bool:
    """Whether the first bad row would be a good one if what it misses were filled in."""
    if found.unreadable or found.fill is not None or not len(found.bad_rows):
        return False
    block, row = _first_bad_row(shards, found)
    return not bad_entries(row, missing, block.shard.stored_dtype, fills=True).any()


def _first_bad_row(shards: Sequence[Shard], found: Scan) -> tuple[Block, np.ndarray]:
    number = int(found.bad_rows[0])
    block = block_of(shards, first_rows(shards), number, number + 1)
    return block, read(block)  # once more, since a scan keeps numbers only


def _shared_out(shards: Sequence[Shard], block_rows: int, unreadable: Mapping[int, str]) -> Iterator[Pieces]:
    """For each task its pieces of all shards but the unreadable ones, in their order."""
    pieces = [
        (i, first_row, block)
        for i, (shard, first_row) in enumerate(zip(shards, first_rows(shards)[:-1].tolist(), strict=True))
        if i not in unreadable
        for block in blocks([shard], block_rows)
    ]
    # Neighbours share a task: a file is read from front to back.
    stride = max(1, min(_BLOCKS, len(pieces) // _FEW), -(-len(pieces) // _MAX_TASKS))
    return (Pieces(pieces[i : i + stride]) for i in range(0, len(pieces), stride))


def scan_of(found: Found, settings: ScanSettings, dtype: np.dtype) -> Scan:
    """What blocks tell, once the sample is summed up."""
    minimum = found.minimum
    maximum = found.maximum
    if settings.fills:  # a column without any value is filled with zeros
        is_empty = minimum > maximum
        minimum = np.where(is_empty, 0, minimum)
        maximum = np.where(is_empty, 0, maximum)
    if settings.clip_quantile:
        low, high = between(found.sample, settings.clip_quantile)
        is_range = low < high  # otherwise nearly all values are equal, and only the rare ones differ
        minimum = np.where(is_range, low, minimum)
        maximum = np.where(is_range, high, maximum)
    scaler = Scaler(minimum, maximum)
    scan = Scan(
        n_rows=found.n_rows,
        minimum=minimum,
        maximum=maximum,
        bad_rows=found.bad_rows,
        spread=spread(found.sample, scaler),
        inner=between(found.sample, INNER),
        unreadable=found.unreadable,
        clips=settings.clip_quantile > 0,
    )
    if settings.impute is None:
        return scan
    return replace(scan, fill=_fill(found.sample, settings.impute, scaler, dtype), n_missing=found.n_missing)


def _fill(sample: np.ndarray, impute: str, scaler: Scaler, dtype: np.dtype) -> np.ndarray:
    """What stands for the missing values of each column, as rows of `dtype` hold it."""
    low = scaler.minimum
    high = scaler.maximum
    found = means(sample, scaler) if impute == "mean" else _medians(sample)
    # The middle for a column with so few values that the sample has none.
    values = np.clip(np.where(np.isnan(found), low / 2 + high / 2, found), low, high)
    if dtype.kind != "f":
        return np.rint(values)
    return values.astype(dtype).astype(np.float64)


def _medians(sample: np.ndarray) -> np.ndarray:
    # Halved before the sum, which could overflow.
    return (between(sample, 0.5) / 2).sum(axis=0)


def _words(found: Scan, missing: float | None) -> str:
    """What bad rows hold."""
    if found.fill is not None:
        return "Inf, or no value at all"
    return "NaN or Inf" if missing is None else f"NaN, Inf or {missing}"
