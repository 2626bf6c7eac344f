"""Whether features that stand in files are those of their rows: some are read back, and their rows encoded again.

Features are looked up by HDF5, as downstream does; rows are encoded by NumPy in float64, which shares no code
with what has made the features.
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

from kernels.network import SLOPES
from pipeline.errors import DataError, NoInput, NotPermitted, shown
from pipeline.features import FAILURES, FEATURES, VALID, reading
from pipeline.model import Model
from pipeline.output.records import check_storage
from pipeline.scan.cleaning import Cleaning
from pipeline.shards.rows import bad_entries, read
from pipeline.shards.shard import Block, Shard

__all__ = ["Encoded", "Fault", "Part", "RowsChecked", "check_rows", "drawn", "features_at", "rounding"]


@dataclass(frozen=True)
class Encoded:
    """How rows were encoded.

    Attributes
    ----------
    missing : float or None
        What stands for a missing value, beside NaN.
    clips : bool
        Whether rows outside the model's range were moved to its edge, though the model itself does not ask for it.
    """

    model: Model
    missing: float | None = None
    clips: bool = False

    def cleaned(self, block: Block, rows: np.ndarray) -> np.ndarray:
        """Rows (n_rows, n_inputs) of a block as the encoder got them, in their own dtype."""
        scaler = self.model.scaler
        cleaned = Cleaning(scaler, self.missing).cleaned(block, rows)
        return np.clip(cleaned, *scaler.edges(cleaned.dtype)) if self.clips else cleaned


Part = Mapping[str, Any]
"""A part's line in the manifest."""


def drawn(sizes: Sequence[int], n: int, seed: int = 0) -> list[np.ndarray]:
    """Up to `n` rows of pieces of these sizes, one from each of as many stretches of all rows: for each piece, sorted.

    The rows and the seed alone decide which.
    """
    firsts = np.cumsum([0, *sizes])
    n = min(n, int(firsts[-1]))
    edges = np.arange(n + 1) * int(firsts[-1]) // max(1, n)
    rows = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
    ends = np.searchsorted(rows, firsts)
    return [rows[ends[i] : ends[i + 1]] - firsts[i] for i in range(len(sizes))]


def features_at(path: Path, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, n_features) of a part's rows (n,), sorted, as they are stored, and which of them count: bool, (n,).

    Raises
    ------
    DataError
        When the part cannot be read.
    ReadFailed, SystemLimit
        When the storage or the system fails: that says nothing about the part.
    """
    try:
        with reading(path) as file:
            return _values(path, file[FEATURES], rows), file[VALID][()][rows]
    except FAILURES as error:
        number = _error_number(error)
        if number:
            check_storage(OSError(number, os.strerror(number)), path)
        raise DataError(f"file={shown(path)}: cannot be read: {error}") from error


def _error_number(error: BaseException) -> int | None:
    """Return the system's error number of a failed read; HDF5 gives it in its text alone."""
    found = re.search(r"errno = (\d+), error message", str(error))
    return int(found[1]) if found else getattr(error, "errno", None)


def _values(path: Path, features: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Past HDF5 where values lie in one piece: of single rows it takes longer to be told which than to read them."""
    place = features.id.get_offset()
    if place is not None:
        return _read_rows(path, place, features, rows)
    chunk = features.chunks[0] if features.chunks else 1
    starts = np.unique(rows // chunk) * chunk  # each chunk is undone once
    found = [features[start : start + chunk][rows[rows // chunk == start // chunk] - start] for start in starts]
    return np.concatenate([np.empty((0, *features.shape[1:]), features.dtype), *found])


def _read_rows(path: Path, place: int, features: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Return rows of values that lie in one piece from `place` on.

    By reads, not by a map of the file: where the disk fails or the file is cut short, a map ends the process (SIGBUS).
    """
    found = np.empty((len(rows), *features.shape[1:]), features.dtype)
    row_bytes = found[:1].nbytes
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for i, row in enumerate(rows.tolist()):
            data = _read_whole(descriptor, place + row * row_bytes, row_bytes)
            found[i] = np.frombuffer(data, features.dtype).reshape(features.shape[1:])
    finally:
        os.close(descriptor)
    return found


def _read_whole(descriptor: int, offset: int, n_bytes: int) -> bytes:
    """Return `n_bytes` of a file, however many reads that takes."""
    data = b""
    while len(data) < n_bytes:
        piece = os.pread(descriptor, n_bytes - len(data), offset + len(data))
        if not piece:
            raise ValueError(f"the file ends at byte {offset + len(data)}")
        data += piece
    return data


_EPS = 2.0**-24  # of float32: how far a number may be rounded, as a share of it
_SAFETY = 4.0  # see `rounding`
_LEAST = 1e-30  # of units whose weights are all 0
_SIGMOID = 16 * _EPS  # of its own: polynomials and the libraries' exponentials are off by less


def rounding(model: Model, rows: np.ndarray) -> np.ndarray:
    """How far features (n_rows, n_features) of unscaled rows (n_rows, n_inputs) may lie from those of `Model.encode`.

    A sum of n products is off by about ``sqrt(n)`` roundings of the sum of their sizes, in whatever order they are
    added (Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019, section 3, with lambda 4),
    and independent errors of one layer reach the next by their root mean square. Integer products round each weight by
    the size of all that its unit has, so the mean of these counts for each. Devices that sum in another order, or have
    the scaling folded into the weights, stay far within: docs/reliability.md has measurements.

    Returns
    -------
    ndarray of shape (n_rows, n_features), float64
        Inf, or NaN, where float32 overflows.
    """
    network = model.network
    # In float32, so that large weights are copied once at a time: of a bound, a few digits will do.
    with np.errstate(over="ignore", invalid="ignore"):
        a = model.scaler.transform(rows)
        error = np.float32(_SAFETY * _EPS) * (np.abs(a) + 1)
        for (weights, bias, _), kind in zip(network.layers, network.activations, strict=True):
            W, b = model.parameters[weights], model.parameters[bias]
            sizes = np.abs(W)
            sizes += sizes.mean(axis=0)
            own = np.float32(_SAFETY * _EPS * np.sqrt(len(W))) * (np.abs(a) @ sizes + np.abs(b))
            error = np.hypot(np.sqrt(error**2 @ W**2), own)
            if kind == "sigmoid":
                error = error / 4 + np.float32(_SIGMOID)  # a quarter is the steepest that it gets
            a = a @ W + b
            if kind in SLOPES:  # behind sigmoids nothing follows
                a = np.where(a > 0, a, np.float32(SLOPES[kind]) * a)
    return np.maximum(error, _LEAST).astype(np.float64)


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
