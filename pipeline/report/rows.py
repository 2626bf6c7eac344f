"""Verification of stored features: read the features of some rows back, and recompute them from the input.

Features are read with HDF5, as other programs read them. They are recomputed in NumPy and float64, by code that shares
nothing with the code that computed them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kernels.activations import ACTIVATIONS
from kernels.reference import activated
from pipeline.errors import DataError, NoInput, NotPermitted, printable
from pipeline.features import FAILURES, FEATURES, VALID, reading
from pipeline.model import Model
from pipeline.output.records import check_storage
from pipeline.scan.scaler import Cleaning, bad_entries
from pipeline.shards.rows import read
from pipeline.shards.shard import Block, Shard

__all__ = [
    "Fault",
    "PartLine",
    "Preprocessing",
    "RowCheck",
    "check_rows",
    "read_features",
    "rounding_bound",
    "select_rows",
]

_DEFAULT_ROWS = 256  # rows to check if no number is given; also the most that are checked at once
_BYTES = 2**27  # bytes of input to read by default, in whole chunks; this takes a fraction of a second
_MIN_ROWS = 8  # rows to check even if their chunks are large
_HUGE = 1e15  # scaled values above this may overflow float32 when they are summed, so their rows may count as bad

_EPS = 2.0**-24  # largest relative rounding error of float32
_SAFETY = 4.0  # see `rounding_bound`
_MIN_ERROR = 1e-30  # for units whose weights are all 0

PartLine = Mapping[str, Any]
"""The line of a part in the manifest."""


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of input rows before they are encoded.

    Attributes
    ----------
    missing : float or None
        Value that is treated as missing, like NaN.
    clips : bool
        Whether rows outside the model's range were clipped, although the model itself does not require it.
    """

    model: Model
    missing: float | None = None
    clips: bool = False

    def cleaned(self, block: Block, rows: np.ndarray) -> np.ndarray:
        """Return rows (n_rows, n_inputs) of a block as the encoder received them, in their own dtype."""
        scaler = self.model.scaler
        rows = Cleaning(scaler, self.missing).cleaned(block, rows)
        if not self.clips:
            return rows
        low, high = scaler.edges(rows.dtype)
        return np.clip(rows, low, high)


@dataclass(frozen=True)
class Fault:
    """A fault of an output file, or the reason why an input file cannot be checked."""

    file: str
    fault: str


@dataclass(frozen=True)
class RowCheck:
    """Result of recomputing the features of some rows.

    Attributes
    ----------
    n_rows : int
        Rows whose features were recomputed.
    n_bad : int
        Bad rows among the selected ones, whose features are NaN as they should be.
    largest_difference : float
        Largest difference between a stored feature and the recomputed one.
    of_tolerance : float
        Largest difference as a fraction of the tolerance of that feature; above 1 if there are faults.
    faults : tuple of Fault
        Parts with wrong features.
    unchecked : tuple of Fault
        Input files that could not be read.
    """

    n_rows: int = 0
    n_bad: int = 0
    largest_difference: float = 0.0
    of_tolerance: float = 0.0
    faults: tuple[Fault, ...] = ()
    unchecked: tuple[Fault, ...] = ()

    def __str__(self) -> str:
        if not self.n_rows:
            return "no row could be recomputed"
        return (
            f"{self.n_rows} rows recomputed in float64 differ by at most {self.largest_difference:.2g} "
            f"({100 * self.of_tolerance:.2g} % of the tolerance)"
        )


def check_rows(
    directory: Path,
    parts: Sequence[PartLine],
    shard_of: Callable[[PartLine], Shard],
    how: Preprocessing,
    n_rows: int | None = None,
) -> RowCheck:
    """Recompute the features of some rows of all parts, and compare them with the stored features.

    Parameters
    ----------
    directory : Path
        The output directory.
    shard_of : callable
        Returns the shard of a part; it raises `DataError`, `NoInput` or `NotPermitted` if that cannot be read.
    n_rows : int, optional
        Number of rows, selected by `select_rows`. By default 256, or fewer if they are in large chunks.

    Raises
    ------
    ReadFailed, SystemLimit
        If the storage or the system fails.
    """
    sources = _Sources(shard_of)
    if not n_rows:
        n_rows = _affordable_rows(parts, sources)
    selection = select_rows([part["n_rows"] for part in parts], n_rows)
    results = []
    for part, rows in zip(parts, selection, strict=True):
        for start in range(0, len(rows), _DEFAULT_ROWS):
            numbers = rows[start : start + _DEFAULT_ROWS]
            results.append(_check_part(directory, part, numbers, sources, how))
    return _total(results, sources)


