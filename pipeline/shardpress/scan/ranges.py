"""Scan of all rows in one Dask pass, which finds the range of each column and the bad rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from shardpress.base.errors import DataError, Problem, printable, quantity, short_list
from shardpress.base.formats import pack, sum_of_digests, unpack
from shardpress.cluster.executor import reduce
from shardpress.hdf5.columns import Columns
from shardpress.hdf5.shard import ArrayShard, Block, Shard, block_of, first_rows
from shardpress.model.scaler import Scaler, bad_entries
from shardpress.result.facts import ScanFacts
from shardpress.scan.blocks import (
    BlockStats,
    ScanSettings,
    ScanTask,
    merge_stats,
    pieces_of,
    scan_pieces,
    stats_of_unreadable,
)
from shardpress.scan.column_sample import INNER, SAMPLED_VALUES, means, moments, quantiles, stride_of
from shardpress.scan.hints import hints_of
from shardpress.scan.scaling import chosen_scale, scaled_as
from shardpress.settings.kinds import sufficient_percentage
from shardpress.shards.damaged import damage_error

log = logging.getLogger(__name__)

_NARROW = 0.01  # columns with a smaller spread hardly matter compared with other columns
_MAX_TASKS = 4096  # tasks of a graph; more tasks make the graph more expensive
_MAX_BLOCKS = 8  # blocks of a task; scheduling a task takes as long as scanning a block
_MIN_TASKS = 16  # blocks share a task only if at least this many tasks remain
_USUAL_BLOCKS = 128  # blocks (about 1 GB) that take half a second, like a typical task of other stages
_COLUMNS = 10  # columns to name in a message
_OF_SCALER = "scaler."  # beginning of the names of a scaler's values in a file
_EXACT = 2.0**53  # float64 holds all integers up to this one exactly
_ERRORS = 2.0**-30  # relative; far more than the rounding errors of prepared values
_WIDEST = 2.0**62  # smaller differences fit into 64 bits for any minimum


@dataclass(frozen=True)
class Scan:
    """Result of a pass over all rows: the ranges of the columns, and the bad rows.

    A row is bad if it contains NaN, Inf or the missing value. If missing values are filled in, it is bad if it contains
    Inf, or if all values are missing. All rows of unreadable shards are bad.
    """

    n_rows: int  # including bad rows
    scaler: Scaler  # scaling of the columns and of the missing indicators; its ranges are those of the good rows
    bad_rows: np.ndarray  # int64, sorted global numbers, including rows that `n_selected` does not count
    # Standard deviation (n_columns,) of each column without outliers, divided by the width of its range, and bounds
    # (2, n_columns) of the central 80 % of its values. Both are empty if no model is trained on these rows.
    spread: np.ndarray = field(default_factory=partial(np.empty, 0))
    inner: np.ndarray = field(default_factory=partial(np.empty, (2, 0)))
    unreadable: Mapping[int, str] = field(default_factory=dict)  # reasons by the number of the shard in the input
    # Missing values of each column in good rows (n_columns,), int64. None if missing values make a row bad.
    n_missing: np.ndarray | None = None
    # Integers (n_columns,), float64, that were subtracted from the rows. All other arrays describe the differences.
    offset: np.ndarray | None = None
    scale: str = "range"  # as in `shardpress.scan.scaling.scaled_as`
    hints: tuple[str, ...] = ()  # sentences about rows that other settings would suit better
    # Number of the good rows that ``--fit-on`` selects. All arrays but `bad_rows` describe only these rows.
    n_selected: int | None = None
    digests: tuple[str | None, ...] = ()  # of the rows of each shard; None for unreadable shards

    @property
    def n_fitted(self) -> int:
        """Number of rows that the ranges describe."""
        if self.n_selected is not None:
            return self.n_selected
        return self.n_rows - len(self.bad_rows)

    @property
    def minimum(self) -> np.ndarray:
        """Minimum of each column (n_columns,), float64, in the good rows; a quantile if values are clipped."""
        return self.scaler.minimum[: self.scaler.n_columns]

    @property
    def maximum(self) -> np.ndarray:
        return self.scaler.maximum[: self.scaler.n_columns]

    @property
    def constant(self) -> np.ndarray:
        """Mask (n_columns,) of the constant columns."""
        return self.minimum == self.maximum

    @property
    def narrow(self) -> np.ndarray:
        """Columns that hardly matter, because their spread is very small compared with their range; smallest first."""
        if not self.spread.size:
            return np.empty(0, np.int64)
        # Exclude columns that are nearly constant, such as a count that is rarely above 0, and columns whose central
        # values span the range, as all do in a few rows. They have no outliers.
        low, high = self.inner
        has_outliers = (low < high) & ((self.minimum < low) | (high < self.maximum))
        is_narrow = has_outliers & (self.spread < _NARROW)
        worst_first = np.argsort(np.where(is_narrow, self.spread, np.inf), kind="stable")
        return worst_first[: int(is_narrow.sum())]

    def facts(self) -> ScanFacts:
        filled = None
        if self.n_missing is not None:
            filled = {int(i): int(self.n_missing[i]) for i in np.flatnonzero(self.n_missing)}
        return ScanFacts(self.scale, {int(i): float(self.spread[i]) for i in self.narrow}, filled)

    def to_npz(self) -> bytes:
        """Return this scan as the content of an NPZ file."""
        values = dict(vars(self))
        for name, value in vars(values.pop("scaler")).items():
            values[f"{_OF_SCALER}{name}"] = value
        values["unreadable"] = [*self.unreadable.items()]  # JSON would turn the numbers into strings
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        about = {name: value for name, value in values.items() if name not in arrays}
        return pack(arrays, about)

    @classmethod
    def from_npz(cls, data: bytes) -> Scan:
        """Return the scan that `to_npz` stored, or raise `ValueError` if the data are not a scan.

        The values are not checked, because the journal has the digests of scans.
        """
        arrays, about = unpack(data)
        try:
            values = {**arrays, **about, "unreadable": dict(about["unreadable"])}
            for name in ("hints", "digests"):
                values[name] = tuple(values[name])
            of_scaler = {name: values.pop(name) for name in list(values) if name.startswith(_OF_SCALER)}
            scaler = Scaler(**{name.removeprefix(_OF_SCALER): value for name, value in of_scaler.items()})
            return cls(scaler=scaler, **values)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"is not a scan: {error!r}") from error


# -- the pass over all rows -----------------------------------------------------------------------------------------


def scan(
    shards: Sequence[Shard],
    settings: ScanSettings,
    executor: Executor,
    n_at_once: int,
    advance: Callable[[int], object] = lambda n_rows: None,
    fitted: np.ndarray | None = None,
) -> Scan:
    """Scan all rows. If some shards are unreadable, scan the other shards again without them.

    The second scan is needed because the readable rows of a damaged shard depend on the block size. The result must
    not depend on it.

    Parameters
    ----------
    advance : callable
        Called with the number of rows of each finished task, and with a negative number before rows are read again.
    fitted : ndarray of shape (n_rows,), bool, optional
        Mask of the rows that the ranges describe. By default, they describe all good rows.

    Raises
    ------
    DataError
        If more shards are unreadable than the settings allow, or if an extra that is checked is damaged.
    """
    known = stats_of_unreadable(shards, {})
    while True:  # at most twice, unless more files become unreadable
        stats = _stats_of_others(shards, settings, known, executor, n_at_once, advance, fitted)
        if len(stats.unreadable) == len(known.unreadable) and not stats.damaged_extras:
            return scan_from_stats(stats, settings, shards, fitted)
        # Check the limit before rows are read again, because that may take hours.
        _check_damage(shards, stats, settings.max_unreadable or 0)
        known = stats_of_unreadable(shards, stats.unreadable)
        advance(known.n_rows - stats.n_rows)  # count rows only once, although they are read again


def _stats_of_others(
    shards: Sequence[Shard],
    settings: ScanSettings,
    known: BlockStats,
    executor: Executor,
    n_at_once: int,
    advance: Callable[[int], object],
    fitted: np.ndarray | None,
) -> BlockStats:
    """Scan the readable shards, and merge the result with `known`, the statistics of unreadable shards."""
    stride = stride_for(shards, fitted)
    tasks = []
    for pieces in _pieces_of_tasks(shards, settings.block_rows, known.unreadable, fitted):
        tasks.append((partial(scan_pieces, settings, stride), pieces))
    if not tasks:  # no shard can be read
        return known
    n_small = _USUAL_BLOCKS // len(tasks[0][1])
    others = reduce(tasks, merge_stats, executor, n_at_once, lambda done: advance(done.n_rows), n_small)
    return merge_stats([known, others])


def _check_damage(shards: Sequence[Shard], stats: BlockStats, limit: int) -> None:
    """Raise `DataError` for damaged extras, and if there are more unreadable shards than allowed.

    The rows of unreadable shards count as bad, too.
    """
    unreadable = stats.unreadable
    if len(unreadable) <= limit and not stats.damaged_extras:
        return
    percentage = None  # no limit refers to values of extras
    if unreadable:
        n_rows = sum(shards[i].n_rows for i in unreadable)
        of_shards = sufficient_percentage(len(unreadable), len(shards))
        of_rows = sufficient_percentage(n_rows, sum(shard.n_rows for shard in shards))
        percentage = max(of_shards, of_rows)
    damaged = {**stats.damaged_extras, **unreadable}
    reasons = {shards[i].path: damaged[i] for i in sorted(damaged)}
    raise damage_error(reasons, len(shards), percentage)


def stride_for(shards: Sequence[Shard], fitted: np.ndarray | None = None) -> int:
    """Return the stride of the sample (see `scan_pieces`), given the mask (n_rows,) of the rows to fit to."""
    # The fewer rows are fitted to, the larger is the part of them that the sample needs.
    return stride_of(n_fitted_rows(shards, fitted), shards[0].n_inputs, SAMPLED_VALUES)


def n_fitted_rows(shards: Sequence[Shard], fitted: np.ndarray | None) -> int:
    """Return the number of rows, including bad ones, that a mask (n_rows,) selects, or that the shards have."""
    if fitted is None:
        return sum(shard.n_rows for shard in shards)
    return int(np.count_nonzero(fitted))


def _pieces_of_tasks(
    shards: Sequence[Shard], block_rows: int, unreadable: Mapping[int, str], fitted: np.ndarray | None
) -> Iterator[ScanTask]:
    """Yield the pieces of each task in row order, without unreadable shards."""
    pieces = [piece.with_fitted(fitted) for piece in pieces_of(shards, block_rows) if piece.number not in unreadable]
    # A task has consecutive blocks, so that each file is read sequentially.
    n_per_task = _blocks_per_task(len(pieces))
    for start in range(0, len(pieces), n_per_task):
        yield ScanTask(pieces[start : start + n_per_task])


def _blocks_per_task(n_blocks: int) -> int:
    n_useful = min(_MAX_BLOCKS, n_blocks // _MIN_TASKS)
    n_needed = -(-n_blocks // _MAX_TASKS)
    return max(1, n_useful, n_needed)


def scan_from_stats(
    stats: BlockStats, settings: ScanSettings, shards: Sequence[Shard], fitted: np.ndarray | None = None
) -> Scan:
    """Return the scan for the statistics of all rows of shards, or of some of their rows."""
    if settings.conversion.preparation is not None:
        stats = _without_errors(stats)
    minimum, maximum = _scaled_range(stats, settings)
    ranges = Scaler(minimum, maximum, clips=settings.clip_quantile > 0)
    scan = Scan(
        n_rows=stats.n_rows,
        scaler=ranges,
        bad_rows=stats.bad_rows,
        unreadable=stats.unreadable,
        n_selected=None if fitted is None else stats.n_fitted,
        digests=_digests(stats, len(shards)),
    )
    if scan.n_fitted and settings.for_training:
        scan = _with_scale(scan, settings.scale, stats.sample)
        scan = replace(scan, hints=_hints(stats, fitted))
    if settings.impute is None:
        return scan
    fill = _fill(stats.sample, settings.impute, ranges, settings.conversion.dtype(shards))
    scaler = replace(scan.scaler, fill=fill)
    if settings.missing_indicator and stats.n_missing.any():
        scaler = scaler.with_indicators(np.flatnonzero(stats.n_missing))
    return replace(scan, scaler=scaler, n_missing=stats.n_missing)


def _digests(stats: BlockStats, n_shards: int) -> tuple[str | None, ...]:
    sums: list[str | None] = [sum_of_digests([stats.digests.get(i, 0)]) for i in range(n_shards)]
    for i in stats.unreadable:
        sums[i] = None
    return tuple(sums)


def _with_scale(scan: Scan, scale: str, sample: np.ndarray) -> Scan:
    """Return the scan with the scaling of its columns, and with facts about their values."""
    ranges = scan.scaler
    with np.errstate(over="ignore", invalid="ignore"):  # a range may overflow float64; it is refused later
        mean, deviation = moments(sample, ranges)
        chosen = chosen_scale(ranges, deviation, sample) if scale == "auto" else scale
        scaler = scaled_as(chosen, ranges, mean, deviation)
        spread = deviation * ranges.scale
    return replace(scan, scaler=scaler, scale=chosen, spread=spread, inner=quantiles(sample, INNER))


def _hints(stats: BlockStats, fitted: np.ndarray | None) -> tuple[str, ...]:
    n_bad = len(stats.bad_rows)
    if fitted is not None:
        n_bad = int(np.count_nonzero(fitted[stats.bad_rows]))
    return hints_of(stats.sample, stats.n_fitted, n_bad)


def _without_errors(stats: BlockStats) -> BlockStats:
    """Widen ranges that consist of rounding errors, which would otherwise be scaled to [0, 1].

    An example is a column that always has the largest value, if rows are divided by it: the results are 1, or a little
    less.
    """
    margin = _ERRORS * np.maximum(np.abs(stats.minimum), np.abs(stats.maximum))
    with np.errstate(over="ignore", invalid="ignore"):  # ranges overflow, or are empty: both are refused later
        is_narrow = (stats.minimum < stats.maximum) & (stats.maximum - stats.minimum < margin)
        sample = np.where(is_narrow & ~np.isnan(stats.sample), stats.minimum, stats.sample)
    minimum = np.where(is_narrow, stats.minimum - margin, stats.minimum)
    maximum = np.where(is_narrow, stats.maximum + margin, stats.maximum)
    return replace(stats, minimum=minimum, maximum=maximum, sample=sample)


def _scaled_range(stats: BlockStats, settings: ScanSettings) -> tuple[np.ndarray, np.ndarray]:
    """Return the range that scales each column, from the good rows or, with clipping, from the quantiles."""
    minimum = stats.minimum
    maximum = stats.maximum
    if settings.fills:  # a column without any value is filled with zeros
        is_empty = minimum > maximum
        minimum = np.where(is_empty, 0, minimum)
        maximum = np.where(is_empty, 0, maximum)
    if settings.clip_quantile:
        low, high = quantiles(stats.sample, settings.clip_quantile)
        is_range = low < high  # otherwise all but a few values are equal
        minimum = np.where(is_range, low, minimum)
        maximum = np.where(is_range, high, maximum)
    return minimum, maximum


def _fill(sample: np.ndarray, impute: str, scaler: Scaler, dtype: np.dtype) -> np.ndarray:
    """Return the fill value of each column, rounded to `dtype`."""
    low = scaler.minimum
    high = scaler.maximum
    averages = means(sample, scaler) if impute == "mean" else _medians(sample)
    # Use the middle of the range for columns without a value in the sample.
    known = np.where(np.isnan(averages), low / 2 + high / 2, averages)
    values = np.clip(known, low, high)
    if dtype.kind != "f":
        return np.rint(values)
    return values.astype(dtype).astype(np.float64)


def _medians(sample: np.ndarray) -> np.ndarray:
    # Divide before adding, because the sum could overflow.
    return (quantiles(sample, 0.5) / 2).sum(axis=0)


# -- use of a scan --------------------------------------------------------------------------------------------------


def offset_for(dtype: np.dtype, scan_result: Scan) -> np.ndarray | None:
    """Return the offset (n_inputs,), float64, to subtract from columns of large integers. None if none needs it.

    `dtype` holds the rows of all shards.

    In float64, small differences between integers above 2**53 are lost. The offset is the minimum from the scan,
    rounded to float64. This integer is close to the true minimum, so the differences are small and exact. It is 0 for
    columns that need no offset.
    """
    if not scan_result.n_fitted or dtype.name not in ("int64", "uint64"):
        return None
    largest = np.maximum(np.abs(scan_result.minimum), np.abs(scan_result.maximum))
    needs_offset = (largest > _EXACT) & (scan_result.maximum - scan_result.minimum < _WIDEST)
    if not needs_offset.any():
        return None
    offset = np.where(needs_offset, scan_result.minimum, 0.0)
    largest_integer = np.iinfo(dtype).max
    rounded_up = np.array([int(value) > largest_integer for value in offset])
    return np.where(rounded_up, np.nextafter(offset, 0), offset)


def check_usable(shards: Sequence[Shard], scan_result: Scan, settings: ScanSettings) -> None:
    """Check that the rows can be scaled with a scan, and log the columns that become 0.

    Raises
    ------
    DataError
        If there are fewer than two rows to fit to, if all are equal, or if the range of a column overflows float64.
    """
    first = shards[0]
    if not scan_result.n_fitted:
        raise _no_usable_rows(shards, scan_result, settings)
    if scan_result.n_fitted == 1:
        raise DataError(
            f"{first}: found 1 usable row of {scan_result.n_rows}, expected at least two rows to train on. Provide "
            "more rows, or encode with a fitted model (--model)."
        )
    if scan_result.constant.all():
        advice = "Provide other rows."
        if not isinstance(first, ArrayShard):
            advice = "Choose another dataset with --dataset, or provide other rows."
        raise DataError(
            f"{first}: all {scan_result.n_fitted} usable rows are equal, expected columns that vary. {advice}"
        )
    _check_finite_ranges(shards, scan_result)
    if _is_unscalable(scan_result).all():
        raise DataError(
            f"{first}: the ranges of all columns are too narrow for float64, expected columns that can be scaled. "
            "Multiply the columns by a large number."
        )
    _log_useless_columns(first.columns, scan_result)


def _no_usable_rows(shards: Sequence[Shard], scan_result: Scan, settings: ScanSettings) -> DataError:
    remedy = ""
    if misses_values(shards, scan_result, settings):
        remedy = "Fill in missing values with {impute} median"
    bad_values = _bad_values(scan_result, settings)
    words = f"found no usable rows, because all {scan_result.n_rows} rows contain {bad_values} or cannot be read"
    return DataError(Problem(_all_of(shards), words, remedy))


def _all_of(shards: Sequence[Shard]) -> str:
    return str(shards[0]) if len(shards) == 1 else f"file={printable(shards[0].path)} and later shards"


def _check_finite_ranges(shards: Sequence[Shard], scan_result: Scan) -> None:
    with np.errstate(over="ignore"):  # the result is Inf
        ranges = scan_result.maximum - scan_result.minimum
    overflowing = np.flatnonzero(np.isinf(ranges))
    if len(overflowing):
        columns = short_list(shards[0].columns.listed(overflowing), _COLUMNS)
        raise DataError(
            f"{_all_of(shards)}: the range of columns {columns} overflows float64. Scale these columns down."
        )


def _is_unscalable(scan_result: Scan) -> np.ndarray:
    """Return a mask (n_inputs,) of the columns that become 0."""
    return scan_result.scaler.without_indicators().scale == 0


def _log_useless_columns(columns: Columns, scan_result: Scan) -> None:
    constant = np.flatnonzero(scan_result.constant)
    if len(constant):
        listed = short_list(columns.listed(constant), _COLUMNS)
        log.info("scan: %s set to 0: %s", quantity(len(constant), "constant column"), listed)
    vanishing = np.flatnonzero(_is_unscalable(scan_result) & ~scan_result.constant)
    if len(vanishing):
        listed = short_list(columns.listed(vanishing), _COLUMNS)
        log.warning(
            "scan: %s set to 0, because the range is too narrow for float64: %s. Multiply these columns by a large "
            "number to use them",
            quantity(len(vanishing), "column"),
            listed,
        )
    if scan_result.n_missing is None:
        return
    empty = np.flatnonzero(scan_result.n_missing == scan_result.n_fitted)
    if len(empty):
        listed = short_list(columns.listed(empty), _COLUMNS)
        log.warning("%s without any value, set to 0: %s", quantity(len(empty), "column"), listed)


def readable(shards: Sequence[Shard], scan_result: Scan) -> tuple[tuple[Shard, ...], Scan]:
    """Return the readable shards, and the scan of these shards."""
    if not scan_result.unreadable:
        return tuple(shards), scan_result
    usable = [shard for number, shard in enumerate(shards) if number not in scan_result.unreadable]
    n_rows = sum(shard.n_rows for shard in usable)
    bad_rows = _bad_rows_of_readable(shards, scan_result)
    return tuple(usable), replace(scan_result, n_rows=n_rows, bad_rows=bad_rows, unreadable={})


def _bad_rows_of_readable(shards: Sequence[Shard], scan_result: Scan) -> np.ndarray:
    """Return the numbers of the bad rows, renumbered without the unreadable shards."""
    firsts = first_rows(shards)
    is_unreadable = np.isin(np.arange(len(shards)), list(scan_result.unreadable))
    shard_of = np.searchsorted(firsts, scan_result.bad_rows, side="right") - 1
    n_lost_before = np.cumsum(np.where(is_unreadable, np.diff(firsts), 0))
    shift = n_lost_before[shard_of]
    is_readable = ~is_unreadable[shard_of]
    return (scan_result.bad_rows - shift)[is_readable]


def describe_bad_rows(shards: Sequence[Shard], scan_result: Scan, settings: ScanSettings) -> str:
    """Return a text with the number of bad rows, and the location of the first bad value."""
    bad = _bad_values(scan_result, settings)
    counts = f"{len(scan_result.bad_rows)} of {scan_result.n_rows} rows in total contain {bad}"
    if scan_result.unreadable:
        first_reason = next(iter(scan_result.unreadable.values()))
        return f"{first_reason} {counts}, or are in one of {len(scan_result.unreadable)} such shards"
    return f"{_first_bad_entry(shards, scan_result, settings)}; {counts}"


def _first_bad_entry(shards: Sequence[Shard], scan_result: Scan, settings: ScanSettings) -> str:
    block, row = _first_bad_row(shards, scan_result, settings)
    entries = bad_entries(row, settings.missing, block.shard.stored_dtype, scan_result.scaler.fill is not None)
    column = int(np.flatnonzero(entries[0])[0])
    where = f"row {block.shard.first_row + block.start}, column {block.shard.columns.numbered(column)}"
    return f"{block.shard}: {row[0, column]} in {where}"


def misses_values(shards: Sequence[Shard], scan_result: Scan, settings: ScanSettings) -> bool:
    """Return whether the first bad row would be good if missing values were filled in."""
    if scan_result.unreadable or scan_result.scaler.fill is not None or not len(scan_result.bad_rows):
        return False
    block, row = _first_bad_row(shards, scan_result, settings)
    return not bad_entries(row, settings.missing, block.shard.stored_dtype, fills=True).any()


def _first_bad_row(shards: Sequence[Shard], scan_result: Scan, settings: ScanSettings) -> tuple[Block, np.ndarray]:
    number = int(scan_result.bad_rows[0])
    block = block_of(shards, first_rows(shards), number, number + 1)
    return block, settings.conversion.read(block)  # read again, because a scan stores only row numbers


def _bad_values(scan_result: Scan, settings: ScanSettings) -> str:
    if scan_result.scaler.fill is not None:
        return "Inf or no value at all"
    if settings.missing is None:
        return "NaN or Inf"
    return f"NaN, Inf or {settings.missing}"
