"""Verification of stored features: read back the features of some rows, and recompute them from the input.

Features are read with HDF5, as other programs read them. They are recomputed with NumPy in float64, independently of
the code that computed the stored features.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from msgspec import structs

from shardpress.base.errors import DataError, NoInput, NotPermitted, printable
from shardpress.hdf5.shard import Block, Shard
from shardpress.model.encoder import Model, finite_errors
from shardpress.model.scaler import Cleaning, bad_entries
from shardpress.output.folder import check_storage
from shardpress.result.facts import Fault, RowCheck
from shardpress.result.features import FAILURES, reading
from shardpress.result.finished import ERROR, FEATURES, VALID
from shardpress.result.records import Part, Range, ShardFacts
from shardpress.shards.conversion import Conversion
from shardpress_kernels.activations import ACTIVATIONS
from shardpress_kernels.hostmath import activated

_DEFAULT_ROWS = 256  # default number of rows to check; also the maximum number of rows that are checked at once
_BYTES = 2**27  # bytes of whole chunks to read by default, which takes a fraction of a second
_MIN_ROWS = 8  # minimum number of rows to check, even if their chunks are large
_HUGE = 1e15  # sums of larger scaled values may overflow float32, so their rows may be stored as bad rows

_EPS = 2.0**-24  # maximum relative rounding error of float32
_SAFETY = 4.0  # see `_rounding_bound`
_MIN_ERROR = 1e-30  # avoids a bound of 0 for units whose weights are all 0


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of input rows before they are encoded."""

    model: Model
    missing: float | None = None  # marks missing entries, in addition to NaN
    clips_drift: bool = False  # as in `Cleaning`

    @property
    def conversion(self) -> Conversion:
        return Conversion(self.model.offset, self.model.preparation)

    @property
    def cleaning(self) -> Cleaning:
        return Cleaning(self.model.scaler, self.missing, self.clips_drift)


def check_rows(
    directory: Path,
    pairs: Sequence[tuple[Part, Range]],
    shards: Sequence[ShardFacts],
    shard_of: Callable[[str], Shard],
    preprocessing: Preprocessing,
    n_rows: int | None = None,
) -> RowCheck:
    """Recompute the features of some rows from all ranges of parts, and compare them with the stored features.

    Parameters
    ----------
    shard_of : callable
        Function that returns a shard, given its id. It raises `DataError`, `NoInput` or `NotPermitted` if the shard
        cannot be read.
    n_rows : int, optional
        Number of rows, evenly spread. The default is 256, or less if chunks are large.

    Raises
    ------
    ReadFailed, SystemLimit
        If the storage or the system fails.
    """
    sources = _Sources(shard_of)
    if not n_rows:
        n_rows = _affordable_rows([rows for _, rows in pairs], sources)
    selection = select_rows([rows.n_rows for _, rows in pairs], n_rows)
    paths = {shard.id: shard.path for shard in shards}
    results = []
    for pair, rows in zip(pairs, selection, strict=True):
        for start in range(0, len(rows), _DEFAULT_ROWS):
            results.append(_check_range(directory, pair, rows[start : start + _DEFAULT_ROWS], sources, preprocessing))
    return RowCheck(
        n_rows=sum(result.n_rows for result in results),
        n_bad=sum(result.n_bad for result in results),
        largest_difference=max((result.largest_difference for result in results), default=0.0),
        of_tolerance=max((result.of_tolerance for result in results), default=0.0),
        n_unread=sum(result.n_unread for result in results),
        faults=list(dict.fromkeys(fault for result in results for fault in result.faults)),
        unchecked=list(dict.fromkeys(Fault(paths[shard_id], why) for shard_id, why in sources.unreadable.items())),
    )


# -- selection of rows ---------------------------------------------------------------------------------------------


def select_rows(sizes: Sequence[int], n: int) -> list[np.ndarray]:
    """Select up to `n` rows, one from each of `n` equal ranges of all rows, given the number of rows in each piece.

    Return the sorted numbers of the selected rows within each piece. Which rows of the whole are selected does not
    depend on the pieces.
    """
    first_rows = np.cumsum([0, *sizes])
    n_total = int(first_rows[-1])
    n = min(n, n_total)
    edges = np.arange(n + 1) * n_total // max(1, n)
    rows = np.random.default_rng(0).integers(edges[:-1], edges[1:])
    ends = np.searchsorted(rows, first_rows)
    return [rows[ends[i] : ends[i + 1]] - first_rows[i] for i in range(len(sizes))]