def _total(results: Sequence[RowCheck], sources: _Sources) -> RowCheck:
    """Return one result for all parts."""
    return RowCheck(
        n_rows=sum(each.n_rows for each in results),
        n_bad=sum(each.n_bad for each in results),
        largest_difference=max((each.largest_difference for each in results), default=0.0),
        of_tolerance=max((each.of_tolerance for each in results), default=0.0),
        faults=tuple(fault for each in results for fault in each.faults),
        unchecked=tuple(Fault(path, reason) for path, reason in sources.unreadable.items()),
    )


# -- selection of rows ---------------------------------------------------------------------------------------------


def select_rows(sizes: Sequence[int], n: int, seed: int = 0) -> list[np.ndarray]:
    """Select up to `n` rows, one from each of `n` equal ranges; `sizes` are the numbers of rows of all pieces.

    The selection depends on the rows and the seed alone.

    Returns
    -------
    list of ndarray
        For each piece, the sorted numbers of its rows.
    """
    first_rows = np.cumsum([0, *sizes])
    n_total = int(first_rows[-1])
    n = min(n, n_total)
    edges = np.arange(n + 1) * n_total // max(1, n)
    rows = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
    ends = np.searchsorted(rows, first_rows)
    return [rows[ends[i] : ends[i + 1]] - first_rows[i] for i in range(len(sizes))]


def _affordable_rows(parts: Sequence[PartLine], sources: _Sources) -> int:
    """Return how many rows can be read in about a second, assuming that all shards are like the first one.

    Each row may need its own chunk.
    """
    shard = sources.first_shard(parts)
    if shard is None:
        return _DEFAULT_ROWS
    n_bytes = sum(part["n_rows"] for part in parts) * shard.row_bytes
    if n_bytes <= _BYTES:
        return _DEFAULT_ROWS
    n_chunks = _BYTES // (shard.chunk_rows * shard.row_bytes)
    return min(_DEFAULT_ROWS, max(_MIN_ROWS, n_chunks))


# -- stored features -----------------------------------------------------------------------------------------------


