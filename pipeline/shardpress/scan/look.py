"""A look at some rows before the scan, which chooses settings that suit them, above all their preparation.

docs/performance.md lists the data for which each rule was tried. A rule that is not sure changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from shardpress.base.errors import DataError, NoInput
from shardpress.hdf5.shard import Block, Shard, block_of, first_rows
from shardpress.model.scaler import bad_rows, missing_entries
from shardpress.settings.config import SETTINGS, Config
from shardpress.settings.kinds import as_typed
from shardpress.shards.rows import read

log = logging.getLogger(__name__)

_PREPARATION = ("row_scale", "transform")  # settings

_MOST_VALUES = 2**20  # values to look at
_MOST_ROWS = 4096
_MOST_COLUMNS = 2**15  # of wider rows, too few could be looked at
_STRETCHES = 16  # places to read from; each one can take a chunk
_MIN_ROWS = 20  # fewer rows say little
_EXACT = 2.0**53  # prepared integers from this size on would lose digits

_SAME_WIDTH = 1e-6  # tolerated relative difference of two widths

_MIN_COUNTED = 50  # columns; narrower tables of whole numbers are rarely counts of many kinds
_MIN_ZEROS = 0.5  # share of zeros among the counts of single cells, words or reads
_MAX_SATURATED = 0.05  # share of columns that reach the largest value; pixels do, counts do not
# Columns with values above 1, as a share of those that counts of independent events would have: at least 1 for genes,
# words and ions, at most 0.65 if many columns are indicators of common categories.
_MIN_EXCEEDING = 0.75
# Share of columns with values above 1: at least 0.25 for counts, at most 0.06 with many indicators of rare categories.
_MIN_ABOVE_ONE = 0.15
_MIN_CODED = 64  # largest whole number; counts up to fewer have few different values
_LARGE = 0.05  # share of a column's values above 0; in tables of counts, less than 0.005 exceed half of the largest
_MIN_COLUMNS = 0.25  # share of columns with large values; bits that are rarely set leave some columns without them

_MIN_SINGLE = 0.5  # share of the bytes above 0 with one bit; packed bits that are rarely set have more, pixels less
_MIN_HIGH = 0.25  # share of the upper four bits among these; all bits are as frequent, while counts are small

_MIN_CHANNELS = 100  # columns of a spectrum
_SMOOTH = 0.9  # correlation of neighbouring channels
_BRIGHTER = 2.0  # ratio between the medians of bright and of faint rows
_MOST = 0.9  # share of rows
_SEGMENTS = 8  # parts of a spectrum, which are all bright or all faint
_COMMON = 0.8  # correlation of the brightness of a part with that of the row

# Distance from the median of a column, in standard deviations, that is a heavy tail. In 13 tables, at most a third of
# the columns exceed it; in a table of word frequencies almost all do.
_HEAVY = 6.0
_MIN_HEAVY = 0.5  # share of columns
_FEW = 3  # values of a tail, because a damaged row or two are none
_SHORTER = 0.8  # ratio of the median tails after and before a logarithm that helps


class Appearance(NamedTuple):
    """Appearance of rows, and settings that suit such rows."""

    words: str  # after "the rows look like"
    settings: Mapping[str, Any]  # values by name

    @property
    def flags(self) -> str:
        words = [f"--{name.replace('_', '-')} {as_typed(value)}" for name, value in self.settings.items()]
        return " ".join(words)


_PACKED = Appearance(
    "packed bits. Unpack them first, for example with np.unpackbits(X, axis=1): bytes say little about bits", {}
)


def follow(config: Config, shards: Sequence[Shard], fitted: np.ndarray | None = None) -> Config:
    """Return the settings with those that suit the rows in place of defaults; log a sentence if there are any.

    `fitted` (n_rows,) is a mask of the rows that train the model; by default, all do.
    """
    form = form_of(config, shards, fitted)
    if form is _PACKED:
        log.warning("input: the rows look like %s", form.words)
    elif form is not None:
        log.info(
            "input: the rows look like %s: using %s (give these flags other values to turn it off)",
            form.words,
            form.flags,
        )
    chosen = {} if form is None else form.settings
    prepared = {name: "none" for name in _PREPARATION if _is_open(config, name)}
    return config.changed(**{**prepared, **chosen})


def form_of(config: Config, shards: Sequence[Shard], fitted: np.ndarray | None) -> Appearance | None:
    """Return what the rows of a run look like, with the settings that suit them and are not given.

    None if the rows suggest nothing, or if all such settings are given.
    """
    shape = shards[0].columns.row_shape or (shards[0].n_inputs,)
    form = _form_of_rows(_some_rows(config, shards, fitted), shape)
    if form is None or form is _PACKED:
        return form
    settings = {name: value for name, value in form.settings.items() if _is_open(config, name)}
    if config.bad_data.missing_value is not None:  # which could not be compared with prepared values
        settings = {name: value for name, value in settings.items() if name not in _PREPARATION}
    if config.training.target is not None or config.network.output_layer == "hidden":
        settings.pop("hidden", None)
    return Appearance(form.words, settings) if settings else None


def _is_open(config: Config, name: str) -> bool:
    """Return whether a setting has its default."""
    setting = SETTINGS[name]
    return bool(getattr(getattr(config, setting.slice), name) == setting.default)


# -- rows --------------------------------------------------------------------------------------------------------------


def _some_rows(config: Config, shards: Sequence[Shard], fitted: np.ndarray | None) -> np.ndarray:
    """Return good rows (n, n_columns), float64, from a few places; none if most rows there are bad.

    Missing values are NaN. If they are not imputed, their rows are bad. Rows that cannot be read are left out, because
    the scan reports them.
    """
    n_columns = shards[0].n_inputs
    good = [np.empty((0, n_columns))]
    n_read = 0
    if n_columns <= _MOST_COLUMNS:
        for block, positions in _places(shards, fitted, min(_MOST_ROWS, _MOST_VALUES // n_columns)):
            try:
                rows = read(block)[positions]
            except (DataError, NoInput):
                continue
            n_read += len(rows)
            is_missing = missing_entries(rows, config.bad_data.missing_value, block.shard.stored_dtype)
            rows = np.where(is_missing, np.nan, rows.astype(np.float64))
            good.append(np.delete(rows, bad_rows(rows, fills=config.bad_data.impute is not None), axis=0))
    rows = np.concatenate(good)
    return rows if 2 * len(rows) >= n_read else rows[:0]


def _places(shards: Sequence[Shard], fitted: np.ndarray | None, n_wanted: int) -> Iterator[tuple[Block, np.ndarray]]:
    """Yield blocks with at most `n_wanted` rows in total, and which rows of them train the model."""
    starts = first_rows(shards)
    numbers = range(int(starts[-1])) if fitted is None else np.flatnonzero(fitted)
    bounds = [k * len(numbers) // _STRETCHES for k in range(_STRETCHES + 1)]
    for at, end in pairwise(bounds):
        end = min(end, at + n_wanted // _STRETCHES)
        while at < end:
            first = int(numbers[at])
            n_rows = min(int(starts[starts > first][0]) - first, end - at)
            block = block_of(shards, starts, first, first + n_rows)
            positions = np.asarray(numbers[at : at + n_rows]) - first
            positions = positions[positions < n_rows]
            yield block, positions
            at += len(positions)


# -- rules -------------------------------------------------------------------------------------------------------------


def _form_of_rows(rows: np.ndarray, shape: tuple[int, ...]) -> Appearance | None:
    """Return what rows (n, n_columns), float64, look like, given the shape of a row; None if it suggests nothing."""
    if len(rows) < _MIN_ROWS or np.abs(rows).max(where=~np.isnan(rows), initial=0.0) >= _EXACT:
        return None
    with np.errstate(over="ignore", invalid="ignore"):  # of very large values
        if _are_spectra(rows, shape[-1]):
            return Appearance("spectra of different brightness", {"row_scale": "median"})
        if _are_flags(rows):
            return Appearance("bits", {"scale": "range", "hidden": (), "code_activation": "linear"})
        if len(shape) > 1:  # the columns are not of one kind, or are pixels
            return None
        if _are_packed(rows):
            return _PACKED
        if _are_codes(rows):
            return None
        if _are_counts(rows):
            zeros = np.mean(rows == 0)
            words = f"counts (whole numbers, {100 * zeros:.0f} % zeros)"
            return Appearance(words, {"row_scale": "total", "transform": "log1p"})
        if _have_heavy_tails(rows):
            return Appearance("numbers with heavy tails (a few are far larger than the others)", {"transform": "log1p"})
    return None


def _are_flags(rows: np.ndarray) -> bool:
    """Return whether each column that varies has only two values, with the same distance in all columns.

    Different distances may be weights.
    """
    low = np.nanmin(rows, axis=0, initial=np.inf)
    high = np.nanmax(rows, axis=0, initial=-np.inf)
    widths = (high - low)[low < high]
    if not widths.size or widths.max() - widths.min() > _SAME_WIDTH * widths.max():
        return False
    return not ((rows > low) & (rows < high)).any()


def _are_whole(rows: np.ndarray) -> bool:
    """Return whether the values are whole numbers from 0, or NaN."""
    present = rows[~np.isnan(rows)]
    return bool(present.size and present.min() >= 0 and np.array_equal(present, np.rint(present)))


def _are_packed(rows: np.ndarray) -> bool:
    """Return whether the values are bytes of bits that are rarely set: mostly powers of 2, large and small ones."""
    if not _are_whole(rows) or np.nanmax(rows) > 255:
        return False
    n_values = np.bincount(rows[rows > 0].astype(np.int64), minlength=256)
    singles = n_values[[1 << bit for bit in range(8)]]
    n_single = singles.sum()
    return bool(n_single >= _MIN_SINGLE * n_values.sum() and singles[4:].sum() >= _MIN_HIGH * n_single)


def _are_codes(rows: np.ndarray) -> bool:
    """Return whether large whole numbers are about as frequent as small ones, as in uniform bytes."""
    if not _are_whole(rows):
        return False
    largest = np.nanmax(rows)
    if largest < _MIN_CODED:
        return False
    n_large = (rows >= largest / 2).sum(axis=0)
    n_positive = (rows > 0).sum(axis=0)
    return bool(np.mean(n_large > _LARGE * n_positive) >= _MIN_COLUMNS)


def _are_counts(rows: np.ndarray) -> bool:
    if rows.shape[1] < _MIN_COUNTED or not _are_whole(rows):
        return False
    is_present = ~np.isnan(rows)
    if np.mean(rows[is_present] == 0) < _MIN_ZEROS:
        return False
    largest = rows.max(axis=0, where=is_present, initial=0)
    return bool(np.mean(largest == largest.max()) <= _MAX_SATURATED) and _exceed_one(rows)


def _exceed_one(rows: np.ndarray) -> bool:
    """Return whether columns of whole numbers exceed 1 as often as counts do, unlike indicators of categories.

    If a column counts independent events, a share ``1 - exp(-rate)`` of its values is above 0, and a share
    ``1 - exp(-rate) (1 + rate)`` above 1. A rare event may have no values above 1 in these rows.
    """
    rows = rows[:, (rows > 0).any(axis=0)]
    n_present = np.count_nonzero(~np.isnan(rows), axis=0)
    n_positive = np.count_nonzero(rows > 0, axis=0)
    share = np.minimum(n_positive, n_present - 0.5) / n_present
    rate = -np.log1p(-share)
    n_values_above = n_present * (share - (1 - share) * rate)
    n_columns_expected = np.sum(-np.expm1(-n_values_above))
    n_columns = np.count_nonzero((rows > 1).any(axis=0))
    return bool(n_columns >= max(_MIN_EXCEEDING * n_columns_expected, _MIN_ABOVE_ONE * rows.shape[1]))


def _are_spectra(rows: np.ndarray, n_channels: int) -> bool:
    """Return whether neighbouring columns are similar, and rows are positive and are bright or faint as a whole."""
    if n_channels < _MIN_CHANNELS or np.isnan(rows).any():
        return False
    medians = np.median(rows, axis=1)
    low, high = np.quantile(medians, (1 - _MOST, _MOST))
    if low <= 0 or high < _BRIGHTER * low:
        return False
    rows = rows[medians > 0]
    medians = medians[medians > 0]
    similarities = _correlations(rows / medians[:, None])
    is_within = np.arange(1, rows.shape[1]) % n_channels > 0
    if np.median(similarities[is_within]) < _SMOOTH:
        return False
    segments = np.array_split(rows, max(_SEGMENTS, rows.shape[1] // n_channels), axis=1)
    brightness = [np.median(segment, axis=1) for segment in segments]
    pairs = [_correlations(np.stack([values, medians], axis=1)) for values in brightness]
    return bool(np.min(pairs) >= _COMMON)


def _have_heavy_tails(rows: np.ndarray) -> bool:
    """Return whether most columns have rare values far from the others, which a logarithm would bring closer."""
    tails = _tails(rows)
    shorter = _tails(np.log1p(np.abs(rows)) * np.sign(rows))
    return bool(np.mean(tails > _HEAVY) >= _MIN_HEAVY and np.median(shorter) <= _SHORTER * np.median(tails))


def _tails(rows: np.ndarray) -> np.ndarray:
    """Return how far a few values of each column are from its median, in standard deviations (n_columns,).

    It is 0 for constant columns, and for those with few values.
    """
    tails = np.zeros(rows.shape[1])
    is_known = np.count_nonzero(~np.isnan(rows), axis=0) >= _MIN_ROWS
    known = rows[:, is_known]
    deviation = np.nanstd(known, axis=0)
    distances = np.nan_to_num(np.abs(known - np.nanmedian(known, axis=0)))
    distance = np.partition(distances, -_FEW, axis=0)[-_FEW]
    is_usable = np.isfinite(deviation) & (deviation > 0)
    tails[is_known] = np.divide(distance, deviation, out=np.zeros_like(distance), where=is_usable)
    return tails


def _correlations(rows: np.ndarray) -> np.ndarray:
    """Return the correlation of each column with the next one (n_columns - 1,); 0 for constant columns."""
    centered = rows - rows.mean(axis=0)
    sizes = np.sqrt(np.square(centered).sum(axis=0))
    products = (centered[:, :-1] * centered[:, 1:]).sum(axis=0)
    scale = sizes[:-1] * sizes[1:]
    return np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)