def _affordable_rows(ranges: Sequence[Range], sources: _Sources) -> int:
    """Return the number of rows that can be read in about a second.

    All shards are assumed to be like the first one, and each row is assumed to be in a different chunk.
    """
    shard = next(filter(None, (sources.shard(rows.shard) for rows in ranges)), None)
    if shard is None:
        return _DEFAULT_ROWS
    n_bytes = sum(rows.n_rows for rows in ranges) * shard.row_bytes
    if n_bytes <= _BYTES:
        return _DEFAULT_ROWS
    n_chunks = _BYTES // (shard.chunk_rows * shard.row_bytes)
    return min(_DEFAULT_ROWS, max(_MIN_ROWS, n_chunks))


# -- stored features -----------------------------------------------------------------------------------------------


def read_features(path: Path, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Read some rows of a part, given their sorted numbers (n,).

    Returns
    -------
    features : ndarray of shape (n, n_features)
        Features in the stored dtype.
    valid : ndarray of shape (n,), bool
        False for bad rows.
    errors : ndarray of shape (n,), float32, or None
        Reconstruction errors, if they are stored.

    Raises
    ------
    DataError
        If the part cannot be read.
    ReadFailed, SystemLimit
        If the storage or the system fails. The part may be intact.
    """
    try:
        with reading(path) as file:
            errors = file[ERROR][rows] if ERROR in file else None
            return file[FEATURES][rows], file[VALID][rows], errors
    except FAILURES as error:
        check_failure(error, path)
        raise DataError(f"file={printable(path)}: cannot be read: {error}") from error


def check_failure(error: Exception, path: Path) -> None:
    """Raise `ReadFailed` or `SystemLimit` if the storage or the system is the cause of an error of HDF5."""
    # HDF5 reports the error number of a failed system call only in the text of its error.
    match = re.search(r"errno = (\d+), error message", str(error))
    number = int(match[1]) if match else getattr(error, "errno", None)
    if number:
        check_storage(OSError(number, os.strerror(number)), path)


# -- input rows ----------------------------------------------------------------------------------------------------


class _Sources:
    """Input shards. Each one is opened only once."""

    def __init__(self, shard_of: Callable[[str], Shard]) -> None:
        self._shard_of = shard_of
        self._shards: dict[str, Shard | None] = {}
        self.unreadable: dict[str, str] = {}  # the reason why a shard cannot be read, by its id

    def shard(self, shard_id: str) -> Shard | None:
        """Return a shard, or None if it can no longer be read."""
        if shard_id not in self._shards:
            self._shards[shard_id] = None
            try:
                self._shards[shard_id] = self._shard_of(shard_id)
            except (DataError, NoInput, NotPermitted) as error:
                self.unreadable[shard_id] = str(error)
        return self._shards[shard_id]


def _read_rows(shard: Shard, conversion: Conversion, numbers: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """Read some rows (n_rows, n_inputs) of a shard.

    Also return the reason why a row cannot be read, by its position. Such rows are 0.
    """
    rows = np.zeros((len(numbers), shard.n_inputs), conversion.dtype_of(shard))
    failures: dict[int, str] = {}
    chunk_of_row = numbers // shard.chunk_rows
    for chunk in np.unique(chunk_of_row):  # so that each chunk is decompressed only once
        positions = np.flatnonzero(chunk_of_row == chunk)
        wanted = numbers[positions]
        try:
            values = conversion.read(Block(shard, int(wanted[0]), int(wanted[-1]) + 1))
            rows[positions] = values[wanted - wanted[0]]
        except DataError as error:
            failures |= dict.fromkeys(positions.tolist(), str(error))
    return rows, failures


# -- comparison ----------------------------------------------------------------------------------------------------


def _check_range(
    directory: Path, pair: tuple[Part, Range], numbers: np.ndarray, sources: _Sources, preprocessing: Preprocessing
) -> RowCheck:
    """Recompute the features of some rows of a range, and compare them with the stored features."""
    part, rows_of_part = pair
    try:
        features, valid, errors = read_features(directory / part.file, rows_of_part.first + numbers)
    except DataError as error:
        return RowCheck(faults=[Fault(part.file, str(error))])
    shard = sources.shard(rows_of_part.shard)
    if shard is None:
        return RowCheck(n_unread=int(valid.sum()))
    rows, failures = _read_rows(shard, preprocessing.conversion, rows_of_part.start + numbers)
    # If the run could not read the row either, the row is stored as a bad row.
    reasons = [reason for i, reason in failures.items() if valid[i]]
    if reasons:
        sources.unreadable[rows_of_part.shard] = reasons[0]
    positions = np.delete(np.arange(len(rows)), list(failures))
    expected = _expected(shard, rows[positions], preprocessing, part.max_error or 0.0, errors is not None)
    if rows_of_part.is_unreadable:
        expected = replace(expected, may_be_bad=np.ones_like(expected.may_be_bad))
    places = rows_of_part.first + numbers[positions]
    values = features if errors is None else np.column_stack([features, errors])
    stored = _StoredValues(places, values[positions].astype(np.float64), valid[positions])
    return structs.replace(_compare(part.file, stored, expected), n_unread=len(reasons))


@dataclass(frozen=True)
class _StoredValues:
    """Stored values of some rows: their features and, if it is stored, their reconstruction error."""

    numbers: np.ndarray  # (n_rows,), within the part
    values: np.ndarray  # float64 (n_rows, n_values)
    valid: np.ndarray  # bool (n_rows,), false for rows that are stored as bad rows


@dataclass(frozen=True)
class _ExpectedValues:
    """Expected values of some rows."""

    n_features: int
    values: np.ndarray  # float64 (n_rows, n_values)
    allowed: np.ndarray  # float64 (n_rows, n_values), the largest allowed differences
    is_bad: np.ndarray  # bool (n_rows,), true for rows that must be stored as bad rows
    may_be_bad: np.ndarray  # bool (n_rows,), true for rows that are allowed to be bad, as float32 can overflow


def _expected(
    shard: Shard, rows: np.ndarray, preprocessing: Preprocessing, storage_error: float, has_errors: bool
) -> _ExpectedValues:
    """Recompute the features of some rows in float64, and their errors. `storage_error` is that of the conversion."""
    model = preprocessing.model
    scaler = model.scaler
    bad = bad_entries(rows, preprocessing.missing, shard.stored_dtype, scaler.fill is not None)
    filled = preprocessing.cleaning.filled(rows, shard.stored_dtype)
    cleaned = preprocessing.cleaning.clipped(filled)
    with np.errstate(over="ignore", invalid="ignore"):  # bad rows, and rows far outside the range
        rounding = _rounding_bound(model, cleaned)
        is_far = ~(np.abs(scaler.scaled(cleaned)).max(axis=1) < _HUGE)
        features = model.encode_cleaned(cleaned)
        values = features
        allowed = rounding + storage_error
        if has_errors:
            values = np.column_stack([features, finite_errors(model.row_errors(filled, features))])
            allowed = np.column_stack([allowed, _error_bound(model, filled, features, rounding)])
    may_be_bad = is_far | ~np.isfinite(rounding).all(axis=1)
    return _ExpectedValues(model.n_features, values, allowed, bad.any(axis=1), may_be_bad)


def _compare(file: str, stored: _StoredValues, expected: _ExpectedValues) -> RowCheck:
    """Compare stored values with expected values, and report the first wrong row."""
    is_comparable = stored.valid & ~expected.is_bad & ~expected.may_be_bad
    differences = np.where(is_comparable[:, None], np.abs(stored.values - expected.values), 0)
    shares = np.where(is_comparable[:, None], differences / expected.allowed, 0)
    is_nan = np.isnan(stored.values).all(axis=1)
    is_left_out = ~stored.valid & is_nan & (expected.is_bad | expected.may_be_bad)  # correctly stored as bad rows
    is_right = stored.valid & ~expected.is_bad & (shares <= 1).all(axis=1)  # shares are 0 if a row may be bad
    wrong = np.flatnonzero(~(is_right | is_left_out)).tolist()
    return RowCheck(
        n_rows=int(is_comparable.sum()),
        n_bad=int(is_left_out.sum()),
        largest_difference=float(differences[:, : expected.n_features].max(initial=0)),
        of_tolerance=float(shares.max(initial=0)),
        faults=[Fault(file, _fault(i, stored, expected, shares)) for i in wrong[:1]],
    )


def _fault(i: int, stored: _StoredValues, expected: _ExpectedValues, shares: np.ndarray) -> str:
    """Describe the fault of a row."""
    where = f"row {stored.numbers[i]}"
    if expected.is_bad[i]:
        return f"{where}: has features although its input row is bad, expected NaN and valid=False"
    if not stored.valid[i]:
        return f"{where}: is marked as bad although its input row is good, expected features and valid=True"
    worst = int(np.argmax(np.where(np.isnan(shares[i]), np.inf, shares[i])))
    name = f"feature {worst}" if worst < expected.n_features else ERROR
    return (
        f"{where}: {name} is {stored.values[i, worst]:.7g}, expected {expected.values[i, worst]:.7g} +- "
        f"{expected.allowed[i, worst]:.2g} (recomputed in float64)"
    )


def _rounding_bound(model: Model, rows: np.ndarray) -> np.ndarray:
    """Return a bound on the rounding errors of features that are computed in float32, float64 (n_rows, n_features).

    The bound limits the difference from the float64 features of `Model.encode`. It is Inf or NaN where float32
    overflows. The rows (n_rows, n_inputs) are cleaned.

    The rounding error of a sum of n products is about ``sqrt(n)`` times the rounding error of the sum of their absolute
    values, in any order of additions. See Higham and Mary, "A new approach to probabilistic rounding error analysis",
    2019, section 3, with lambda = 4. The errors of a layer are independent, so the next layer adds them in quadrature.
    Integer products round each weight relative to all weights of its unit. Therefore the mean absolute value of these
    weights is added to each weight. The measured errors of devices that sum in another order, or that fold the scaling
    into the weights, are at most 21 % of it: see docs/reliability.md.
    """
    # Compute in float32, so that only one large matrix is copied at a time. A bound needs few digits.
    with np.errstate(over="ignore", invalid="ignore"):
        a = model.scaler.scaled(rows)
        error = np.float32(_SAFETY * _EPS) * (np.abs(a) + 1)
        for weights, bias, kind in model.network.feature_layers:
            a, error = _through_layer(a, error, model.parameters[weights], model.parameters[bias], kind)
    return np.maximum(error, _MIN_ERROR).astype(np.float64)


def _error_bound(model: Model, rows: np.ndarray, features: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """Return a bound on the rounding errors of `Model.row_errors` in float32, float64 (n_rows,).

    `bound` is that of the features (n_rows, n_features). The result is Inf where float32 overflows. The errors of the
    columns of a reconstruction depend on the same features, so they are added without quadrature.
    """
    network = model.network
    p = model.parameters
    with np.errstate(over="ignore", invalid="ignore"):
        s = features.astype(np.float32)
        error = bound.astype(np.float32)
        layers = list(zip(network.layers, network.activations, strict=True))
        for (weights, bias, _), kind in layers[network.output.n_layers :]:
            s, error = _through_layer(s, error, p[weights], p[bias], kind)
        if network.gain:
            s = (s - np.float32(network.center)) * p["gain"]
            error = error * np.abs(p["gain"]) + np.float32(_SAFETY * _EPS) * np.abs(s)
        for (weights, _, bias), kind in reversed(list(zip(network.layers, network.mirrors, strict=True))):
            s, error = _through_layer(s, error, p[weights].T, p[bias], kind)
        x = model.scaler.scaled(rows)
        of_entries = error + np.float32(_SAFETY * _EPS) * np.abs(x)
        difference = np.abs(s - x)
        of_sum = _SAFETY * _EPS * np.sqrt(model.n_inputs) * np.square(difference).mean(axis=1)
        bounds = of_sum + (2 * difference * of_entries + of_entries**2).mean(axis=1)
    return np.where(np.isfinite(bounds), np.maximum(bounds, _MIN_ERROR), np.inf)


def _through_layer(
    a: np.ndarray, error: np.ndarray, W: np.ndarray, b: np.ndarray, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the outputs of a layer in float32, and a bound on their errors, given those of its inputs."""
    error = np.hypot(np.sqrt(error**2 @ W**2), _error_of_layer(a, W, b))
    a = activated(kind, a @ W + b)
    activation = ACTIVATIONS[kind]
    error = error * np.float32(activation.largest_slope)
    if activation.n_roundings > 0:
        sizes = np.abs(a)
        if activation.limits is not None:
            sizes = np.asarray(max(map(abs, activation.limits)), dtype=np.float32)
        error = error + np.float32(activation.n_roundings * _EPS) * sizes
    return a, error


def _error_of_layer(a: np.ndarray, W: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a bound on the rounding error of ``a @ W + b`` in float32."""
    sizes = np.abs(W)
    sizes += sizes.mean(axis=0)
    return np.float32(_SAFETY * _EPS * np.sqrt(len(W))) * (np.abs(a) @ sizes + np.abs(b))