def read_features(path: Path, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read rows of a part.

    Parameters
    ----------
    rows : ndarray of shape (n,)
        Sorted numbers of rows.

    Returns
    -------
    features : ndarray of shape (n, n_features)
        As they are stored.
    valid : ndarray of shape (n,), bool

    Raises
    ------
    DataError
        If the part cannot be read.
    ReadFailed, SystemLimit
        If the storage or the system fails; the part may be intact.
    """
    try:
        with reading(path) as file:
            features = _read_features(path, file[FEATURES], rows)
            valid = file[VALID][()]
            return features, valid[rows]
    except FAILURES as error:
        number = _error_number(error)
        if number:
            check_storage(OSError(number, os.strerror(number)), path)
        raise DataError(f"file={printable(path)}: cannot be read: {error}") from error


def _error_number(error: BaseException) -> int | None:
    """Return the system's error number of a failed read, which HDF5 reports only in the text of its error."""
    match = re.search(r"errno = (\d+), error message", str(error))
    if match:
        return int(match[1])
    return getattr(error, "errno", None)


def _read_features(path: Path, features: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Read rows of a dataset, by HDF5 unless they are contiguous in the file."""
    offset = features.id.get_offset()
    if offset is None:
        return _read_chunks(features, rows)
    # HDF5 needs more time to select single rows than the system needs to read them.
    return _read_contiguous(path, offset, features, rows)


def _read_chunks(features: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Read rows of a chunked dataset; each chunk is decompressed once."""
    chunk_rows = features.chunks[0] if features.chunks else 1
    chunk_of_row = rows // chunk_rows
    pieces = [np.empty((0, *features.shape[1:]), features.dtype)]
    for number in np.unique(chunk_of_row):
        start = number * chunk_rows
        chunk = features[start : start + chunk_rows]
        pieces.append(chunk[rows[chunk_of_row == number] - start])
    return np.concatenate(pieces)


def _read_contiguous(path: Path, offset: int, features: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Read rows of a dataset that is stored contiguously from a byte offset.

    The file is not mapped into memory, because a failing disk or a truncated file would then end the process (SIGBUS).
    """
    values = np.empty((len(rows), *features.shape[1:]), features.dtype)
    row_bytes = values[:1].nbytes
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for i, row in enumerate(rows.tolist()):
            data = _read_bytes(descriptor, offset + row * row_bytes, row_bytes)
            values[i] = np.frombuffer(data, features.dtype).reshape(features.shape[1:])
    finally:
        os.close(descriptor)
    return values


def _read_bytes(descriptor: int, offset: int, n_bytes: int) -> bytes:
    """Read `n_bytes` of a file, in several reads if necessary."""
    data = b""
    while len(data) < n_bytes:
        piece = os.pread(descriptor, n_bytes - len(data), offset + len(data))
        if not piece:
            raise ValueError(f"the file ends at byte {offset + len(data)}")
        data += piece
    return data


# -- input rows ----------------------------------------------------------------------------------------------------


class _Sources:
    """The shards that parts were made from; each is opened once.

    Attributes
    ----------
    unreadable : dict of str to str
        Files that cannot be read, and why.
    """

    def __init__(self, shard_of: Callable[[PartLine], Shard]) -> None:
        self._shard_of = shard_of
        self._shards: dict[int, Shard | None] = {}
        self.unreadable: dict[str, str] = {}

    def shard(self, part: PartLine) -> Shard | None:
        """Return the shard of a part; None if it cannot be read any more."""
        number = part["shard"]
        if number not in self._shards:
            self._shards[number] = None
            try:
                self._shards[number] = self._shard_of(part)
            except (DataError, NoInput, NotPermitted) as error:
                self.unreadable[part["path"]] = str(error)
        return self._shards[number]

    def first_shard(self, parts: Sequence[PartLine]) -> Shard | None:
        """Return the first shard of some parts that can be read."""
        for part in parts:
            shard = self.shard(part)
            if shard is not None:
                return shard
        return None


def _read_rows(part: PartLine, shard: Shard, numbers: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """Read rows of a part from its shard.

    Returns
    -------
    rows : ndarray of shape (n_rows, n_inputs)
    failures : dict of int to str
        Positions of rows that cannot be read, and why.
    """
    rows = np.zeros((len(numbers), shard.n_inputs), shard.dtype)
    failures: dict[int, str] = {}
    rows_of_shard = numbers + part["start"]
    chunk_of_row = rows_of_shard // shard.chunk_rows
    for chunk in np.unique(chunk_of_row):  # each is decompressed once
        positions = np.flatnonzero(chunk_of_row == chunk)
        try:
            rows[positions] = _read_sorted(shard, rows_of_shard[positions])
        except DataError as error:
            failures |= dict.fromkeys(positions.tolist(), str(error))
    return rows, failures


def _read_sorted(shard: Shard, numbers: np.ndarray) -> np.ndarray:
    """Read rows with sorted numbers in one read from the first to the last."""
    first = int(numbers[0])
    values = read(Block(shard, first, int(numbers[-1]) + 1))
    return values[numbers - first]


# -- comparison ----------------------------------------------------------------------------------------------------


def _check_part(
    directory: Path, part: PartLine, numbers: np.ndarray, sources: _Sources, how: Preprocessing
) -> RowCheck:
    """Compare the stored features of some rows of a part with recomputed ones."""
    try:
        features, valid = read_features(directory / part["file"], numbers)
    except DataError as error:
        return RowCheck(faults=(Fault(part["file"], str(error)),))
    shard = sources.shard(part)
    if shard is None:
        return RowCheck()
    rows, failures = _read_rows(part, shard, numbers)
    # A row that could not be read by the run, either, is stored as a bad row.
    reasons = [reason for i, reason in failures.items() if valid[i]]
    if reasons:
        sources.unreadable[part["path"]] = reasons[0]
    positions = np.delete(np.arange(len(rows)), list(failures))
    stored = _Stored(numbers, features.astype(np.float64), valid).at(positions)
    return _compare(part["file"], stored, _expected(part, shard, rows[positions], how))


@dataclass(frozen=True)
class _Stored:
    """Numbers (n_rows,) of rows, their features (n_rows, n_features) in float64, and which of them are valid."""

    numbers: np.ndarray
    features: np.ndarray
    valid: np.ndarray

    def at(self, positions: np.ndarray) -> _Stored:
        """Return the rows at some positions."""
        return _Stored(self.numbers[positions], self.features[positions], self.valid[positions])


@dataclass(frozen=True)
class _Expected:
    """Features (n_rows, n_features) in float64, allowed differences, and which rows (n_rows,) are bad.

    Rows far outside the range can overflow float32. Such rows may be stored as bad or as good.
    """

    features: np.ndarray
    allowed: np.ndarray
    is_bad: np.ndarray
    may_be_bad: np.ndarray


def _expected(part: PartLine, shard: Shard, rows: np.ndarray, how: Preprocessing) -> _Expected:
    """Encode rows of a part in float64."""
    scaler = how.model.scaler
    bad = bad_entries(rows, how.missing, shard.stored_dtype, scaler.fill is not None)
    cleaned = how.cleaned(Block(shard, 0, 0), rows)
    with np.errstate(over="ignore", invalid="ignore"):  # bad rows, and rows far outside the range
        allowed = rounding_bound(how.model, cleaned)
        is_far = ~(np.abs(scaler.transform(cleaned)).max(axis=1) < _HUGE)
        features = how.model.encode(cleaned)
    may_be_bad = is_far | ~np.isfinite(allowed).all(axis=1)
    # If a shard cannot be read completely, all of its rows are bad, including rows that can be read, such as these.
    may_be_bad |= part["n_bad"] == part["n_rows"]
    storage_error = part.get("max_error", 0.0)  # measured by the run
    return _Expected(features, allowed + storage_error, bad.any(axis=1), may_be_bad)


def _compare(file: str, stored: _Stored, expected: _Expected) -> RowCheck:
    """Compare stored features with the expected ones, and report the first row that is wrong."""
    is_comparable = stored.valid & ~expected.is_bad & ~expected.may_be_bad
    differences = np.where(is_comparable[:, None], np.abs(stored.features - expected.features), 0)
    shares = np.where(is_comparable[:, None], differences / expected.allowed, 0)
    is_left_out = _is_left_out(stored, expected)
    is_right = stored.valid & ~expected.is_bad & (shares <= 1).all(axis=1)  # shares of rows that may be bad are 0
    wrong = np.flatnonzero(~(is_right | is_left_out)).tolist()
    return RowCheck(
        n_rows=int(is_comparable.sum()),
        n_bad=int(is_left_out.sum()),
        largest_difference=float(differences.max(initial=0)),
        of_tolerance=float(shares.max(initial=0)),
        faults=tuple(Fault(file, _fault(i, stored, expected, shares)) for i in wrong[:1]),
    )


def _is_left_out(stored: _Stored, expected: _Expected) -> np.ndarray:
    """Return which rows are stored as bad ones and may be bad, bool (n_rows,)."""
    is_nan = np.isnan(stored.features).all(axis=1)
    return ~stored.valid & is_nan & (expected.is_bad | expected.may_be_bad)


def _fault(i: int, stored: _Stored, expected: _Expected, shares: np.ndarray) -> str:
    """Describe the fault of a row."""
    where = f"row {stored.numbers[i]}"
    if expected.is_bad[i]:
        return f"{where}: has features although its input row is bad, expected NaN and valid=False"
    if not stored.valid[i]:
        return f"{where}: is marked as bad although its input row is good, expected features and valid=True"
    worst = int(np.argmax(np.where(np.isnan(shares[i]), np.inf, shares[i])))
    return f"{where}: {_difference(stored.features[i], expected.features[i], expected.allowed[i], worst)}"


def _difference(stored: np.ndarray, expected: np.ndarray, allowed: np.ndarray, j: int) -> str:
    return f"feature {j} is {stored[j]:.7g}, expected {expected[j]:.7g} +- {allowed[j]:.2g} (recomputed in float64)"


def rounding_bound(model: Model, rows: np.ndarray) -> np.ndarray:
    """Return how far float32 features may be from those that `Model.encode` computes in float64.

    A sum of n products has an error of about ``sqrt(n)`` roundings of the sum of their sizes, in any order of additions
    (Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019, section 3, with lambda 4).
    Independent errors of one layer add up to their root mean square in the next one. Integer products round each weight
    relative to all weights of its unit, so the mean size of these weights is added to each. The measured errors of
    devices that sum in another order, or fold the scaling into the weights, are much smaller: see docs/reliability.md.

    Parameters
    ----------
    rows : ndarray of shape (n_rows, n_inputs)
        Unscaled.

    Returns
    -------
    ndarray of shape (n_rows, n_features), float64
        Inf or NaN where float32 overflows.
    """
    network = model.network
    # float32 is precise enough for a bound, and only one large matrix is copied at a time.
    with np.errstate(over="ignore", invalid="ignore"):
        a = model.scaler.transform(rows)
        error = np.float32(_SAFETY * _EPS) * (np.abs(a) + 1)
        for (weights, bias, _), kind in zip(network.layers, network.activations, strict=True):
            W = model.parameters[weights]
            b = model.parameters[bias]
            error = np.hypot(np.sqrt(error**2 @ W**2), _error_of_layer(a, W, b))
            a = activated(kind, a @ W + b)
            activation = ACTIVATIONS[kind]
            error = error * np.float32(activation.largest_slope)
            if activation.n_roundings > 0:
                sizes = np.abs(a)
                if activation.limits is not None:
                    sizes = np.float32(max(map(abs, activation.limits)))
                error = error + np.float32(activation.n_roundings * _EPS) * sizes
    return np.maximum(error, _MIN_ERROR).astype(np.float64)


def _error_of_layer(a: np.ndarray, W: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the rounding error of ``a @ W + b`` in float32."""
    sizes = np.abs(W)
    sizes += sizes.mean(axis=0)
    return np.float32(_SAFETY * _EPS * np.sqrt(len(W))) * (np.abs(a) @ sizes + np.abs(b))
